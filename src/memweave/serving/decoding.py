"""Sampling from transformers models: a batch of replies that grow together, one token per step.

Rows join and leave between steps (continuous batching). All rows write their next key and value into one column of the
cache, so a row that joins is placed with its prompt ending before that column (left padding), and a row that leaves is
replaced by the last one; positions are each row's own. Each row draws from uniform numbers of its own, so what it samples
depends on the others only through float noise.

This module knows token ids, not text, roles or threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedModel

from memweave.errors import ModelReplyError

PREFILL_TOKENS: Final = 16_384
"""Most prompt tokens (padding included) that are read in one forward pass, unless one prompt is longer."""
_COLUMNS: Final = 256
"""Columns that a new cache has room for."""


class AdaptedLinear(nn.Linear):
    """A linear layer whose weight can be exchanged, or have a LoRA added, for the next forward pass."""

    merged: Tensor | None = None
    """The weight with an adapter added: no cost per pass, exact in float32."""
    pair: tuple[Tensor, Tensor, float] | None = None
    """A (rank, in), B (out, rank) and scale: used in half precision, where adding would round the adapter away."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out)."""
        out = functional.linear(input, self.weight if self.merged is None else self.merged, self.bias)
        if self.pair is not None:
            a, b, scale = self.pair
            out = out + functional.linear(functional.linear(input, a), b) * scale
        return out


