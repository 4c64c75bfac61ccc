"""LangGraph Studio's server on a data folder, while the command line works on the same folder."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph_api", reason="needs the extra `studio`")

from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient

from memweave.agents.prompts import load_prompt
from tests.integration.server import langgraph_dev

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
ANNA = {"user": "anna"}


class Endpoint(BaseHTTPRequestHandler):
    """A chat model behind the OpenAI protocol: extracts and adds what is said, and answers with the first memory."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = reply(request["messages"])
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls := called(request["messages"]):
            message |= {"content": "It may matter later.", "tool_calls": calls}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body: dict[str, Any] = {"id": "1", "created": 1, "model": request["model"], "object": "chat.completion"}
        if request.get("stream"):
            chunk = {"index": 0, "finish_reason": "stop", "delta": {"role": "assistant", "content": text}}
            data = f"data: {json.dumps({**body, 'object': 'chat.completion.chunk', 'choices': [chunk]})}\n\n"
            self.send("text/event-stream", data + "data: [DONE]\n\n")
        else:
            self.send("application/json", json.dumps({**body, "choices": [choice]}))

    def send(self, kind: str, body: str) -> None:
        payload = body.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def called(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tool calls of AgeMem's agent, what it is told is stored, once; and of Memento's executor, which calculates."""
    if messages[0]["content"].startswith("You carry out one subtask") and messages[-1]["role"] == "user":
        arguments = json.dumps({"expression": messages[-1]["content"].removeprefix("Task 1: ")})
        return [{"id": "call-1", "type": "function", "function": {"name": "calculator", "arguments": arguments}}]
    if (
        not messages[0]["content"].startswith("You are a helpful assistant who manages")
        or messages[-1]["role"] != "user"
    ):
        return []
    arguments = json.dumps({"content": messages[-1]["content"]})
    return [{"id": "call-1", "type": "function", "function": {"name": "Add_memory", "arguments": arguments}}]


def reply(messages: list[dict[str, str]]) -> str:
    system, user = messages[0]["content"], messages[1]["content"]
    if system.startswith("You read one turn"):
        said = user.splitlines()[-1].split(": ", 1)[1]
        return json.dumps({"facts": [] if said.endswith("?") else [said]})
    if system.startswith("You manage"):
        facts = [line[2:] for line in user.partition("New facts")[2].splitlines() if line.startswith("- ")]
        return json.dumps({"memory": [{"event": "ADD", "text": fact, "reason": "It is new."} for fact in facts]})
    if system.startswith("You answer"):
        memories = [line for line in user.splitlines() if line.startswith("- ") and line.endswith(" [0]")]
        return f"{memories[0]}\n**Answer:** {memories[0][2:-4]}" if memories else "**Answer:** nobody said"
    if system.startswith("You plan"):
        result = messages[-1]["content"].partition("Task 1 result: ")[2]
        return f"FINAL ANSWER: {result}" if result else json.dumps({"plan": [{"id": 1, "description": "12 * 7"}]})
    if system.startswith("You carry out one subtask"):
        return messages[-1]["content"]
    return "I see."


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Return the address of a chat model."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()
        thread.join()


@dataclass(frozen=True)
class Studio:
    """A running `langgraph dev`."""

    client: SyncLangGraphClient
    environment: dict[str, str]
    folder: Path
    log: Path

    def cli(self, *arguments: str) -> dict[str, Any]:
        """Run `memweave ... --json` in a process of its own on the same data folder."""
        command = [sys.executable, "-m", "memweave", *arguments, "--json"]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def answer(self, question: str, **context: str) -> Any:
        """Run the answering graph."""
        return self.client.runs.wait(None, "memory-r1-answering", input={"question": question}, context=context or ANNA)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, endpoint: str) -> Iterator[Studio]:
    """Start `langgraph dev` on an empty data folder."""
    folder = tmp_path_factory.mktemp("studio")
    model = {"MEMWEAVE_MODEL": f"openai:scripted@{endpoint}"}
    with langgraph_dev(ROOT / "langgraph.json", folder, model) as (url, environment, log):
        client = get_sync_client(url=url)
        yield Studio(client, environment, folder, log)
        client.close()


def test_graphs_have_descriptions_and_editable_prompts(studio: Studio) -> None:
    assistants = {found["graph_id"]: found for found in studio.client.assistants.search()}
    chats = {"memory-r1", "agemem", "memento", "graph-memory"}
    assert assistants.keys() == {*chats, "memory-r1-construction", "memory-r1-answering", "agemem-episode"}
    assert all(len(found["description"] or "") > 20 for found in assistants.values())
    schemas = studio.client.assistants.get_schemas(assistants["memory-r1-construction"]["assistant_id"])
    fields = schemas["context_schema"]["properties"]
    assert fields["manager_prompt"]["langgraph_nodes"] == ["manage", "remember"]
    assert fields["manager_prompt"]["langgraph_type"] == "prompt"
    assert fields["manager_prompt"]["default"] == load_prompt("manager").text
    assert "user" in fields
    drawn = studio.client.assistants.get_graph(assistants["memory-r1"]["assistant_id"], xray=True)
    assert {"accept", "remember:manage", "remember:validate", "recall", "reply"} <= {
        node["id"] for node in drawn["nodes"]
    }


def test_a_chat_an_undo_on_the_command_line_and_an_answer_that_changes(studio: Studio) -> None:
    thread = studio.client.threads.create()["thread_id"]
    parts = list(
        studio.client.runs.stream(
            thread,
            "memory-r1",
            input={"messages": [{"role": "user", "content": "My cat is called Tom."}]},
            context=ANNA,
            stream_mode=["custom", "values", "messages-tuple"],
        )
    )
    (event,) = (part.data for part in parts if part.event == "custom")
    assert (event["kind"], event["text"], event["reason"]) == ("ADD", "My cat is called Tom.", "It is new.")
    assert (event["dialogue"], event["status"]) == (thread, "applied")
    final = [part.data for part in parts if part.event == "values"][-1]
    assert [message["content"] for message in final["messages"]] == ["My cat is called Tom.", "I see."]
    spoken = "".join(
        part.data[0]["content"] for part in parts if part.event == "messages" and part.data[0]["type"] != "human"
    )
    assert spoken == "I see."

    answer = studio.answer("What is my cat called?")
    assert "Tom" in answer["answer"]
    assert [memory["text"] for memory in answer["used"]] == ["My cat is called Tom."]

    asked = studio.cli("ask", "What is my cat called?", "--user", "anna")
    assert "Tom" in json.dumps(asked)
    studio.cli("memory", "undo", event["id"], "--user", "anna")
    assert studio.answer("What is my cat called?")["answer"] == "nobody said"
    assert "Tom" not in studio.cli("ask", "What is my cat called?", "--user", "anna")["answer"]
    assert studio.client.threads.get_state(thread)["values"]["operations"][0]["kind"] == "ADD"


def test_agemem_shows_its_tools_its_budget_and_what_it_did(studio: Studio) -> None:
    (assistant,) = (each for each in studio.client.assistants.search() if each["graph_id"] == "agemem")
    fields = studio.client.assistants.get_schemas(assistant["assistant_id"])["context_schema"]["properties"]
    assert fields["agent_prompt"]["langgraph_nodes"] == ["policy"]
    assert fields["agent_prompt"]["default"] == load_prompt("agemem").text
    thread = studio.client.threads.create()["thread_id"]
    said = {"messages": [{"role": "user", "content": "My horse is called Ada."}]}
    found = studio.client.runs.wait(thread, "agemem", input=said, context={"user": "cleo"})
    assert isinstance(found, dict)
    assert (found["status"], found["messages"][-1]["content"]) == ("answered", "I see.")
    state = studio.client.threads.get_state(thread)["values"]
    assert "Add_memory" in state["tools"]
    assert 0 < state["budget"]["used"] < state["budget"]["limit"]
    assert [call["name"] for step in state["steps"] for call in step["calls"]] == ["Add_memory"]
    (op,) = studio.cli("memory", "log", "--user", "cleo")["operations"]
    assert (op["kind"], op["reason"]) == ("ADD", "It may matter later.")


def test_an_episode_can_be_typed_and_leaves_nothing_behind(studio: Studio) -> None:
    (assistant,) = (each for each in studio.client.assistants.search() if each["graph_id"] == "agemem-episode")
    schemas = studio.client.assistants.get_schemas(assistant["assistant_id"])
    assert "gold" in json.dumps(schemas["input_schema"])
    thread = studio.client.threads.create()["thread_id"]
    task = {
        "messages": ["My goat is called Bo.", "I have a boat."],
        "distractors": ["It rains."],
        "question": "Who is Bo?",
    }
    typed = {"task": {**task, "gold": "I see"}}
    found = studio.client.runs.wait(thread, "agemem-episode", input=typed, context={"user": "dora"})
    assert isinstance(found, dict)
    assert (found["answer"], found["reward"]["value"], found["unjudged"]) == ("I see.", 1.0, None)
    assert "My goat is called Bo." in found["stored"]
    state = studio.client.threads.get_state(thread)["values"]
    assert state["stage"] == 3
    assert "Retrieve_memory" in state["tools"]
    assert 0 < state["budget"]["used"] < state["budget"]["limit"]
    assert studio.cli("memory", "log", "--user", "dora")["operations"] == []
    nobodys = studio.client.runs.wait(None, "agemem-episode", input={"task": task})
    assert isinstance(nobodys, dict)
    assert (nobodys["answer"], nobodys["reward"]) == ("I see.", None)
    with pytest.raises(Exception, match=r"task\.question: Field required"):
        studio.client.runs.wait(None, "agemem-episode", input={"task": {"messages": ["Hi."]}})


def test_memento_shows_its_prompts_its_plan_and_what_its_executor_did(studio: Studio) -> None:
    (assistant,) = (each for each in studio.client.assistants.search() if each["graph_id"] == "memento")
    fields = studio.client.assistants.get_schemas(assistant["assistant_id"])["context_schema"]["properties"]
    assert fields["planner_prompt"]["default"] == load_prompt("planner").text
    drawn = studio.client.assistants.get_graph(assistant["assistant_id"], xray=True)
    assert {"plan", "subtask:execute", "subtask:tools", "write_case"} <= {node["id"] for node in drawn["nodes"]}
    for number in (1, 2):  # the second time the first one is a case
        thread = studio.client.threads.create()["thread_id"]
        asked = {
            "messages": [{"role": "user", "content": "What is 12 * 7?"}],
            "ground_truth": "84",
            "task_id": str(number),
        }
        found = studio.client.runs.wait(thread, "memento", input=asked, context={"user": "emil"})
        assert isinstance(found, dict)
        assert (found["status"], found["answer"], found["reward"]) == ("answered", "84", 1.0)
        state = studio.client.threads.get_state(thread)["values"]
        assert [one["description"] for one in state["plan"]["subtasks"]] == ["12 * 7"]
        assert [row["tool"] for one in state["subtasks"] for row in one["tools"]] == ["calculator"]
        assert [case["task"] for case in state["cases"]] == ["What is 12 * 7?"] * (number - 1)


def test_construction_takes_what_the_command_line_left_pending(studio: Studio) -> None:
    lines = [{"speaker": "Ben", "text": f"I have {n} dogs.", "id": f"m{n}"} for n in (1, 2)]
    talk = studio.folder / "talk.jsonl"
    talk.write_text("\n".join(json.dumps(line) for line in lines))
    studio.cli("remember", str(talk), "--user", "ben")
    assert "1 dogs" in studio.answer("How many dogs?", user="ben")["answer"]
    output = studio.client.runs.wait(None, "memory-r1-construction", input={}, context={"user": "ben"})
    assert isinstance(output, dict)
    assert (output["turns_done"], output["failed"], output["stopped"]) == (0, [], None)


def test_a_run_for_nobody_is_an_error_that_says_what_to_do(studio: Studio) -> None:
    with pytest.raises(Exception, match="Whose memories") as refused:
        studio.client.runs.wait(None, "memory-r1-answering", input={"question": "Who?"})
    assert "ScopeError" in str(refused.value)


def test_nothing_blocked_the_event_loop(studio: Studio) -> None:
    studio.answer("What is my cat called?")
    log = studio.log.read_text()
    assert "Blocking call" not in log
    assert "BlockingError" not in log
    assert "unregistered type" not in log
