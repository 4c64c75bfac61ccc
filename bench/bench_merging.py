"""Prefix merging: forward tokens, time and gradients of 20-turn append-only episodes, merged against a row per turn.

    python bench/bench_merging.py [--episodes 2]

A Qwen2 model of 0.4 M parameters in float32; 100 given and 40 sampled tokens a turn.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from bench_rows import growing
from common import Row as Measured
from common import report
from transformers import Qwen2Config, Qwen2ForCausalLM

from memweave.tracing import Trace
from memweave.trainers.rows import assign, build_rows

VOCABULARY = 512


def gradient(traces: list[Trace], merge: bool) -> tuple[torch.Tensor, int, float]:
    """Return the gradient of mean(advantage * log-probability), the tokens forwarded, and the seconds."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    advantages = {(t.id, g.index): 0.9 - 0.1 * g.index for t in traces for g in t.generations}
    rows = assign(build_rows(traces, policy_version="v1", temperature=1.0, merge=merge).rows, advantages)
    trained = sum(int(row.mask.sum()) for row in rows)
    start = time.perf_counter()
    for row in rows:
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        weight = torch.from_numpy(np.where(row.mask, row.advantages, 0)[1:])
        ((logps * weight).sum() / trained).backward()
    seconds = time.perf_counter() - start
    grads = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(grads), sum(len(row.ids) for row in rows), seconds


def main() -> None:
    """Forward and backward both ways, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=2)
    args = parser.parse_args()
    traces = growing(args.episodes, turns=20, vocabulary=VOCABULARY)
    merged, tokens, seconds = gradient(traces, merge=True)
    single, unmerged_tokens, unmerged_seconds = gradient(traces, merge=False)
    size = f"gradients up to {float(single.abs().max()):.3g}"
    share, off = tokens / unmerged_tokens, float((merged - single).abs().max())
    report(
        "merging",
        f"{args.episodes} episodes of 20 append-only turns, 100 given and 40 sampled tokens each, float32",
        [
            Measured("forward tokens, merged / unmerged", share, "", "<= 0.2", share <= 0.2),
            Measured("largest difference of gradients", off, "", "<= 1e-5", off <= 1e-5, size),
            Measured("forward and backward, merged / unmerged", seconds / unmerged_seconds, "", detail=f"{seconds:.2f} s"),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
