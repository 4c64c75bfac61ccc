"""Merged rows have the gradients of unmerged ones, for fewer tokens, on a real model."""

from __future__ import annotations

import numpy as np
import pytest

from memweave.tracing import Trace
from memweave.trainers.rows import Row, assign, build_rows
from tests.trainers.made_up import generation, trace

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def growing(turns: int, given: int, sampled: int) -> Trace:
    """Return an episode whose prompts repeat everything before, with two agents' replies in one context."""
    rng = np.random.default_rng(0)
    said: list[int] = []
    made = []
    for index in range(turns):
        prompt = said + rng.integers(0, 50, given).tolist()
        reply = rng.integers(0, 50, sampled).tolist()
        made.append(generation(index, prompt, reply, role="ab"[index % 2]))
        said = prompt + reply
    return trace(*made)


def gradient(rows: list[Row]) -> tuple[torch.Tensor, int]:
    """Return the gradient of sum(advantage * log-probability) over the trained tokens, and the tokens forwarded."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).double().eval()
    tokens = 0
    for row in rows:
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        weight = torch.from_numpy(np.where(row.mask, row.advantages, 0)[1:].astype(np.float64))
        (logps * weight).sum().backward()
        tokens += len(row.ids)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), tokens


def test_merging_spares_tokens_and_changes_no_gradient() -> None:
    episode = growing(turns=6, given=5, sampled=3)
    advantages = {(episode.id, index): 0.5 - 0.3 * index for index in range(6)}
    grads, tokens, reports = [], [], []
    for merge in (True, False):
        made = build_rows([episode], policy_version="v1", temperature=1.0, merge=merge)
        grad, forwarded = gradient(assign(made.rows, advantages))
        grads.append(grad)
        tokens.append(forwarded)
        reports.append(made.report)
    assert tokens == [6 * 8, sum(8 * turn for turn in range(1, 7))]
    assert (reports[0].tokens, reports[0].tokens_saved) == (tokens[0], tokens[1] - tokens[0])
    assert grads[0].abs().max() > 0.1
    assert (grads[0] - grads[1]).abs().max() < 1e-6  # Qwen2 computes norms and positions in float32
