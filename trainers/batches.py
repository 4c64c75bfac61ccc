"""Rows of traces as tensors: cut into the steps of a generation batch, dealt to processes, padded with rows that train nothing.

A batch is a dict of tensors with B rows, padded at the right. `input_ids` is (B, L); everything else is (B, L - 1), where
position t belongs to token t + 1, the one that the model predicts there:

    mask           bool, true where a sampled token trains
    sampled_logps  float32, log-probability under the distribution that it was sampled from; 0 elsewhere
    advantages     float32, credit; 0 elsewhere
    step_ids       int64, number of the generation within the row
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import numpy as np
import torch
from torch import Tensor

from memweave.trainers.rows import Row

Batch = dict[str, Tensor]

SHORTEST = 2
"""Tokens of a row that trains nothing: one prediction."""


def empty_row() -> Row:
    """Return a row without a token that trains: it makes counts equal and changes neither loss nor gradient."""
    return Row(
        ids=np.zeros(SHORTEST, np.int32),
        mask=np.zeros(SHORTEST, np.bool_),
        logprobs=np.zeros(SHORTEST, np.float32),
        advantages=np.zeros(SHORTEST, np.float32),
        spans=[],
        trace=UUID(int=0),
        group="",
        actor="",
        policy_version="",
        temperature=1.0,
    )


def deal(rows: Sequence[Row], steps: int, processes: int, seed: Sequence[int]) -> list[list[list[Row]]]:
    """Return for each step and process its rows: every row once, equal counts for the processes of a step.

    Which rows share a step depends on `seed` only, not on the number of processes. Within a step, rows go from long to
    short, so that rows of similar length are forwarded together and processes get about equally many tokens.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    dealt = []
    for part in np.array_split(order, steps):
        chosen = sorted((rows[i] for i in part), key=lambda row: -len(row.ids))
        short = -len(chosen) % processes if chosen else processes
        chosen += [empty_row() for _ in range(short)]
        dealt.append([chosen[process::processes] for process in range(processes)])
    return dealt


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Return `rows` as a batch."""
    count, length = len(rows), max(len(row.ids) for row in rows)
    input_ids = np.full((count, length), pad_id, np.int64)
    mask = np.zeros((count, length - 1), np.bool_)
    logps = np.zeros((count, length - 1), np.float32)
    advantages = np.zeros((count, length - 1), np.float32)
    step_ids = np.zeros((count, length - 1), np.int64)
    for i, row in enumerate(rows):
        end = len(row.ids)
        input_ids[i, :end] = row.ids
        mask[i, : end - 1] = row.mask[1:]
        logps[i, : end - 1] = np.where(row.mask, row.logprobs, 0)[1:]
        advantages[i, : end - 1] = np.where(row.mask, row.advantages, 0)[1:]
        for number, span in enumerate(row.spans):
            step_ids[i, max(span.start - 1, 0) : span.stop - 1] = number
    arrays = {
        "input_ids": input_ids,
        "mask": mask,
        "sampled_logps": logps,
        "advantages": advantages,
        "step_ids": step_ids,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def pieces(batch: Batch, rows: int) -> list[Batch]:
    """Return `batch` in pieces of at most `rows` rows, each cut to its own longest row.

    The end of a row is where its last training token lies: nothing after it can change a loss.
    """
    mask = batch["mask"]
    width = mask.shape[1]
    ends = torch.where(mask.any(dim=1), width - mask.int().flip(1).argmax(dim=1), 1)
    cut = []
    for start in range(0, mask.shape[0], rows):
        part = slice(start, start + rows)
        end = int(ends[part].max())
        piece = {}
        for name, tensor in batch.items():
            if tensor.dim() < 2:
                piece[name] = tensor[part] if tensor.dim() else tensor
            elif tensor.shape[1] == 1:
                piece[name] = tensor[part]  # one value per row
            else:
                piece[name] = tensor[part, : end + 1 if tensor.shape[1] == width + 1 else end]
        cut.append(piece)
    return cut
