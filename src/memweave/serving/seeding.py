"""Seeds of single model calls: what an episode samples must not depend on what else runs beside it.

A server that draws from one random stream gives an episode other tokens whenever another episode finishes earlier. So
each call has a seed of its own, made from the run's seed and from where in which episode the call is made.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

SEED_BITS: Final = 63

_RANDOM_ID: Final = re.compile(r":?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_WHERE: Final = ("memweave_episode", "memweave_sample", "langgraph_step", "langgraph_path")
"""Keys of the run's metadata that say where a call is made. `langgraph_path` tells parallel `Send`s to one node apart."""


def call_seed(seed: int, metadata: Mapping[str, object] | None, prompt: str | Sequence[int]) -> int:
    """Return the seed of one call, in [0, 2^63).

    seed: of the run (`Sampling.seed`).  metadata: the call's run metadata (`memweave_episode` from rollouts, `langgraph_*`
    from LangGraph).  prompt: its text or token ids.

    Equal calls get equal seeds: a node that wants several samples of one prompt puts a number into the metadata as
    `memweave_sample`. LangGraph writes a fresh task id into every namespace; it is left out. Under `memweave_pair` the prompt
    is left out too: two episodes that differ in their prompt draw the same random numbers, step for step, so that their difference is
    less noise (trainable graph memory, B12).
    """
    given = metadata or {}
    where = [_stable(given.get(key)) for key in _WHERE]
    where.append(checkpoint_place(str(given.get("langgraph_checkpoint_ns") or "")))
    digest = hashlib.blake2b(json.dumps([seed, *where]).encode(), digest_size=8)
    if (pair := given.get("memweave_pair")) is not None:
        digest.update(b"\0pair\0" + str(pair).encode("utf-8", "surrogatepass"))
    elif isinstance(prompt, str):
        digest.update(b"\0text\0" + prompt.encode("utf-8", "surrogatepass"))
    else:
        digest.update(b"\0ids\0" + ",".join(map(str, prompt)).encode())
    return int.from_bytes(digest.digest(), "big") >> (64 - SEED_BITS)


def checkpoint_place(namespace: str) -> str:
    """Return a checkpoint namespace without its random ids: `outer:7d2...|inner:91c...` is `outer|inner`."""
    return _RANDOM_ID.sub("", namespace) if "-" in namespace else namespace


def _stable(value: object) -> object:
    """Return `value` as JSON can write it, without random ids; paths of functional tasks hold some."""
    if isinstance(value, str):
        return checkpoint_place(value)
    if value is None or isinstance(value, int | float | bool):
        return value
    if isinstance(value, Sequence):
        return [_stable(item) for item in value]
    return str(value)
