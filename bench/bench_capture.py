"""What tracing costs per model call: a graph with a tracer and a store against the same graph without, in turns, in one run.

The model answers at once from memory, with 100 prompt ids and 40 reply ids and log-probabilities, so that what is measured is the
graph and the tracer. The store's throughput is measured apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, TypedDict

from common import Row, percentile, report
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph

from memweave.records import new_id, utc_now
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import ChatMessage, Generation, Sampling, Score, Trace, Tracer, TraceStore

PROMPT, REPLY = 100, 40
CALLS = 10


class State(TypedDict, total=False):
    """How many calls were made."""

    calls: int


def graph() -> Any:
    """Return a loop of `CALLS` model calls."""
    info = {
        "prompt_token_ids": list(range(PROMPT)),
        "token_ids": list(range(REPLY)),
        "token_logprobs": [-0.1 * n for n in range(REPLY)],
        "policy": "bench",
        "policy_version": "v1",
        "sampling": {"temperature": 1.0, "logprobs": "processed"},
    }
    model = ScriptedChatModel(lambda messages: AIMessage("word " * REPLY, response_metadata=info))

    def call(state: State) -> State:
        model.invoke("word " * PROMPT)
        return {"calls": state.get("calls", 0) + 1}

    builder = StateGraph(State)
    builder.add_node("call", call)
    builder.add_edge(START, "call")
    builder.add_conditional_edges("call", lambda state: "call" if state["calls"] < CALLS else END, ["call", END])
    return builder.compile()


def overhead(runs: int, folder: Path) -> list[Row]:
    """Measure runs with and without a tracer in turns."""
    app = graph()
    with TraceStore(folder / "capture.db") as store, Tracer(store, run="bench") as tracer:
        traced = RunnableConfig(callbacks=[tracer])
        plain, watched = list[float](), list[float]()
        for _ in range(runs):
            for config, times in ((RunnableConfig(), plain), (traced, watched)):
                start = time.perf_counter()
                app.invoke({}, config)
                times.append((time.perf_counter() - start) * 1_000 / CALLS)
    extra = [b - a for a, b in zip(plain, watched, strict=True)]
    p50 = percentile(extra, 50)
    return [
        Row("call without tracer, p50", percentile(plain, 50), "ms"),
        Row("call with tracer and store, p50", percentile(watched, 50), "ms"),
        Row("capture per call, p50", p50, "ms", "<= 2", p50 <= 2),
        Row("capture per call, p95", percentile(extra, 95), "ms"),
    ]


def made(number: int) -> Trace:
    """Return a trace of `CALLS` generations."""
    generations = tuple(
        Generation(
            index=index,
            node="call",
            namespace="call:1",
            policy="bench",
            policy_version="v1",
            prompt_token_ids=tuple(range(number, number + PROMPT)),
            token_ids=tuple(range(number, number + REPLY)),
            logprobs=tuple(-0.1 * n for n in range(REPLY)),
            sampling=Sampling(temperature=1.0, logprobs="processed"),
            messages=(ChatMessage(role="user", text="word " * PROMPT),),
            reply="word " * REPLY,
            started_at=utc_now(),
        )
        for index in range(CALLS)
    )
    return Trace(
        id=new_id(),
        run="bench",
        group=f"g{number}",
        replica=0,
        generations=generations,
        score=Score(value=1.0),
        started_at=utc_now(),
        ended_at=utc_now(),
    )


def throughput(count: int, folder: Path) -> list[Row]:
    """Measure writing and reading back."""
    traces = [made(number) for number in range(count // CALLS)]
    with TraceStore(folder / "throughput.db") as store:
        start = time.perf_counter()
        for place in range(0, len(traces), 100):
            store.add_many(traces[place : place + 100])
        written = count / (time.perf_counter() - start)
        start = time.perf_counter()
        assert store.query(newest=False) == traces
        read = count / (time.perf_counter() - start)
        size = (folder / "throughput.db").stat().st_size + (folder / "throughput.db-wal").stat().st_size
    return [
        Row("store, written", written, "/s", ">= 2000", written >= 2_000, "generations"),
        Row("store, read", read, "/s", ">= 2000", read >= 2_000, "generations"),
        Row("on disk, with write-ahead log", size / count / 1024, "KiB", detail="per generation"),
    ]


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--generations", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [*overhead(args.runs, Path(folder)), *throughput(args.generations, Path(folder))]
    report("capture", f"Tracing, {PROMPT} prompt and {REPLY} reply tokens per call", rows)


if __name__ == "__main__":
    main()
