"""The Q-function of case retrieval: its loss by hand, the same numbers when it is served, and learning online."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from memweave.errors import FormatError, SettingsError
from memweave.memory_stores.case_retrieval import Candidates, CaseQuery, ECKernelSoftmax, NeuralQTopK
from memweave.records import ReplayRow
from memweave.trainers.case_kernel import EpisodicControl
from memweave.trainers.case_q import CaseQSettings, CaseQTrainer, OnlineCaseQ, Rows, auc, bce, positive_weight

D = 6
FAST = CaseQSettings(hidden=16, update_every=4, minibatches=4, learning_rate=1e-2)


def some_rows(number: int, seed: int = 0) -> Rows:
    """Return rows in which a case helps when its first number has the sign of the query's."""
    rng = np.random.default_rng(seed)
    queries, cases = (rng.normal(size=(number, D)).astype(np.float32) for _ in range(2))
    return Rows(queries, cases, rng.random(number).round(), (queries[:, 0] * cases[:, 0] > 0).astype(np.float64))


def rows_of(reward: float, number: int = 1) -> list[ReplayRow]:
    return [ReplayRow(query="q", case_id=UUID(int=i), reward=reward) for i in range(number)]


def observe(learner: OnlineCaseQ, number: int, seed: int = 0, *, shown: int = 2) -> None:
    made = some_rows(number * shown, seed)
    for i in range(0, number * shown, shown):
        part = made.take(np.arange(i, i + shown))
        learner.observe(rows_of(float(part.rewards[0]), shown), part.queries[0], part.cases, part.case_rewards)


def test_the_loss_of_equation_15_and_its_gradient_of_equation_26_by_hand() -> None:
    odds = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    q = [1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(1.2))]
    loss = bce(odds, rewards)
    assert loss.item() == pytest.approx((-math.log(q[0]) - math.log(1 - q[1])) / 2)
    loss.backward()  # type: ignore[no-untyped-call]
    # dL/dQ = (Q - r) / (Q (1 - Q)), times dQ/d(odds) = Q (1 - Q), over two rows.
    assert odds.grad is not None
    assert odds.grad.tolist() == pytest.approx([(q[0] - 1) / 2, (q[1] - 0) / 2])
    assert bce(odds, rewards, 3.0).item() == pytest.approx((-3 * math.log(q[0]) - math.log(1 - q[1])) / 2)
    assert positive_weight(np.array([1.0, 0, 0, 0])) == 3.0
    assert positive_weight(np.array([1.0, 1, 0])) == positive_weight(np.zeros(3)) == 1.0


@pytest.mark.parametrize("label_input", [False, True])
def test_what_is_served_is_what_was_trained(label_input: bool) -> None:
    trainer = CaseQTrainer(D, "e", replace(FAST, label_input=label_input))
    rows = some_rows(40)
    trainer.fit(rows, [np.arange(32)] * 5)
    head = trainer.exported()
    assert (head.encoder, head.dimension, head.label_input) == ("e", D, label_input)
    served = [head.q(rows.queries[i], rows.cases[i : i + 1], rows.case_rewards[i : i + 1])[0] for i in range(40)]
    assert served == pytest.approx(trainer.q(rows), abs=1e-5)
    before = head.w1.copy()
    trainer.fit(rows, [np.arange(32)])
    assert np.array_equal(head.w1, before)
    assert not np.array_equal(trainer.exported().w1, before)


def test_it_learns_which_cases_help_on_rows_it_has_not_seen() -> None:
    trainer, rows, test = CaseQTrainer(D, "e", replace(FAST, hidden=64)), some_rows(600), some_rows(200, 1)
    rng = np.random.default_rng(0)
    before = auc(trainer.q(test), test.rewards)
    trainer.fit(rows, [rng.choice(600, 32, replace=False) for _ in range(400)])
    after = auc(trainer.q(test), test.rewards)
    assert before is not None
    assert after is not None
    assert after > 0.9 > before


def test_one_seed_learns_the_same_and_draws_from_no_global_generator() -> None:
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        learner = OnlineCaseQ(NeuralQTopK(), D, "e", FAST)
        observe(learner, 12)
        assert learner.policy.head is not None
        found.append((learner.losses, learner.policy.head.w1.tolist(), torch.rand(1).item()))
    assert found[0][:2] == found[1][:2]
    torch.manual_seed(1)
    assert found[0][2] == torch.rand(1).item()
    other = OnlineCaseQ(NeuralQTopK(), D, "e", replace(FAST, seed=1))
    observe(other, 12)
    assert other.losses != found[0][0]


def test_the_policy_gets_a_new_head_after_so_many_queries() -> None:
    policy = NeuralQTopK()
    learner = OnlineCaseQ(policy, D, "e", FAST)
    observe(learner, 3)
    assert policy.head is None
    observe(learner, 1)
    first = policy.head
    assert first is not None
    observe(learner, 3)
    assert policy.head is first
    observe(learner, 1)
    assert policy.head is not first
    assert len(learner.losses) == 2


