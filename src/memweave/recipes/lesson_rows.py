"""Lessons as rows of tokens: a conversation, of which the teacher's replies are learned.

The chat template is applied piece by piece, so that a row costs no rendering and a text is tokenised once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memweave.recipes.pretraining import Packed
    from memweave.serving.policy_folder import PolicyFolder

Spans = Sequence[tuple[int, int]]
"""Parts of a text, from one character to before another."""
Said = tuple[str, str]
"""Role and text of a message, as a chat template takes them."""


@dataclass(frozen=True)
class Reply:
    """A teacher's reply and what comes before it."""

    said: tuple[Said, ...]
    reply: str


def token_row(
    folder: PolicyFolder, row: Sequence[Reply], ignored: int, *, also: Callable[[str], Spans] | None = None
) -> tuple[list[int], list[int]]:
    """Return ids and labels (those of the next token) of a row; only replies and their end tokens are learned.

    also: finds what is learned as well in what the policy is told.
    """
    ids: list[int] = []
    learned: list[bool] = []
    replies = {len(each.said): each.reply for each in row}
    said = [*row[-1].said, ("assistant", row[-1].reply)]
    for place, (role, text) in enumerate(said):
        head, body, starts = _pieces(folder.path, folder.version, role, text)
        ids += [*head, *body]
        spans = [] if also is None or place in replies else also(text)
        within = (
            [any(first <= start < end for first, end in spans) for start in starts] if spans else [False] * len(body)
        )
        learned += [False] * len(head) + ([True] * len(body) if place in replies else within)
    labels = [ids[i + 1] if learned[i + 1] else ignored for i in range(len(ids) - 1)] + [ignored]
    return ids, labels


@lru_cache(maxsize=65_536)
def _pieces(path: Path, version: str, role: str, text: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the ids of a message, its role token and its text with the end token (the chat template, piece by piece).

    Last, where in the text each of the text's tokens begins.
    """
    from memweave.serving.policy_folder import END, load_tokenizer

    tokenizer = load_tokenizer(path, version)
    encode = tokenizer.backend_tokenizer.encode
    head = encode(f"<|{role}|>", add_special_tokens=False).ids
    body = encode(f"{text}{END}", add_special_tokens=False)
    return tuple(head), tuple(body.ids), tuple(start for start, _ in body.offsets)


def context_tokens(folder: PolicyFolder, said: Sequence[Said]) -> int:
    """Return how many tokens messages take for a policy."""
    return sum(len(part) for role, text in said for part in _pieces(folder.path, folder.version, role, text)[:2])


def prompt_ids(folder: PolicyFolder, said: Sequence[Said]) -> list[int]:
    """Return the ids of messages and of the beginning of a reply."""
    parts = [part for role, text in said for part in _pieces(folder.path, folder.version, role, text)[:2]]
    return [token for part in [*parts, _pieces(folder.path, folder.version, "assistant", "")[0]] for token in part]


def padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int, device: str) -> Packed:
    """Return rows of ids and labels as one batch, cut at `longest` tokens."""
    import torch

    from memweave.recipes.pretraining import IGNORED, Packed

    shape = (len(rows), min(longest, max(len(ids) for ids, _ in rows)))
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    for i, (row_ids, row_labels) in enumerate(rows):
        ids[i, : len(row_ids)] = torch.tensor(row_ids[: shape[1]])
        labels[i, : len(row_labels)] = torch.tensor(row_labels[: shape[1]])
    positions = torch.arange(shape[1]).expand(shape)
    return Packed(ids.to(device), positions.to(device), labels.to(device), None)


def replies(policy: Path, prompts: Sequence[Sequence[Said]], longest: int) -> list[str]:
    """Return what a policy replies to each prompt, greedy, in up to `longest` tokens; nothing where no room is left for a reply."""
    from memweave.serving.local_server import LocalServer
    from memweave.tracing.records import Sampling

    with LocalServer(policy) as server:
        sampling = Sampling(temperature=0.0, max_tokens=longest)
        room = server.folder.context_length - longest
        asked = [prompt_ids(server.folder, said) for said in prompts]
        waiting = [server.submit(ids, sampling) if len(ids) <= room else None for ids in asked]
        decode: Callable[..., object] = server.folder.tokenizer().decode
        done = [None if each is None else each.result().token_ids for each in waiting]
        return ["" if ids is None else str(decode(ids, skip_special_tokens=True)) for ids in done]
