"""A run that trains a graph through a vLLM server; as a program, a trainer in a process of its own, which may be killed.

`python -m tests.integration.training URL BASE OUT KILL_AT RESUME`: the process dies among the episodes of generation batch
KILL_AT; -1 lets it finish.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.graph import END, START, StateGraph
from transformers import AutoModelForCausalLM, TrainerCallback

from memweave.records import Record
from memweave.serving.vllm_endpoint import ServerAwayError
from memweave.serving.vllm_server import VLLMServer
from memweave.tracing import Sampling, Trace, TraceStore
from memweave.trainers.grpo import TraceGRPOTrainer
from memweave.trainers.rollouts import Rollouts, Task
from tests.trainers.direct import config, lora

KEY = "a-key"
GROUP_SIZE = 4
TASKS = ("Alice", "Rome")
EPISODES = GROUP_SIZE * len(TASKS)


class State(TypedDict, total=False):
    messages: list[BaseMessage]
    answer: str


class Step(Record):
    """What one training step was trained on."""

    number: int
    """From 0, as the iteration of its traces."""
    policy: str
    version: str
    served: tuple[str, ...]
    """Adapters that the server lists after the step."""
    folders: tuple[str, ...]


def graph_of(model: BaseChatModel) -> Any:
    """Return two nodes: one asks the policy twice in a loop, in one growing context; the other once, in a context of its own."""

    async def think(state: State) -> State:
        messages = state["messages"]
        for _ in range(2):
            messages = [*messages, await model.ainvoke(messages), HumanMessage("go on")]
        return {"messages": messages}

    async def answer(state: State) -> State:
        question = HumanMessage(f"Where is {state['messages'][0].content}?")
        return {"answer": str((await model.ainvoke([question])).content)}

    graph = StateGraph(State)
    graph.add_node("think", think)
    graph.add_node("answer", answer)
    graph.add_edge(START, "think")
    graph.add_edge("think", "answer")
    graph.add_edge("answer", END)
    return graph.compile()


def in_class(trace: Trace) -> float:
    """Return the share of sampled tokens whose id is divisible by three."""
    ids = [token for generation in trace.generations for token in generation.token_ids or ()]
    return sum(token % 3 == 0 for token in ids) / max(len(ids), 1)


class Notes(TrainerCallback):
    """Writes down what each step was trained on, as it ends."""

    def __init__(self, server: VLLMServer, adapters: Path, file: Path) -> None:
        self.server, self.adapters, self.file = server, adapters, file

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        current = self.server.current()
        assert current is not None
        step = Step(
            number=state.global_step - 1,
            policy=current.name,
            version=current.version,
            served=tuple(sorted(listed(self.server))),
            folders=tuple(sorted(path.name for path in self.adapters.iterdir() if path.is_dir())),
        )
        with self.file.open("a") as lines:
            lines.write(step.model_dump_json() + "\n")


def listed(server: VLLMServer) -> list[str]:
    """Return the adapters that the server itself says it serves; one that was killed meanwhile is waited for, as by the trainer."""
    try:
        found = server._endpoint.get("/v1/models")
    except ServerAwayError:
        server._endpoint.wait_ready()
        found = server._endpoint.get("/v1/models")
    models: list[dict[str, Any]] = found["data"]
    return [model["id"] for model in models if model.get("parent")]


def steps_of(out: Path) -> list[Step]:
    """Return what was trained on, step by step; a step that was repeated counts as it was last."""
    steps = [Step.model_validate_json(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    return [step for _, step in sorted({step.number: step for step in steps}.items())]


@contextmanager
def open_run(
    url: str,
    base: Path,
    out: Path,
    *,
    run: str,
    reward: Callable[[Trace], float] = in_class,
    on_wait: Callable[[str], None] | None = None,
    concurrency: int = 32,
    **settings: Any,
) -> Iterator[tuple[TraceGRPOTrainer, TraceStore]]:
    """Yield a trainer of the graph against the server at `url`, and the store of its traces; everything is in `out`."""
    adapters = out / "adapters"
    adapters.mkdir(parents=True, exist_ok=True)
    temperature = settings.get("temperature", 1.0)
    with (
        VLLMServer(url, base=base, adapter_dir=adapters, api_key=KEY, on_wait=on_wait) as server,
        TraceStore(out / "traces.db") as store,
    ):
        model = server.chat_model(sampling=Sampling(temperature=temperature, max_tokens=8, seed=1))
        rollouts = Rollouts(
            graph_of(model),
            lambda task, output, trace: reward(trace),
            concurrency=concurrency,
            timeout=15,  # less than vLLM needs to start again
            store=store,
        )
        trainer = TraceGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
            [Task(name, {"messages": [HumanMessage(name)]}) for name in TASKS],
            rollouts,
            server,
            config(out, run=run, num_generations=GROUP_SIZE, per_device_train_batch_size=EPISODES, **settings),
            peft_config=lora(),
            callbacks=[Notes(server, adapters, out / "steps.jsonl")],
        )
        with rollouts:
            yield trainer, store


def main(url: str, base: Path, out: Path, kill_at: int, resume: bool) -> None:
    torch.set_num_threads(1)
    scored = 0

    def reward(trace: Trace) -> float:
        nonlocal scored
        scored += trace.iteration == kill_at
        if scored == 4:  # three episodes of the batch are stored
            os.kill(os.getpid(), signal.SIGKILL)
        return in_class(trace)

    settings: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    with open_run(url, base, out, run="killed-trainer", reward=reward, concurrency=1, **settings) as (trainer, _):
        trainer.train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "resume")
