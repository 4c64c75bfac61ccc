"""The batch against plain forward passes of the same model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoModelForCausalLM

from memweave.errors import ModelReplyError
from memweave.serving import decoding
from memweave.serving.decoding import Batch, Row, Weights, make_adaptable, sample, uniforms

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(policy: Path) -> Weights:
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    make_adaptable(model)
    return Weights(model)


def row(rng: random.Random, longest: int = 60, tokens: int = 30, temperature: float | None = None) -> Row:
    chosen = rng.choice([0, 0.7, 1.0]) if temperature is None else temperature
    prompt = [rng.randrange(7, 260) for _ in range(rng.randint(1, longest))]
    return Row(prompt, rng.randint(1, tokens), chosen, uniforms(rng.randrange(2**40), tokens), frozenset({1}))


def forward_logprobs(weights: Weights, done: Row) -> list[float]:
    ids = torch.tensor([[*done.prompt, *done.tokens]])
    with torch.no_grad():
        logits = weights.model(ids).logits[0, len(done.prompt) - 1 : -1]
    if done.temperature == 0:
        assert logits.argmax(-1).tolist() == done.tokens
    logprobs = torch.log_softmax(logits / (done.temperature or 1.0), dim=-1)
    found: list[float] = logprobs.gather(1, torch.tensor(done.tokens)[:, None])[:, 0].tolist()
    return found


def test_rows_that_come_and_go_are_as_if_alone(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small cache, so that it grows and moves both ways while rows of all lengths join, end and are dropped."""
    monkeypatch.setattr(decoding, "_COLUMNS", 8)
    rng = random.Random(3)
    batch, everyone, ended, dropped = Batch(weights), [row(rng) for _ in range(80)], [], []
    waiting = list(everyone)
    while waiting or batch.rows:
        count = rng.randint(0, 4) if len(batch.rows) < 12 else 0
        joining, waiting = waiting[:count], waiting[count:]
        ended += batch.join(joining)
        if batch.rows:
            ended += batch.step()
        if batch.rows and rng.random() < 0.1:
            dropped.append(rng.choice(batch.rows))
            batch.leave([dropped[-1]])
    assert len(dropped) > 2
    assert len({id(r) for r in ended}) == len(ended) == 80 - len(dropped)
    for done in ended:
        assert done.logprobs == pytest.approx(forward_logprobs(weights, done), abs=1e-5)
        assert done.finish_reason == ("stop" if done.tokens[-1] == 1 else "length")
        assert 1 not in done.tokens[:-1]
        assert len(done.tokens) <= done.max_tokens


def test_the_cache_stays_small_however_long_it_runs(weights: Weights) -> None:
    rng = random.Random(0)
    batch = Batch(weights)
    for _ in range(600):
        if len(batch.rows) < 3:
            batch.join([row(rng, longest=20, tokens=20)])
        if batch.rows:
            batch.step()
    assert batch.cache.data is not None
    assert batch.cache.data.shape[4] == decoding._COLUMNS


def test_tokens_come_as_often_as_the_distribution_says() -> None:
    logits = torch.log(torch.tensor([0.5, 0.0, 0.2, 0.3]))
    for temperature in (1.0, 0.5):
        rows = [Row([1], 1, temperature, uniforms(seed, 1), frozenset()) for seed in range(4_000)]
        sample(logits.repeat(4_000, 1), rows)
        expected = torch.softmax(logits / temperature, dim=-1)
        counts = torch.bincount(torch.tensor([r.tokens[0] for r in rows]), minlength=4) / 4_000
        assert counts.tolist() == pytest.approx(expected.tolist(), abs=0.03)
        assert counts[1] == 0
        assert all(r.logprobs[0] == pytest.approx(expected[r.tokens[0]].log().item(), abs=1e-6) for r in rows)


def test_uniforms_repeat_and_do_not_touch_other_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert uniforms(2**63 - 1, 100)[:50] == uniforms(2**63 - 1, 50)
    assert uniforms(1, 5) != uniforms(2, 5)
    assert torch.equal(torch.rand(1), expected)
    assert all(0 <= value < 1 for value in uniforms(7, 10_000))


def test_broken_weights_are_named() -> None:
    with pytest.raises(ModelReplyError, match="no numbers"):
        sample(torch.full((1, 4), torch.nan), [Row([1], 1, 1.0, [0.5], frozenset())])
