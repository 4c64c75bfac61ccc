from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from memweave.agents.llm import ANSWERER, LLMPolicy
from memweave.errors import ContextLengthError, InputError, SettingsError, UnavailableError
from memweave.models import chat_model, model_name
from memweave.serving import LocalServer, call_seed, create_policy, load_policy_folder, weights_version
from memweave.serving.local_chat import LocalChatModel, prompt_ids, reply_text
from memweave.serving.local_spec import _servers, parse_local
from memweave.serving.policy_folder import END as END_TOKEN
from memweave.tracing.records import Sampling

pytestmark = pytest.mark.usefixtures("one_thread")
Make = Callable[..., Path]


@pytest.fixture
def server(policy: Path) -> Iterator[LocalServer]:
    with LocalServer(policy) as running:
        yield running


def sampler(server: LocalServer, **options: Any) -> LocalChatModel:
    return server.chat_model(sampling=Sampling(**{"temperature": 1.0, "max_tokens": 12, "seed": 1} | options))


def test_a_reply_carries_what_training_needs(server: LocalServer, policy: Path) -> None:
    reply = sampler(server).invoke([SystemMessage("Be brief."), HumanMessage("Where is Alice?")])
    found = reply.response_metadata
    tokenizer = load_policy_folder(policy).tokenizer()
    text = "<|system|>Be brief.<|end|><|user|>Where is Alice?<|end|><|assistant|>"
    assert found["prompt_token_ids"] == tokenizer(text)["input_ids"]
    assert reply.content == tokenizer.decode(found["token_ids"], skip_special_tokens=True)
    assert len(found["token_ids"]) == len(found["token_logprobs"]) <= 12
    assert all(value < 0 for value in found["token_logprobs"])
    assert (found["policy"], found["policy_version"]) == ("base", weights_version(policy))
    assert found["sampling"] == {"temperature": 1.0, "max_tokens": 12, "seed": 1, "logprobs": "processed"}
    assert found["finish_reason"] in ("stop", "length")
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_tokens"] == len(found["token_ids"])


def test_seeds_come_from_the_episode_and_the_prompt(server: LocalServer) -> None:
    model = sampler(server)

    def ids(metadata: dict[str, Any], text: str = "hi", **options: Any) -> list[int]:
        found: list[int] = (
            sampler(server, **options).invoke(text, {"metadata": metadata}).response_metadata["token_ids"]
        )
        return found

    assert ids({"memweave_episode": "r/0/g/0"}) == ids({"memweave_episode": "r/0/g/0"})
    assert ids({"memweave_episode": "r/0/g/0"}) != ids({"memweave_episode": "r/0/g/1"})
    assert ids({}) == model.invoke("hi").response_metadata["token_ids"] != ids({}, "ho")
    assert ids({}, seed=None) != ids({}, seed=None)
    prompt = prompt_ids(server.folder, [HumanMessage("hi")])
    direct = server.submit(prompt, model.sampling, seed=call_seed(1, {}, prompt)).result(30)
    assert direct.token_ids == ids({})


def test_the_model_follows_what_is_published(server: LocalServer, make_adapter: Make, policy: Path) -> None:
    model = server.chat_model("answerer", sampling=Sampling(max_tokens=3))
    player = LLMPolicy(model, ANSWERER)
    assert (model_name(model), model.policy_version, player.policy_version) == ("base", *[weights_version(policy)] * 2)
    published = server.publish(make_adapter("a"), run="r", role="answerer")
    assert (model_name(model), model.policy_version, player.policy_version) == (
        "r-answerer-v1",
        published.version,
        published.version,
    )
    assert model.invoke("hi").response_metadata["policy_version"] == published.version
    again = server.publish(make_adapter("b", seed=1), run="r", role="answerer")
    assert again.version != published.version
    assert server.current("answerer") == again
    reply = model.invoke("hi").response_metadata
    assert (reply["policy"], reply["policy_version"]) == ("r-answerer-v2", again.version)


TEXTS = st.text(max_size=20) | st.sampled_from(["<|end|>", "a<|user|>b", "\ue0000\ue000", "<tool_call>", " "])


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXTS, st.lists(st.integers(0, 290), min_size=1, max_size=8)), min_size=1, max_size=4))
def test_what_was_sampled_comes_back_as_the_very_ids(shared: LocalServer, turns: list[tuple[str, list[int]]]) -> None:
    """Whatever was sampled: pieces that would be cut otherwise, half characters, special tokens."""
    messages: list[BaseMessage] = []
    before: list[int] = []
    for text, ids in turns:
        messages.append(HumanMessage(text))
        prompt = prompt_ids(shared.folder, messages)
        assert prompt[: len(before)] == before
        # An end token ends a reply: none within.
        sampled = [token for token in ids if token not in shared.folder.eos_ids]
        messages.append(AIMessage(reply_text(shared.folder, sampled), response_metadata={"token_ids": sampled}))
        before = prompt + sampled


@pytest.fixture(scope="module")
def shared(policy: Path) -> LocalServer:
    return LocalServer(policy)


def test_an_edited_reply_is_tokenised_from_its_text(server: LocalServer) -> None:
    reply = sampler(server).invoke("hi")
    edited = AIMessage("Paris", response_metadata=reply.response_metadata)
    assert prompt_ids(server.folder, [HumanMessage("hi"), edited]) == prompt_ids(
        server.folder, [HumanMessage("hi"), AIMessage("Paris")]
    )


