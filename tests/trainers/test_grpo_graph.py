"""The whole way: a LangGraph graph on a local policy server, traced, credited and trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import END, START, StateGraph

from memweave.errors import ContextLengthError, NoPolicyError, RewardError, StorageFullError
from memweave.serving import create_policy
from memweave.tracing import Sampling, Trace, TraceStore
from memweave.trainers.rollouts import Rollouts, Task

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from memweave.serving.local_server import LocalServer  # noqa: E402 - after importorskip
from memweave.trainers.grpo import TraceGRPOTrainer  # noqa: E402
from tests.trainers.direct import WORDS, config, lora  # noqa: E402


class State(TypedDict, total=False):
    messages: list[BaseMessage]
    turns: int


def graph_of(model: BaseChatModel, turns: int = 2) -> Any:
    """Return a loop: the model speaks, a tool answers, the model speaks again in the same context."""

    async def speak(state: State) -> State:
        reply = await model.ainvoke(state["messages"])
        return {"messages": [*state["messages"], reply], "turns": state.get("turns", 0) + 1}

    def tool(state: State) -> State:
        return {"messages": [*state["messages"], HumanMessage("kelp lotus")]}

    graph = StateGraph(State)
    graph.add_node("speak", speak)
    graph.add_node("tool", tool)
    graph.add_edge(START, "speak")
    graph.add_conditional_edges("speak", lambda state: END if state["turns"] >= turns else "tool", ["tool", END])
    graph.add_edge("tool", "speak")
    return graph.compile()


def tasks(count: int) -> list[Task]:
    return [Task(f"t{i}", {"messages": [HumanMessage(f"{WORDS[i]} {WORDS[i + 3]}")]}) for i in range(count)]


def in_class(task: Task, output: object, trace: Trace) -> float:
    ids = [token for generation in trace.generations for token in generation.token_ids or ()]
    return sum(token % 3 == 0 for token in ids) / max(len(ids), 1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("policy") / "base"
    create_policy(folder, [" ".join(WORDS)], vocab_size=300)
    return folder


@pytest.fixture
def server(base: Path) -> Iterator[LocalServer]:
    with LocalServer(base) as opened:
        yield opened


Make = Callable[..., TraceGRPOTrainer]


@pytest.fixture
def make(base: Path, server: LocalServer, tmp_path: Path) -> Iterator[Make]:
    opened: list[Rollouts] = []

    def build(
        reward: Any = in_class,
        *,
        graph: Any = None,
        sampling: Sampling | None = None,
        adapter: bool = True,
        store: TraceStore | None = None,
        concurrency: int = 32,
        number: int = 2,
        **settings: Any,
    ) -> TraceGRPOTrainer:
        from transformers import AutoModelForCausalLM

        given = sampling or Sampling(temperature=settings.get("temperature", 1.0), max_tokens=6, seed=1)
        rollouts = Rollouts(
            graph or graph_of(server.chat_model(sampling=given)), reward, concurrency=concurrency, store=store
        )
        opened.append(rollouts)
        return TraceGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
            tasks(number),
            rollouts,
            server,
            config(tmp_path / "out", **settings),
            peft_config=lora() if adapter else None,
        )

    yield build
    for rollouts in opened:
        rollouts.close()


def settled(trainer: TraceGRPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_log_probabilities_are_the_trainers(make: Make, temperature: float, adapter: bool) -> None:
    trainer = make(temperature=temperature, adapter=adapter, max_steps=3, learning_rate=3e-2)
    trainer.train()
    differences = settled(trainer, "sampling/logp_difference_max")
    assert len(differences) == 3
    assert max(differences) <= 1e-3
    assert settled(trainer, "ratio") == pytest.approx([1.0] * 3, abs=1e-4)


def test_turns_of_one_context_are_one_row(make: Make) -> None:
    trainer = make(max_steps=1)
    trainer.train()
    assert settled(trainer, "rows/merge_ratio") == [2.0]
    assert settled(trainer, "rows/count") == [8]
    assert settled(trainer, "tokens/trained") == settled(trainer, "tokens/generated")


def test_the_graph_learns(make: Make) -> None:
    trainer = make(
        max_steps=25,
        per_device_train_batch_size=32,
        num_generations=8,
        number=4,
        adapter=False,
        learning_rate=1e-2,
        sampling=Sampling(temperature=1.0, max_tokens=8, seed=1),
    )
    trainer.train()
    rewards = settled(trainer, "reward")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3
    assert max(settled(trainer, "sampling/logp_difference_max")) <= 1e-3


def test_other_sampling_settings_than_the_run_has_are_refused(make: Make) -> None:
    with pytest.raises(NoPolicyError, match="temperature"):
        make(sampling=Sampling(temperature=0.5, max_tokens=4)).train()


def test_a_graph_without_the_policy_is_named(make: Make) -> None:
    class Canned(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "canned"

        def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
            return ChatResult(generations=[ChatGeneration(message=AIMessage("hello"))])

    with pytest.raises(NoPolicyError, match=r"none called a model whose tokens are known.*server\.chat_model"):
        make(graph=graph_of(Canned())).train()


def test_a_missing_reward_is_named(make: Make) -> None:
    with pytest.raises(RewardError, match=r"none of 8 episodes has a reward.*Return a number or a Score"):
        make(lambda task, output, trace: None).train()


def test_a_reward_that_is_no_number_is_named(make: Make) -> None:
    with pytest.raises(RewardError, match=r"the reward of task 't\d' is nan. Return a finite number, or None"):
        make(lambda task, output, trace: math.nan).train()


def test_an_empty_reply_is_named(make: Make, server: LocalServer) -> None:
    """A reply without a single token carries nothing to train on."""

    class Empty(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "empty"

        def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
            current = server.current()
            metadata = {
                "prompt_token_ids": [5, 6],
                "token_ids": [],
                "token_logprobs": [],
                "policy": "p",
                "policy_version": current.version if current else None,
                "sampling": {"temperature": 1.0, "logprobs": "processed"},
                "finish_reason": "stop",
            }
            return ChatResult(generations=[ChatGeneration(message=AIMessage("", response_metadata=metadata))])

    with pytest.raises(NoPolicyError, match=r"all 16 replies are empty: not one token was sampled"):
        make(graph=graph_of(Empty())).train()


def test_a_prompt_longer_than_the_context_is_named(make: Make, server: LocalServer) -> None:
    model = server.chat_model(sampling=Sampling(temperature=1.0, max_tokens=6, seed=1))

    async def speak(state: State) -> State:
        return {"messages": [await model.ainvoke([HumanMessage("amber " * 2_000)])]}

    graph = StateGraph(State)
    graph.add_node("speak", speak)
    graph.add_edge(START, "speak")
    with pytest.raises(
        ContextLengthError, match=r"none of 8 episodes ran to its end.*The prompt has .* tokens.*Shorten the prompt"
    ):
        make(graph=graph.compile()).train()


def test_a_full_disk_stops_the_run_and_what_was_acknowledged_stays(make: Make, tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        trainer = make(store=store, max_steps=50, concurrency=1)
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 8}")  # SQLite's own way to a full disk
        with pytest.raises(StorageFullError, match=r"traces\.db.*free space"):
            trainer.train()
        kept = store.count()
        assert 0 < kept < 50 * 8
        assert len(store.query()) == kept


def test_a_resumed_run_uses_the_episodes_that_are_stored(make: Make, tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        settings = {"save_strategy": "steps", "save_steps": 1, "concurrency": 1, "store": store}
        make(max_steps=2, **settings).train()
        make(
            max_steps=3, **settings
        ).train()  # sampled again from the start: the weights are the same, so nothing is added
        before = {trace.id for trace in store.iterate(run="run")}
        assert len(before) == 3 * 8
        again = make(max_steps=3, **settings)
        again.train(resume_from_checkpoint=tmp_path / "out/checkpoint-2")
        assert {trace.id for trace in store.iterate(run="run")} == before
        assert again.state.global_step == 3
