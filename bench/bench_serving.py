"""vLLM behind graphs: generated tokens/s of 64 episodes against the same server saturated by plain requests, and publishing.

Starts a vLLM of its own on this machine's CPU (`memweave serve --install` makes the environment).
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

from common import Row, percentile, report

from memweave.serving.http_pool import HttpPool
from memweave.serving.policy_folder import create_policy
from memweave.serving.vllm_chat import VLLMChatModel
from memweave.serving.vllm_env import default_env, ensure_env
from memweave.serving.vllm_process import ServeSettings, start
from memweave.serving.vllm_server import VLLMServer
from memweave.tracing.records import Sampling

EPISODES = 64
ROUNDS = 3
"""Both are measured in turn, so that a change of the machine's load meets both; the median counts."""
CALLS = {"one node": 1, "two nodes": 2}


class State(TypedDict, total=False):
    """State of the measured graphs."""

    text: str


def note(line: str) -> None:
    """Show progress."""
    print(line, file=sys.stderr)


def graph(chat: VLLMChatModel, nodes: int) -> Any:
    """Return a compiled graph of `nodes` calls in a row; each sees the question only, so prompts are of one length."""
    from langgraph.graph import StateGraph

    async def call(state: State) -> State:
        await chat.ainvoke(state["text"], ignore_eos=True)
        return {}

    builder = StateGraph(State)
    for number in range(nodes):
        builder.add_node(f"call{number}", call)
        if number:
            builder.add_edge(f"call{number - 1}", f"call{number}")
    builder.set_entry_point("call0")
    return builder.compile()


def question(number: int) -> str:
    """Return a prompt; all are of one length."""
    return f"Where does number {number:05d} live?"


async def episodes(compiled: Any, start_at: int) -> None:
    """Run all episodes at once."""
    await asyncio.gather(*(compiled.ainvoke({"text": question(start_at + n)}) for n in range(EPISODES)))


def plain(url: str, name: str, tokens: int, start_at: int, requests: int) -> None:
    """Send as many requests of the same lengths, 64 at a time, with the least that HTTP takes."""
    pool = HttpPool(url)

    def one(number: int) -> None:
        body = {
            "model": name, "messages": [{"role": "user", "content": question(start_at + number)}], "max_tokens": tokens,
            "ignore_eos": True, "temperature": 1.0, "logprobs": True, "return_token_ids": True,
        }  # fmt: skip
        reply = pool.request("POST", "/v1/chat/completions", body, timeout=120)
        assert reply.body["usage"]["completion_tokens"] == tokens

    with ThreadPoolExecutor(EPISODES) as threads:
        list(threads.map(one, range(requests)))
    pool.close()


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def run(coroutine: Awaitable[None]) -> None:
    """Run a coroutine in an event loop of its own."""

    async def wrapped() -> None:
        await coroutine

    asyncio.run(wrapped())


def throughput(server: VLLMServer, kind: str, tokens: int) -> list[Row]:
    """Measure one graph at one length of reply, in turn with plain requests."""
    calls = CALLS[kind]
    compiled = graph(server.chat_model(sampling=Sampling(max_tokens=tokens, seed=1)), calls)
    name = server.chat_model().invoke("x").response_metadata["policy"]
    generated = EPISODES * calls * tokens
    ours, theirs = [], []
    for number in range(ROUNDS + 1):
        offset = number * EPISODES
        theirs.append(seconds(partial(plain, server.url, name, tokens, offset, EPISODES * calls)))
        ours.append(seconds(partial(run, episodes(compiled, offset))))
    ours, theirs = ours[1:], theirs[1:]  # the first round warms up both
    share = median(a / b for a, b in zip(theirs, ours, strict=True))
    where = f"{EPISODES} episodes, {kind}, {tokens} tokens"
    barred = tokens == 40
    return [
        Row(f"plain requests, {tokens} tokens, {EPISODES * calls}", generated / median(theirs), "tok/s"),
        Row(where, generated / median(ours), "tok/s"),
        Row(
            f"share of plain, {kind}, {tokens} tokens",
            share,
            "",
            ">= 0.70" if barred else "",
            share >= 0.7 if barred else None,
        ),
    ]


def publishing(server: VLLMServer, folder: Path) -> list[Row]:
    """Measure from `publish` to the end of a reply of one token."""
    adapter = make_adapter(server.base, folder)
    chat = server.chat_model(sampling=Sampling(max_tokens=1))
    times = []
    for _ in range(10):

        def once() -> None:
            published = server.publish(adapter, run="bench")
            assert chat.invoke("hello").response_metadata["policy"] == published.name

        times.append(seconds(once))
    slowest = max(times)
    return [
        Row("publish to first token, p50", percentile(times, 50) * 1_000, "ms"),
        Row("publish to first token, slowest of 10", slowest * 1_000, "ms", "<= 500", slowest <= 0.5),
    ]


def overhead(server: VLLMServer) -> list[Row]:
    """Measure what the chat model adds to a plain request, one call after the other, and in CPU time of this process."""
    chat = server.chat_model(sampling=Sampling(max_tokens=1, seed=1))
    name = chat.invoke("x").response_metadata["policy"]
    pool = HttpPool(server.url)
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 1,
        "logprobs": True,
        "return_token_ids": True,
    }
    ours, theirs, cpu = [], [], []
    for _ in range(60):
        theirs.append(seconds(lambda: pool.request("POST", "/v1/chat/completions", body, timeout=60)))
        began = time.process_time()
        ours.append(seconds(lambda: chat.invoke("x")))
        cpu.append(time.process_time() - began)
    pool.close()
    return [
        Row("chat model over plain request, p50", (percentile(ours, 50) - percentile(theirs, 50)) * 1_000, "ms"),
        Row("CPU time of one call, p50", percentile(cpu, 50) * 1_000, "ms"),
        Row(
            "CPU time of one call of ChatOpenAI, p50",
            percentile(chat_openai(server.url, name), 50) * 1_000,
            "ms",
            detail="drops ids",
        ),
    ]


def chat_openai(url: str, name: str) -> list[float]:
    """Return CPU times of calls through langchain-openai."""
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    chat = ChatOpenAI(
        model=name, base_url=f"{url}/v1", api_key=SecretStr("none"), max_completion_tokens=1, logprobs=True
    )
    out = []
    for _ in range(60):
        began = time.process_time()
        chat.invoke("x")
        out.append(time.process_time() - began)
    return out


def make_adapter(base: Path, folder: Path) -> Path:
    """Write a random adapter of `base`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder / "adapter")
    return folder / "adapter"


def main() -> None:
    """Start a server and measure."""
    given = os.environ.pop("MEMWEAVE_VLLM_ENV", None)
    env = Path(given) if given else default_env()
    ensure_env(env, note)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # 3 M parameters: as large as policies are here.
        texts = [question(number) for number in range(200)]
        base = create_policy(folder / "base", texts, vocab_size=1024, hidden=256, layers=3, heads=4, context=512).path
        with (
            start(base, settings=ServeSettings(max_lora_rank=8), env=env, log=folder / "log", say=note) as process,
            VLLMServer(process.url, base=base, adapter_dir=folder / "served") as server,
        ):
            server.check()
            rows = publishing(server, folder)
            rows += [row for kind in CALLS for tokens in (40, 8) for row in throughput(server, kind, tokens)]
            rows += overhead(server)
    report("serving", "vLLM on CPU behind graphs, base of 3 M parameters with an adapter", rows)


if __name__ == "__main__":
    main()
