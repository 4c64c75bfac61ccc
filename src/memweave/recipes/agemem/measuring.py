"""What a policy can do on MemHop before it is trained on rewards: the gate. Fresh episodes, clean labels, greedy replies."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from memweave.agents.memory_tools import RETRIEVE, UPDATE
from memweave.agents.tool_protocol import read_text_turn
from memweave.recipes.agemem.lessons import FULL
from memweave.recipes.agemem.simulating import Simulator, Turn, teacher
from memweave.recipes.agemem.teaching import CLEAN, NOTHING, Said
from memweave.tracing.records import Sampling
from memweave.worlds.memhop import MemHop

LONGEST: Final = 96
"""Most tokens of a turn."""


def measure(policy: Path, seed: int, *, episodes: int = 150) -> dict[str, Any]:
    """Return how often a policy does what a perfect teacher does after the same messages: `lookups`, `stores`, by kind, and `asked`.

    lookups: updates, searches for a second fact, and answers that rest on a memory.
    """
    turns = [turn for turn in _turns(seed, episodes) if turn.stage != 2]
    right: dict[str, list[bool]] = {}
    for turn, said in zip(turns, replies(policy, [turn.said for turn in turns]), strict=True):
        for kind in _kinds(turn.reply):
            right.setdefault(kind, []).append(_same(turn.reply, said))
    share = {kind: sum(found) / len(found) for kind, found in sorted(right.items())}
    return {
        "lookups": share["lookups"],
        "stores": share.get("store", 0.0),
        "by_kind": share,
        "asked": len(turns),
    }


def replies(policy: Path, prompts: Sequence[Sequence[Said]]) -> list[str]:
    """Return what a policy replies to each prompt, greedy."""
    from memweave.recipes.agemem.lessons import prompt_ids
    from memweave.serving.local_server import LocalServer

    with LocalServer(policy) as server:
        sampling = Sampling(temperature=0.0, max_tokens=LONGEST)
        waiting = [server.submit(prompt_ids(server.folder, said), sampling) for said in prompts]
        decode: Callable[..., object] = server.folder.tokenizer().decode
        return [str(decode(future.result().token_ids, skip_special_tokens=True)) for future in waiting]


def _turns(seed: int, episodes: int) -> list[Turn]:
    rng = random.Random(f"memhop-gate:{seed}")
    world = MemHop()
    found: list[Turn] = []
    for i in range(episodes):
        found += Simulator(teacher(CLEAN, rng), FULL).play(world.draw(rng, f"gate-{i}")).turns
    return found


def _kinds(reply: str) -> list[str]:
    turn = read_text_turn(reply)
    names = {call["name"] for call in turn.calls}
    if UPDATE in names:
        return ["update", "lookups"]
    if RETRIEVE in names:
        return ["search again", "lookups"] if turn.think else ["search"]
    if names:
        return ["store"]
    if turn.think and NOTHING not in turn.think:
        return ["answer", "lookups"]
    return ["guess"] if turn.think else ["idle"]


def _same(wanted: str, said: str) -> bool:
    one, other = read_text_turn(wanted), read_text_turn(said)
    calls = [(c["name"], c["args"]) for c in one.calls], [(c["name"], c["args"]) for c in other.calls]
    return calls[0] == calls[1] and one.answer == other.answer