def make_adaptable(model: PreTrainedModel) -> None:
    """Turn every linear layer of `model` into an `AdaptedLinear`, in place; names and weights stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = AdaptedLinear


@dataclass(eq=False)
class Weights:
    """What answers: a model, and what is exchanged in it while it does."""

    model: PreTrainedModel
    merged: dict[str, Tensor] = field(default_factory=dict)
    """By name of the linear layer."""
    pairs: dict[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict)

    def activate(self) -> None:
        """Make the next forward pass of the model use these weights and no others."""
        if getattr(self.model, "memweave_active", None) is self:
            return
        for name, module in self.model.named_modules():
            if isinstance(module, AdaptedLinear):
                module.merged, module.pair = self.merged.get(name), self.pairs.get(name)
        object.__setattr__(self.model, "memweave_active", self)


@dataclass(eq=False)
class Row:
    """One reply that is being sampled."""

    prompt: Sequence[int]
    max_tokens: int
    temperature: float
    """0 is greedy."""
    uniforms: Sequence[float]
    """Numbers in [0, 1), one per token; unused when greedy."""
    stop_ids: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    """`stop` or `length`; `None` while it grows."""
    start: int = 0
    """First column of the cache that is its own."""

    def add(self, token: int, logprob: float) -> None:
        """Take a sampled token. Raises `ModelReplyError` when its log-probability is no number."""
        if logprob != logprob or logprob == float("-inf"):
            raise ModelReplyError(
                "The policy gives log-probabilities that are no numbers (NaN): its weights are broken"
            )
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"


class SlotCache(Cache):
    """Keys and values of a batch in one tensor (layer, key or value, row, head, column, head size), grown as needed."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.data: Tensor | None = None
        self.rows = 0
        self.low = 0
        """First column that any row owns."""
        self.column = 0
        """Next column to be written."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values (row, head, 1, size) of this step; return those of all columns."""
        assert self.data is not None
        layer = self.data[layer_idx, :, : self.rows, :, self.low : self.column + 1]
        layer[0, :, :, -1:] = key_states
        layer[1, :, :, -1:] = value_states
        return layer[0], layer[1]

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Return how many columns are in use."""
        return self.column - self.low

    def append(self, prefilled: DynamicCache) -> None:
        """Add rows whose prompts, padded on the left, end at the same column."""
        layers = [cast("tuple[Tensor, Tensor]", (layer.keys, layer.values)) for layer in prefilled.layers]  # type: ignore[union-attr]  # filled
        count, heads, length, size = layers[0][0].shape
        if self.rows == 0:
            self.low = self.column = 0
        if self.column < length:
            self._move(length - self.column)
        self.low = min(self.low, self.column - length)
        self._reserve(self.rows + count, self.column + 1, layers[0][0], len(layers), heads, size)
        assert self.data is not None
        for target, (keys, values) in zip(self.data, layers, strict=True):
            target[0, self.rows : self.rows + count, :, self.column - length : self.column] = keys
            target[1, self.rows : self.rows + count, :, self.column - length : self.column] = values
        self.rows += count

    def remove(self, row: int) -> None:
        """Drop `row`; the last row takes its place."""
        self.rows -= 1
        if row != self.rows and self.data is not None:
            columns = slice(self.low, self.column)
            self.data[:, :, row, :, columns] = self.data[:, :, self.rows, :, columns]

    def make_room(self) -> int:
        """Make sure that there is a next column; return by how many columns the rows moved to the left."""
        if self.data is None or self.column < self.data.shape[4]:
            return 0
        if self.low >= self.column // 4:
            moved = self.low
            self._move(-moved)
            return moved
        self._resize(self.data.shape[2], self.data.shape[4] * 2)
        return 0

    def _move(self, by: int) -> None:
        """Shift all rows by some columns to the right."""
        if self.data is not None and self.rows:
            if self.column + by >= self.data.shape[4]:
                self._resize(self.data.shape[2], self.column + by + _COLUMNS)
            kept = self.data[:, :, : self.rows, :, self.low : self.column].clone()
            self.data[:, :, : self.rows, :, self.low + by : self.column + by] = kept
        self.low += by
        self.column += by

    def _reserve(self, rows: int, columns: int, like: Tensor, layers: int, heads: int, size: int) -> None:
        if self.data is None:
            shape = (layers, 2, max(rows, 4), heads, max(columns, _COLUMNS), size)
            self.data = torch.zeros(shape, dtype=like.dtype, device=like.device)
        elif rows > self.data.shape[2] or columns > self.data.shape[4]:
            have = self.data.shape
            # Every growth copies all that there is, so it grows by a good deal.
            self._resize(
                max(rows, have[2] if rows <= have[2] else 2 * have[2]),
                have[4] if columns <= have[4] else columns + _COLUMNS,
            )

    def _resize(self, rows: int, columns: int) -> None:
        assert self.data is not None
        old = self.data
        self.data = old.new_zeros((*old.shape[:2], rows, old.shape[3], columns, old.shape[5]))
        self.data[:, :, : old.shape[2], :, : old.shape[4]] = old


class Batch:
    """The rows that grow with the same weights. Not safe under threads: one thread owns it.

    cache: one that an earlier batch of the same model is done with; it has its memory already.
    """

    def __init__(self, weights: Weights, cache: SlotCache | None = None) -> None:
        self.weights = weights
        self.rows: list[Row] = []
        self.cache = cache or SlotCache()

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> list[Row]:
        """Read the prompts of new rows and sample their first token; return the rows that ended with it."""
        self.weights.activate()
        ended: list[Row] = []
        for group in _prefill_groups(rows):
            ended += self._prefill(group)
        return ended

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Sample one token for every row; return the rows that ended with it."""
        self.weights.activate()
        if moved := self.cache.make_room():
            for row in self.rows:
                row.start -= moved
        cache, device = self.cache, self.weights.model.device
        starts = [row.start for row in self.rows]
        cache.low = min(starts)
        numbers = torch.tensor(
            [[row.tokens[-1] for row in self.rows], [cache.column - start for start in starts], starts], device=device
        )
        columns = torch.arange(cache.low, cache.column + 1, device=device)
        mask = (columns >= numbers[2][:, None])[:, None, None, :]  # (row, 1, 1, column): what a row may look at
        logits = self._forward(numbers[0][:, None], mask, numbers[1][:, None], cache)
        cache.column += 1
        sample(logits, self.rows)
        return self._drop(row for row in self.rows if row.finish_reason is not None)

    @torch.inference_mode()
    def leave(self, rows: Iterable[Row]) -> None:
        """Drop rows that nobody waits for."""
        self._drop(rows)

    def _prefill(self, rows: Sequence[Row]) -> list[Row]:
        device = self.weights.model.device
        longest = max(len(row.prompt) for row in rows)
        ids = torch.tensor([[*[0] * (longest - len(row.prompt)), *row.prompt] for row in rows], device=device)
        pads = torch.tensor([longest - len(row.prompt) for row in rows], device=device)
        columns = torch.arange(longest, device=device)
        mask = (columns >= pads[:, None]).long()  # (row, column): 0 on padding
        positions = (columns - pads[:, None]).clamp(min=0)
        prefilled = DynamicCache()
        logits = self._forward(ids, mask, positions, prefilled)
        before = self.cache.column if self.rows else 0
        self.cache.append(prefilled)
        for row in self.rows:
            row.start += self.cache.column - before  # moved to the right when a longer prompt came
        for row in rows:
            row.start = self.cache.column - len(row.prompt)
        self.rows += rows
        sample(logits, rows)
        return self._drop(row for row in rows if row.finish_reason is not None)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Return the logits after the last token of each row, (row, vocabulary)."""
        out = self.weights.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def _drop(self, rows: Iterable[Row]) -> list[Row]:
        dropped = list(rows)
        for row in dropped:
            at = self.rows.index(row)
            self.cache.remove(at)
            last = self.rows.pop()
            if last is not row:
                self.rows[at] = last
        return dropped


def sample(logits: Tensor, rows: Sequence[Row]) -> None:
    """Give each row its next token and the log-probability (nat, float32) with which it was drawn.

    The distribution is softmax(logits / temperature). A greedy row takes the likeliest token; its log-probability is that
    at temperature 1.
    """
    temperatures = [row.temperature for row in rows]
    drawn = any(temperatures)
    scaled = logits.float()
    if any(value not in (0, 1) for value in temperatures):
        scaled = scaled / torch.tensor([value or 1.0 for value in temperatures], device=logits.device)[:, None]
    logprobs = torch.log_softmax(scaled, dim=-1)
    tokens = logprobs.argmax(dim=-1, keepdim=True)
    if drawn:
        uniforms = [row.uniforms[len(row.tokens)] if row.temperature else 0.0 for row in rows]
        sums = logprobs.double().exp().cumsum(dim=-1)
        targets = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]
        found = torch.searchsorted(sums, targets, right=True).clamp(max=logits.shape[-1] - 1)
        greedy = torch.tensor([not value for value in temperatures], device=logits.device)[:, None]
        tokens = torch.where(greedy, tokens, found)
    chosen = logprobs.gather(1, tokens)
    for row, token, logprob in zip(rows, tokens[:, 0].tolist(), chosen[:, 0].tolist(), strict=True):
        row.add(token, logprob)


def uniforms(seed: int, count: int) -> list[float]:
    """Return `count` numbers in [0, 1), the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    numbers: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return numbers


def _prefill_groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows in groups of similar length: padding at most doubles the work, and no group is too large."""
    groups: list[list[Row]] = []
    real = 0
    for row in sorted(rows, key=lambda row: len(row.prompt)):
        padded = (len(groups[-1]) + 1) * len(row.prompt) if groups else 0
        if not groups or padded > PREFILL_TOKENS or padded > 2 * (real + len(row.prompt)):
            groups.append([])
            real = 0
        groups[-1].append(row)
        real += len(row.prompt)
    return groups
