"""What AgeMem's graphs cost per turn of the model, outside model and embedding: the agent, and an episode of training.

A turn is one call of the model and what comes of it: the context is fitted to its budget, the reply is read, its calls are carried out on a
bank of 1,000 memories. The model answers at once from a script. A run's time, without that of the model and of the embedder, is divided by
its turns. Agents have 400 messages behind them and a full context: 8,192 tokens.

With a checkpointer LangGraph reads the whole conversation when a run begins and writes it whenever it has grown; what that costs by
itself is measured beside it.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from common import Row, Words, percentile, report
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from memweave.agents.memory_tools import ADD, FILTER, RETRIEVE, SUMMARY, UPDATE
from memweave.embeddings import HashingEmbedder, Vectors
from memweave.graphs.agemem import create_agemem_agent
from memweave.graphs.agemem_episode import EpisodeTask, create_agemem_episode_graph
from memweave.graphs.agemem_state import Protocol
from memweave.memory_stores import MemoryBank, open_bank, use_bank
from memweave.records import OpKind, ProposedOp, Scope
from memweave.serving.tool_text import render_tool_calls
from memweave.testing.models import ScriptedChatModel
from memweave.worlds.memhop import MemHop

ANNA = Scope(user="anna")
BAR = 5.0
MEMORIES = 1_000
BEHIND = 400
WORDS = Words(3)


class Stopwatch(HashingEmbedder):
    """Hashing embeddings of MiniLM's size, and how long they took, in seconds."""

    seconds = 0.0

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, 384) float32."""
        start = time.perf_counter()
        try:
            return super().embed(texts)
        finally:
            self.seconds += time.perf_counter() - start


class Model:
    """Replies that call tools in turn, and an answer after each `answer_after` of them; counts its turns."""

    def __init__(self, protocol: Protocol, answer_after: int = 3) -> None:
        self.protocol, self.answer_after = protocol, answer_after
        self.turns = 0
        self.seconds = 0.0
        self.rng = random.Random(0)
        self.chat = ScriptedChatModel(self.reply)

    def reply(self, messages: list[BaseMessage]) -> AIMessage:
        """Return the next reply."""
        start = time.perf_counter()
        self.chat.calls.clear()
        self.turns += 1
        made = self._answer() if self.turns % (self.answer_after + 1) == 0 else self._calls()
        self.seconds += time.perf_counter() - start
        return made

    def _answer(self) -> AIMessage:
        return AIMessage("Yes, so it is." if self.protocol == "native" else "<answer>Yes, so it is.</answer>")

    def _calls(self) -> AIMessage:
        fact = WORDS.sentence(8, 16)
        name, args = self.rng.choice(
            [
                (ADD, {"content": fact}),
                (RETRIEVE, {"query": fact}),
                (RETRIEVE, {"query": fact, "top_k": 10}),
                (UPDATE, {"memory_id": "1", "content": fact}),
                (FILTER, {"criteria": fact}),
                (SUMMARY, {"span": "2"}),
            ]
        )
        made: Any = {"name": name, "args": args, "id": f"call_{self.turns}", "type": "tool_call"}
        if self.protocol == "native":
            return AIMessage("Let me see.", tool_calls=[made])
        return AIMessage(f"<think>Let me see.</think>{render_tool_calls([made])}")


class Shortest:
    """A summariser that costs nothing."""

    def summarize(self, messages: Sequence[BaseMessage], config: RunnableConfig | None = None) -> str:
        """Return one word."""
        return "talk"

    async def asummarize(self, messages: Sequence[BaseMessage], config: RunnableConfig | None = None) -> str:
        """Return one word."""
        return "talk"


def fill(bank: MemoryBank) -> None:
    """Write memories of 8 to 24 words."""
    texts = [WORDS.sentence(8, 24) for _ in range(MEMORIES)]
    ops = [ProposedOp(kind=OpKind.ADD, text=text, reason="made up", actor="bench", run_id="old") for text in texts]
    for start in range(0, MEMORIES, 500):
        bank.apply(ops[start : start + 500], scope=ANNA)


def per_turn(run: Callable[[], object], model: Model, watch: Stopwatch) -> float:
    """Return milliseconds per turn of one run, without the model and the embedder."""
    turns, said, embedded, start = model.turns, model.seconds, watch.seconds, time.perf_counter()
    run()
    spent = time.perf_counter() - start - (model.seconds - said) - (watch.seconds - embedded)
    return spent * 1_000 / (model.turns - turns)


def chat(bank: MemoryBank, watch: Stopwatch, protocol: Protocol, runs: int, *, saved: bool) -> list[float]:
    """Measure the agent, each run on a conversation of its own."""
    model = Model(protocol)
    agent: Any = create_agemem_agent(
        model.chat, bank, scope=ANNA, protocol=protocol, summarizer=Shortest(), filter_threshold=0.9,
        checkpointer=InMemorySaver() if saved else None,
    )  # fmt: skip
    behind = conversation()
    times = []
    for number in range(runs):
        new = HumanMessage(WORDS.sentence(8, 16))
        config: Any = {"configurable": {"thread_id": str(number // 20)}}
        given = [new] if saved and number % 20 else [*behind, new]
        taken = per_turn(partial(agent.invoke, {"messages": given}, config), model, watch)
        times.append(taken)
    return times


def bare(runs: int) -> list[float]:
    """Measure LangGraph alone: as many steps and messages as the agent makes, with a checkpointer, and nothing done in them."""
    builder = StateGraph(MessagesState)
    builder.add_node("policy", lambda state: {})
    builder.add_node("act", lambda state: {"messages": [AIMessage("so"), AIMessage("it is")]})
    builder.add_edge(START, "policy")
    builder.add_edge("policy", "act")
    builder.add_conditional_edges(
        "act", lambda state: END if len(state["messages"]) % 9 == BEHIND % 9 else "policy", ["policy", END]
    )
    graph: Any = builder.compile(checkpointer=InMemorySaver())
    times = []
    for number in range(runs):
        new = HumanMessage(WORDS.sentence(8, 16))
        config: Any = {"configurable": {"thread_id": str(number // 20)}}
        given = [new] if number % 20 else [*conversation(), new]
        start = time.perf_counter()
        graph.invoke({"messages": given}, config)
        times.append((time.perf_counter() - start) * 1_000 / 4)
    return times


def conversation() -> list[AnyMessage]:
    """Return what was said before."""
    said: list[AnyMessage] = []
    for number in range(BEHIND // 2):
        said += [
            HumanMessage(WORDS.sentence(10, 30), id=f"u{number}"),
            AIMessage(WORDS.sentence(10, 30), id=f"a{number}"),
        ]
    return said


def episodes(bank: MemoryBank, watch: Stopwatch, runs: int) -> list[float]:
    """Measure episodes of MemHop, each on a branch of the bank."""
    model = Model("text", answer_after=2)
    graph: Any = create_agemem_episode_graph(
        model.chat, bank, protocol="text", profile="none", rounds=(1, 1, 5), context_tokens=2_000
    )
    times = []
    for drawn in MemHop().tasks("train", runs):
        task = EpisodeTask(id=drawn.id, messages=drawn.messages, distractors=drawn.distractors, question=drawn.question)
        with use_bank(bank.branch(scope=ANNA)):
            times.append(per_turn(partial(graph.invoke, {"task": task}, context={"user": "anna"}), model, watch))
    return times


def rows(what: str, times: Sequence[float], *, bar: bool = True) -> list[Row]:
    """Return the measurements of one case; the first runs warm up."""
    warm = times[len(times) // 10 :]
    p50 = percentile(warm, 50)
    asked, met = (f"<= {BAR:g}", p50 <= BAR) if bar else ("", None)
    return [
        Row(f"{what}, p50", p50, "ms", detail=f"{len(warm)} runs", bar=asked, met=met),
        Row(f"{what}, p95", percentile(warm, 95), "ms"),
    ]


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    args = parser.parse_args()
    watch = Stopwatch(384)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, open_bank(folder, embedding=watch) as bank:
        fill(bank)
        bank.search("warm up", scope=ANNA)
        found += rows("episode, one turn", episodes(bank, watch, args.runs))
        found += rows("agent, native calls, one turn", chat(bank, watch, "native", args.runs, saved=False))
        found += rows("agent, text protocol, one turn", chat(bank, watch, "text", args.runs, saved=False))
        found += rows(
            "agent with a checkpointer, one turn", chat(bank, watch, "native", args.runs, saved=True), bar=False
        )
    found += rows("LangGraph alone with a checkpointer, one turn", bare(args.runs), bar=False)
    report("agemem", "AgeMem: one turn outside model and embedding", found)


if __name__ == "__main__":
    main()
