"""`LocalServer`: tokens per second alone and with many callers, and what continuous batching gives over waves.

Replies are 40 tokens long to 80 tokens of prompt, each caller waiting for its reply before it asks again. The comparison
with waves uses replies of 8 to 64 tokens: in a wave, all replies wait for the longest.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path

from common import Row, percentile, report

from memweave.serving import LocalServer, create_policy
from memweave.serving.local_server import Reply
from memweave.tracing.records import Sampling

POLICIES = {
    "1 M": {"hidden": 128, "layers": 4, "heads": 4, "vocab_size": 512},
    "3 M": {"hidden": 192, "layers": 5, "heads": 6, "vocab_size": 1024},
}
PROMPT, REPLY, SECONDS = 80, 40, 2.0
TEXT = [f"{a} {b} {c}" for a in ("alice", "bob", "carol") for b in ("lives in", "moved to") for c in ("paris", "rome")]


def prompt(rng: random.Random) -> list[int]:
    """Return made-up token ids."""
    return [rng.randrange(10, 250) for _ in range(PROMPT)]


async def saturate(server: LocalServer, callers: int) -> float:
    """Return tokens per second with so many callers at once."""
    rng = random.Random(0)
    tokens, stop = 0, time.perf_counter() + SECONDS

    async def caller() -> None:
        nonlocal tokens
        while time.perf_counter() < stop:
            future = server.submit(prompt(rng), Sampling(temperature=1.0, max_tokens=REPLY), ignore_eos=True)
            reply = await asyncio.wrap_future(future)
            tokens += len(reply.token_ids)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return tokens / (time.perf_counter() - start)


def mixed(server: LocalServer, waves: bool, count: int = 192, wide: int = 64) -> float:
    """Return tokens per second for replies of 8 to 64 tokens, in waves of 64 or joining as there is room."""
    rng = random.Random(1)
    jobs = [(prompt(rng), rng.randint(8, 64)) for _ in range(count)]
    replies: list[Reply] = []
    start = time.perf_counter()
    for at in range(0, count, wide if waves else count):
        futures = [
            server.submit(ids, Sampling(max_tokens=length), ignore_eos=True)
            for ids, length in jobs[at : at + (wide if waves else count)]
        ]
        replies += [future.result() for future in futures]
    return sum(len(reply.token_ids) for reply in replies) / (time.perf_counter() - start)


async def lag(server: LocalServer) -> list[float]:
    """Return how late, in milliseconds, the event loop was while 200 chat calls ran."""
    model = server.chat_model(sampling=Sampling(temperature=1.0, max_tokens=REPLY, seed=1))
    late: list[float] = []
    running = asyncio.gather(*(model.ainvoke(f"question {number}") for number in range(200)))
    while not running.done():
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append((time.perf_counter() - start - 0.001) * 1_000)
    await running
    return late


def overhead(server: LocalServer) -> float:
    """Return milliseconds that the chat model costs per call beside sampling: rendering, hand-over, the message."""
    model = server.chat_model(sampling=Sampling(temperature=0.0, max_tokens=1))
    ids = model.invoke("Where does Alice live?").response_metadata["prompt_token_ids"]
    chat, bare = [], []
    for _ in range(200):
        start = time.perf_counter()
        model.invoke("Where does Alice live?")
        chat.append(time.perf_counter() - start)
        start = time.perf_counter()
        server.submit(ids, Sampling(temperature=0.0, max_tokens=1)).result()
        bare.append(time.perf_counter() - start)
    return (percentile(chat, 50) - percentile(bare, 50)) * 1_000


def main() -> None:
    """Measure and report."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in POLICIES.items():
            policy = create_policy(Path(folder, name.replace(" ", "")), TEXT, **sizes)
            with LocalServer(policy.path) as server:
                asyncio.run(saturate(server, 8))  # warm up
                for callers in (1, 16, 64):
                    speed = asyncio.run(saturate(server, callers))
                    rows.append(Row(f"{name} parameters, {callers} callers", speed, "tok/s"))
                for waves in (False, True):
                    what = "waves of 64" if waves else "joining and leaving"
                    rows.append(Row(f"{name}, replies of 8-64 tokens, {what}", mixed(server, waves), "tok/s"))
                if name == "1 M":
                    late = percentile(asyncio.run(lag(server)), 99)
                    rows.append(Row("event loop, p99 late during 200 calls", late, "ms", "< 50", late < 50))
                    rows.append(Row("chat model per call, beside sampling", overhead(server), "ms"))
    report("local", "LocalServer: policies in this process", rows)


if __name__ == "__main__":
    main()
