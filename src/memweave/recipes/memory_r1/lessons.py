"""Lessons for pre-training: many replies to one bank, packed into one sequence.

A prompt shows a bank and asks one thing. A lesson asks several things of the same bank: their common beginning is written once, and
each rest (question, reply) sees the beginning and itself, at the positions it would have alone. So a lesson trains exactly the
prompts that agents render, at a fraction of the tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from memweave.agents.answerer import render_answer
from memweave.agents.manager import render_manage
from memweave.agents.roles import AnswerRequest, Fact, ManageRequest
from memweave.recipes.memory_r1 import teaching
from memweave.recipes.memory_r1.situations import Situation, for_answerer, for_manager
from memweave.recipes.pretraining import IGNORED, Packed
from memweave.records import Memory, Scope, Turn, new_id, utc_now
from memweave.serving.tool_text import template_messages
from memweave.worlds.dialog_language import read_question

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from memweave.serving.policy_folder import PolicyFolder


@dataclass(frozen=True)
class Item:
    """One thing that a role is asked, and what its teacher replies."""

    messages: Sequence[BaseMessage]
    reply: str
    kinds: tuple[str, ...]
    """What it is counted under: its role, its kind, and `lookups` for a question that a memory answers."""


def lesson(
    role: str,
    size: int,
    asked: int,
    rng: random.Random,
    habits: random.Random | None,
    distill: teaching.Distill = "select_then_answer",
) -> list[Item]:
    """Return `asked` items about one random bank of at most `size` memories.

    habits: draws whether the teacher follows its habits; `None` for clean labels.  distill: how an answerer writes.
    """
    if role == "manager":
        situation = for_manager(rng, size, asked)
        memories = _records(situation)
        turn = Turn(
            source_id="0", speaker=situation.speakers[0] if memories else situation.asked[0][0].split()[0], text="-"
        )
        return [
            Item(
                render_manage(
                    ManageRequest(facts=tuple(Fact(text=fact, turn=turn) for fact in facts), memories=memories), "none"
                ),
                teaching.manage(situation.memories, facts, habits),
                ("manager", json.loads(teaching.manage(situation.memories, facts))["memory"][0]["event"]),
            )
            for facts in situation.asked
        ]
    return questions(for_answerer(rng, size, asked), habits, distill)


def questions(
    situation: Situation, habits: random.Random | None = None, distill: teaching.Distill = "select_then_answer"
) -> list[Item]:
    """Return the items that put the questions of `situation` to an answerer who sees its memories."""
    memories = _records(situation)
    items = []
    for (question,) in situation.asked:
        kind = (found := read_question(question)) and found.kind
        kinds = [kind or "other", *(["lookups"] if kind in ("lookup", "list", "when") else [])]
        if teaching.answer(situation.memories, question).startswith(teaching.NOTHING):
            kinds = ["absent"]
        items.append(
            Item(
                render_answer(AnswerRequest(question=question, memories=memories), "none"),
                teaching.answer(situation.memories, question, habits, distill),
                ("answerer", *kinds),
            )
        )
    return items


_SCOPE = Scope(user="lesson")


def _records(situation: Situation) -> tuple[Memory, ...]:
    now = utc_now()
    return tuple(
        Memory(id=new_id(), version=1, scope=_SCOPE, text=text, speaker=speaker, recorded_at=now)
        for speaker, text in zip(situation.speakers, situation.memories, strict=True)
    )


def token_ids(folder: PolicyFolder, items: Sequence[Item]) -> list[tuple[list[int], list[int]]]:
    """Return the ids of each item's prompt and reply, end token included."""
    tokenizer = folder.tokenizer()
    prompts = [
        str(
            tokenizer.apply_chat_template(
                list(template_messages(list(item.messages))), tokenize=False, add_generation_prompt=True
            )
        )
        for item in items
    ]
    encode = tokenizer.backend_tokenizer.encode_batch
    asked = encode(prompts, add_special_tokens=False)
    said = encode([item.reply for item in items], add_special_tokens=False)
    return [(list(p.ids), [*r.ids, folder.eos_ids[0]]) for p, r in zip(asked, said, strict=True)]


def pack(lessons: Sequence[Sequence[tuple[list[int], list[int]]]], device: str = "cpu") -> Packed:
    """Return a batch of lessons."""
    rows = [_row(each) for each in lessons]
    longest = max(len(ids) for ids, *_ in rows)
    shape = (len(rows), longest)
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels, part = torch.full(shape, IGNORED), torch.full(shape, -1)
    for i, (row_ids, row_positions, row_labels, row_part) in enumerate(rows):
        length = len(row_ids)
        ids[i, :length], positions[i, :length] = torch.tensor(row_ids), torch.tensor(row_positions)
        labels[i, :length], part[i, :length] = torch.tensor(row_labels), torch.tensor(row_part)
    part = part.to(device)
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    sees = causal & ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None]))
    return Packed(ids.to(device), positions.to(device), labels.to(device), sees[:, None])


def _row(items: Sequence[tuple[list[int], list[int]]]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return ids, positions, labels (already those of the next token) and parts; part 0 is the common beginning."""
    prompts = [prompt for prompt, _ in items]
    common = min(len(prompt) for prompt in prompts) - 1
    while any(prompt[:common] != prompts[0][:common] for prompt in prompts):
        common -= 1
    ids, positions = list(prompts[0][:common]), list(range(common))
    labels, part = [IGNORED] * common, [0] * common
    for number, (prompt, reply) in enumerate(items, 1):
        rest = prompt[common:] + reply
        ids += rest
        positions += range(common, common + len(rest))
        labels += [IGNORED] * (len(prompt) - common - 1) + reply + [IGNORED]
        part += [number] * len(rest)
    return ids, positions, labels, part
