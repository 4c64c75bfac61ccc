"""First weights that can already copy: attention heads that see the token before, and heads that look for a match.

A small model that is trained from random weights spends most of its lessons on discovering how to copy (previous-token heads and, on
top of them, induction heads: Olsson et al. 2022, "In-context learning and induction heads"). Here the first ones are written down
and the second ones nearly so; everything is trained afterwards. Measured in docs/log.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from memweave.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OFFSETS: Final = (1, 2)
"""Heads 0 and 1 of layer 0 see the token that many places before."""
PAIRS: Final = 4
"""Rotary pairs, the fastest ones, by which these heads know the distance."""
SHARPNESS: Final = 6.0
"""Size of their query and key biases; the score one place off is exp(-4.4) of the best."""
WRITTEN: Final = 0.15
"""Scale of what they write, next to embeddings of deviation 0.1."""
MATCHING: Final = 2.0
"""Scale of the queries and keys of the heads that look for a match."""
DEVIATIONS: Final = {"embed_tokens": 0.1, "o_proj": 0.01, "down_proj": 0.01}
"""Standard deviations of random weights; those that write are small, so that embeddings are not drowned."""
OTHERS: Final = 0.06


def write_first_weights(model: PreTrainedModel, seed: int) -> None:
    """Give `model` (Qwen2, at least 3 layers and 2 heads) random weights, and heads that can nearly copy. In place.

    Raises `InputError` for a model that is too small for the heads.
    """
    backbone: Any = model.base_model
    heads, hidden = model.config.num_attention_heads, model.config.hidden_size
    size = hidden // heads
    if len(backbone.layers) < 3 or heads < 2 or 2 * size > hidden:
        raise InputError(
            f"{len(backbone.layers)} layers and {heads} heads are too few for copying; take 3 and 2 at least"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, DEVIATIONS.get(name.split(".")[-2], OTHERS), generator=generator)
        seen, (before, earlier) = _projection(size, hidden, generator), _two_projections(size, hidden, generator)
        first = backbone.layers[0].self_attn
        frequencies = backbone.rotary_emb.inv_freq
        for head, (offset, space) in enumerate(zip(OFFSETS, (before, earlier), strict=True)):
            _look_back(first, head, size, offset, frequencies)
            _move(first, head, size, seen, WRITTEN * space)
        for layer, head, query, key in ((1, 0, seen, before), (1, 1, before, earlier), (2, 0, seen, before)):
            attention = backbone.layers[layer].self_attn
            rows = slice(head * size, (head + 1) * size)
            attention.q_proj.weight[rows], attention.k_proj.weight[rows] = MATCHING * query, MATCHING * key
            _move(attention, head, size, seen, 2 * WRITTEN * seen)


def _look_back(attention: Any, head: int, size: int, offset: int, frequencies: Tensor) -> None:
    """Make `head` attend to the token `offset` places before, by biases that rotary positions turn against each other."""
    rows = slice(head * size, (head + 1) * size)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[rows] *= 0.1
        projection.bias[rows] = 0
    angles = frequencies[:PAIRS] * offset
    start = head * size
    attention.q_proj.bias[start : start + PAIRS] = SHARPNESS * torch.cos(angles)
    attention.q_proj.bias[start + size // 2 : start + size // 2 + PAIRS] = -SHARPNESS * torch.sin(angles)
    attention.k_proj.bias[start : start + PAIRS] = SHARPNESS


def _move(attention: Any, head: int, size: int, read: Tensor, write: Tensor) -> None:
    """Make `head` read with `read` (size, hidden) and write into the directions of `write` (size, hidden)."""
    columns = slice(head * size, (head + 1) * size)
    attention.v_proj.weight[columns] = read
    attention.o_proj.weight[:, columns] = write.T


def _projection(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return (rows, columns) orthonormal rows at random."""
    orthonormal: Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=generator)).Q
    return orthonormal.T.contiguous()


def _two_projections(rows: int, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two projections whose rows are orthogonal to each other's too."""
    both = _projection(2 * rows, columns, generator)
    return both[:rows], both[rows:]