def test_ids_survive_a_graph_that_streams_its_messages(server: LocalServer) -> None:
    model = sampler(server)
    graph = StateGraph(MessagesState)
    graph.add_node("call", lambda state: {"messages": [model.invoke(state["messages"])]})
    compiled = graph.add_edge(START, "call").add_edge("call", END).compile()
    chunks = [chunk for chunk, _ in compiled.stream({"messages": [HumanMessage("hi")]}, stream_mode="messages")]
    assert [len(chunk.response_metadata["token_ids"]) > 0 for chunk in chunks if chunk.type.startswith("AI")] or chunks
    final = compiled.invoke({"messages": [HumanMessage("hi")]})["messages"][-1]
    assert any(
        chunk.content == final.content and chunk.response_metadata == final.response_metadata for chunk in chunks
    )


@pytest.mark.anyio
async def test_a_reply_that_takes_too_long(server: LocalServer) -> None:
    model = server.chat_model(sampling=Sampling(), timeout=0.001)
    message = "'base' did not answer within 0.001 s. Run fewer episodes at once"
    with pytest.raises(UnavailableError, match=message):
        await model.ainvoke("hi", ignore_eos=True)
    with pytest.raises(UnavailableError, match=message):
        model.invoke("hi", ignore_eos=True)


def test_bad_calls_have_names(server: LocalServer) -> None:
    model = sampler(server)
    with pytest.raises(ContextLengthError, match="Shorten the prompt"):
        model.invoke("x" * 1_000)
    with pytest.raises(InputError, match="stop strings"):
        model.invoke("hi", stop=["."])
    with pytest.raises(InputError, match="'top_p' is no argument of a local policy"):
        model.invoke("hi", top_p=0.5)


CALL = '<tool_call>\n{"name": "lookup", "arguments": {"who": "alice"}}\n</tool_call>'
ANSWER = "It is Paris."


def taught(policy: Path, folder: Path, pairs: list[tuple[list[int], str]]) -> Path:
    """Return full weights that reply as told: the policy fitted to these prompts."""
    facts = load_policy_folder(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    examples = [(p, facts.tokenizer()(reply + END_TOKEN)["input_ids"]) for p, reply in pairs]
    for _ in range(400):
        losses = []
        for prompt, reply in examples:
            logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(reply)))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    assert loss.item() < 0.02
    folder.mkdir()
    weights = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors")
    return folder


def test_an_agent_of_langchain_calls_tools_through_text(tmp_path: Path) -> None:
    texts = [CALL, ANSWER, "alice: paris"]
    policy = create_policy(tmp_path / "base", texts, vocab_size=320, context=512).path
    server = LocalServer(policy)

    @tool
    def lookup(who: str) -> str:
        """Find."""
        return f"{who}: paris"

    model = server.chat_model(sampling=Sampling(temperature=0.0, max_tokens=120))
    tools = model.bind_tools([lookup]).kwargs["tools"]  # type: ignore[attr-defined]  # a binding has them
    asked: list[BaseMessage] = [HumanMessage("alice?")]
    after = [*asked, AIMessage(CALL), ToolMessage("alice: paris", tool_call_id="call_0")]
    pairs = [
        (prompt_ids(server.folder, asked, tools), CALL),
        (prompt_ids(server.folder, after, tools), ANSWER),
    ]
    server.publish(taught(policy, tmp_path / "taught", pairs), run="sft")
    messages = create_agent(model, [lookup]).invoke({"messages": asked})["messages"]
    assert messages[1].response_metadata["prompt_token_ids"] == pairs[0][0]
    assert messages[1].content == CALL
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[1].content == CALL
    assert messages[1].tool_calls == [{"name": "lookup", "args": {"who": "alice"}, "id": "call_0", "type": "tool_call"}]
    assert messages[3].response_metadata["prompt_token_ids"] == pairs[1][0]
    assert messages[3].content == ANSWER
    first, second = (messages[n].response_metadata for n in (1, 3))
    sampled = first["prompt_token_ids"] + first["token_ids"]
    assert second["prompt_token_ids"][: len(sampled)] == sampled


def test_local_names_a_policy_and_an_adapter(policy: Path, make_adapter: Make) -> None:
    adapter = make_adapter("a")
    base = chat_model(f"local:{policy}", temperature=0.0, max_tokens=5)
    tuned = chat_model(f"local:{policy}?adapter={adapter}", temperature=1.0, max_tokens=5)
    assert isinstance(base, LocalChatModel)
    assert isinstance(tuned, LocalChatModel)
    assert base._server is tuned._server
    versions = [model.invoke("hi").response_metadata["policy_version"] for model in (base, tuned)]
    assert versions == [weights_version(policy), weights_version(adapter)]
    again = chat_model(f"local:{policy}?adapter={adapter}")
    assert model_name(again) == model_name(tuned)
    assert LLMPolicy(base, ANSWERER).name == "base"


def test_the_server_behind_local_goes_with_its_last_model(policy: Path) -> None:
    gc.collect()
    before = len(_servers)
    model = chat_model(f"local:{policy}")
    assert len(_servers) == before + 1
    del model
    gc.collect()
    assert len(_servers) == before


@pytest.mark.parametrize("rest", ["/p?adaptor=/a", "/p?adapter=", "/p?", "?adapter=/a"])
def test_a_local_name_that_makes_no_sense(rest: str) -> None:
    with pytest.raises(SettingsError, match=r"Write local:FOLDER or local:FOLDER\?adapter=FOLDER"):
        chat_model(f"local:{rest}")


def test_parts_of_a_local_name(tmp_path: Path) -> None:
    spec = parse_local("/p/base?adapter=/p/a&device=cuda&dtype=bfloat16")
    assert (spec.base, spec.adapter, spec.device, spec.dtype) == (Path("/p/base"), Path("/p/a"), "cuda", "bfloat16")
    odd = tmp_path / "what?"
    odd.mkdir()
    assert parse_local(str(odd)).base == odd
    with pytest.raises(InputError, match="is no folder"):
        chat_model(f"local:{tmp_path / 'missing'}")