def test_in_label_mode_single_only_queries_with_one_case_count() -> None:
    learner = OnlineCaseQ(NeuralQTopK(), D, "e", replace(FAST, label_mode="single"))
    observe(learner, 8)
    assert learner.losses == []
    observe(learner, 4, shown=1)
    assert len(learner.losses) == 1


def test_in_label_mode_loo_cases_that_were_left_out_have_their_own_label_and_others_do_not_count() -> None:
    made = OnlineCaseQ(NeuralQTopK(), D, "e", replace(FAST, label_mode="loo"))
    rows = some_rows(3)
    given = [
        row.model_copy(update={"credit": credit}) for row, credit in zip(rows_of(1.0, 3), (1.0, None, 0.5), strict=True)
    ]
    made.observe(given, rows.queries[0], rows.cases, rows.case_rewards)
    kept = made._seen.rows()
    assert kept.rewards.tolist() == [1.0, 0.5]
    assert np.array_equal(kept.cases, rows.cases[[0, 2]])
    observe(made, 8)
    assert len(made._seen) == 2


def test_leaving_cases_out_tells_apart_two_that_are_always_shown_together() -> None:
    """One of them solves half of the queries, the other does nothing; the reward of the set is the same for both (A5)."""
    rng = np.random.default_rng(0)
    both = rng.normal(size=(2, D)).astype(np.float32)
    apart = {}
    for mode in ("set", "loo"):
        made = OnlineCaseQ(NeuralQTopK(), D, "e", replace(FAST, label_mode=mode))  # type: ignore[arg-type]
        queries = rng.normal(size=(200, D)).astype(np.float32)
        for query in queries:
            solved = float(query[0] > 0)
            credit = (0.5 + solved / 2, 0.5)
            given = [row.model_copy(update={"credit": c}) for row, c in zip(rows_of(solved, 2), credit, strict=True)]
            made.observe(given, query, both, np.ones(2))
        q = [made.trainer.q(Rows(queries, np.tile(case, (200, 1)), np.ones(200), np.ones(200))) for case in both]
        apart[mode] = float((q[0] - q[1]).mean())
    assert abs(apart["set"]) < 0.05
    assert apart["loo"] > 0.15


def test_a_learner_goes_on_exactly_where_it_was(tmp_path: Path) -> None:
    whole = OnlineCaseQ(NeuralQTopK(), D, "e", FAST)
    observe(whole, 10)
    observe(whole, 10, 1)
    first = OnlineCaseQ(NeuralQTopK(), D, "e", FAST)
    observe(first, 10)
    first.save(tmp_path / "state.pt")
    second = OnlineCaseQ(NeuralQTopK(), D, "e", FAST)
    second.load(tmp_path / "state.pt")
    assert second.policy.head is not None
    assert first.policy.head is not None
    assert np.array_equal(second.policy.head.w1, first.policy.head.w1)
    observe(second, 10, 1)
    assert second.losses == whole.losses
    assert whole.policy.head is not None
    assert np.array_equal(second.policy.head.w1, whole.policy.head.w1)
    with pytest.raises(SettingsError, match="settings"):
        OnlineCaseQ(NeuralQTopK(), D, "e", replace(FAST, hidden=8)).load(tmp_path / "state.pt")
    with pytest.raises(SettingsError, match="encoder"):
        OnlineCaseQ(NeuralQTopK(), D, "other", FAST).load(tmp_path / "state.pt")
    (tmp_path / "bad.pt").write_text("nonsense")
    with pytest.raises(FormatError):
        second.load(tmp_path / "bad.pt")


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"batch": 0}, {"update_every": 0}, {"minibatches": 0}, {"dropout": 1.0},
                                   {"learning_rate": 0.0}, {"label_mode": "best"}])  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        CaseQSettings(**wrong)  # type: ignore[arg-type]


def test_auc_by_hand() -> None:
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0.0, 0, 1, 1])) == 0.75
    assert auc(np.array([0.5, 0.5]), np.array([0.0, 1])) == 0.5
    assert auc(np.array([0.5, 0.5]), np.array([1.0, 1])) is None


def test_episodic_control_remembers_what_a_case_did_for_which_query() -> None:
    policy = ECKernelSoftmax()
    control = EpisodicControl(policy)
    one, two = np.eye(2, dtype=np.float32)
    control.observe(rows_of(1.0, 2), one, np.stack([one, two]), np.ones(2))
    control.observe(rows_of(0.0, 1), two, one[None], np.ones(1))
    uses = policy.uses[UUID(int=0)]
    assert uses.q.tolist() == [1.0, 0.0]
    assert uses.queries.tolist() == [[1, 0], [0, 1]]
    near, far = 1 / 1e-3, 1 / (2 + 1e-3)
    chosen = policy.choose(
        CaseQuery("q", one),
        Candidates([UUID(int=0), UUID(int=9)], np.stack([one, two]), np.ones(2), np.ones(2)),
        2,
        np.random.default_rng(0),
    )
    assert {c.index: pytest.approx(c.score) for c in chosen} == {0: near / (near + far), 1: 0.5}
