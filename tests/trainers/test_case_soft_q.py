"""Algorithm 1 as a learner: what it writes, its targets over a growing bank, its fixed point, and that the map it learns helps."""

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
from memweave.memory_stores.case_kernel import Kernel, load_kernel
from memweave.memory_stores.case_retrieval import ECKernelSoftmax, Explore, Vector, WatchesBank
from memweave.records import ReplayRow
from memweave.trainers.case_soft_q import Growing, SoftQLearner, SoftQSettings
from memweave.trainers.soft_q import log_kernel, q_ec

D, ALPHA = 4, 0.5
ONE = SoftQSettings(update_every=1_000)
"""Never trains by itself."""


def policy() -> ECKernelSoftmax:
    return ECKernelSoftmax(explore=Explore("softmax", alpha=ALPHA))


def learner(settings: SoftQSettings = ONE, cases: int = 0) -> SoftQLearner:
    return SoftQLearner(policy(), D, "e", settings, [UUID(int=i) for i in range(cases)])


def unit(place: int) -> Vector:
    return np.eye(D, dtype=np.float32)[place]


def show(to: SoftQLearner, query: Vector, *outcomes: tuple[int, float]) -> None:
    """Let the learner see a query that was shown some cases, each with the query's reward."""
    rows = [ReplayRow(query="q", case_id=UUID(int=case), reward=reward) for case, reward in outcomes]
    to.observe(rows, query, np.zeros((len(rows), D), dtype=np.float32), np.ones(len(rows)))


def remembered(of: SoftQLearner) -> dict[int, list[float]]:
    return {case.int: uses.q.tolist() for case, uses in of.policy.uses.items()}


def test_in_a_single_step_q_is_the_reward_at_once() -> None:
    made = learner()
    show(made, unit(0), (3, 1.0), (4, 1.0))
    show(made, unit(1), (3, 0.0))
    assert remembered(made) == {3: [1.0, 0.0], 4: [1.0]}
    assert made.policy.uses[UUID(int=3)].queries.tolist() == [unit(0).tolist(), unit(1).tolist()]
    assert made.policy.kernel.prior == 0.5


@pytest.mark.parametrize("literal", [False, True])
def test_in_several_steps_q_is_the_target_over_the_bank_with_the_new_case(literal: bool) -> None:
    gamma = 0.5
    made = learner(replace(ONE, gamma=gamma, literal=literal), cases=1)
    assert isinstance(made, WatchesBank)
    assert made.policy.kernel.prior == 1.0  # 0.5 / (1 - gamma)
    made.grew(UUID(int=7))  # the case of the first query: M' holds two cases, of which nothing is known
    show(made, unit(0), (0, 1.0))
    assert remembered(made) == {}
    made.grew(UUID(int=8))
    made.grew(UUID(int=9))
    show(made, unit(1), (0, 0.0), (7, 0.0))

    def lse(*q: float) -> float:
        return ALPHA * math.log(sum(math.exp(x if literal else x / ALPHA) for x in q))

    first = 1 + gamma * lse(1.0, 1.0)
    assert remembered(made) == {0: [pytest.approx(first)]}
    show(made, unit(0), (9, 1.0))  # now M' holds four, and case 0 did `first` for the very same query
    second = 0 + gamma * lse(first, 1.0, 1.0, 1.0)
    assert remembered(made) == {0: pytest.approx([first, second]), 7: [pytest.approx(second)]}


def test_the_value_of_the_next_state_is_the_target_networks() -> None:
    made = learner(replace(ONE, gamma=0.5), cases=1)
    for query in (unit(0), unit(1)):
        show(made, query, (0, 1.0))
    show(made, unit(2), (0, 0.0))
    with torch.no_grad():
        made.weights.mul_(0)
    row = np.array([1])
    before = made._targets(row)
    made.slow = torch.diag(torch.tensor([1.0, 0, 0, 0]))
    assert made._targets(row) != pytest.approx(before)


def test_the_fixed_point_on_a_toy_problem_is_that_of_value_iteration() -> None:
    """Two states, two cases, a bank that stays as it is; where a case leads is certain, so that targets are exact."""
    reward, leads = np.array([[1.0, 0.0], [0.0, 0.5]]), np.array([[0, 1], [1, 0]])
    gamma = 0.8
    planned = np.zeros((2, 2))
    for _ in range(300):
        planned = reward + gamma * (ALPHA * np.log(np.exp(planned / ALPHA).sum(axis=1)))[leads]
    kernel = Kernel("gaussian", sigma=0.1)
    made = SoftQLearner(
        ECKernelSoftmax(kernel=kernel, explore=Explore("softmax", alpha=ALPHA)), D, "e",
        SoftQSettings(gamma=gamma, eta=1.0, update_every=1, minibatches=4, learning_rate=1e-9), [UUID(int=0), UUID(int=1)],
    )  # fmt: skip
    rng, state = np.random.default_rng(0), 0
    for _ in range(150):
        case = int(rng.integers(2))
        show(made, unit(state), (case, float(reward[state, case])))
        state = int(leads[state, case])
    served = made.policy.kernel
    found = [[served.estimate(unit(s), made.policy.uses[UUID(int=c)]) for c in range(2)] for s in range(2)]
    assert np.array(found) == pytest.approx(planned, abs=0.02)


def test_a_step_follows_equation_10_and_leaves_out_the_rows_own_entry() -> None:
    made = learner(replace(ONE, hidden=3, seed=5))
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(5, D)).astype(np.float32)
    for query, reward in zip(queries, (1.0, 0.0, 1.0, 0.0, 1.0), strict=True):
        show(made, query, (0, reward))
    show(made, unit(0), (1, 1.0))  # used once: it says nothing
    loss = made._loss(np.array([0, 3, 5]), np.array([1.0, 0.0, 1.0]))
    assert loss is not None
    (found,) = torch.autograd.grad(loss, made.weights)
    weights = made.weights.detach().clone().requires_grad_()
    expected = torch.zeros(())
    for place, target in ((0, 1.0), (3, 0.0)):
        others = [i for i in range(5) if i != place]
        here, past = torch.from_numpy(queries[place]) @ weights.T, torch.from_numpy(queries[others]) @ weights.T
        q = torch.tensor([(1.0, 0.0, 1.0, 0.0, 1.0)[i] for i in others])
        expected = expected + (q_ec(log_kernel(here, past), q) - target) ** 2 / 2
    (by_hand,) = torch.autograd.grad(expected, weights)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(found, by_hand, atol=1e-5)
    assert made._loss(np.array([5]), np.array([1.0])) is None


def test_only_the_nearest_uses_count_when_it_is_trained_as_when_it_is_served() -> None:
    made = learner()
    made.policy.kernel = replace(made.policy.kernel, neighbours=1)
    show(made, unit(0), (0, 1.0))
    show(made, 1.1 * unit(0), (0, 1.0))
    show(made, unit(1), (0, 0.0))
    loss = made._loss(np.array([0]), np.array([1.0]))
    assert loss is not None
    assert loss.item() == pytest.approx(0, abs=1e-9)


def test_what_is_learned_is_which_part_of_a_query_matters(tmp_path: Path) -> None:
    """A case helps when the first number is positive; the others are noise, and larger."""
    settings = SoftQSettings(update_every=16, minibatches=16, learning_rate=3e-2, clip=10.0)

    def queries(number: int, seed: int) -> np.ndarray:
        made = np.random.default_rng(seed).normal(size=(number, D)).astype(np.float32) * np.array([0.5, 1, 1, 1])
        return made.astype(np.float32)

    made = learner(settings)
    fixed = made.policy.kernel
    for query in queries(300, 0):
        show(made, query, (0, float(query[0] > 0)))
    test, uses = queries(200, 1), made.policy.uses[UUID(int=0)]

    def error(kernel: Kernel) -> float:
        return float(np.mean([(kernel.estimate(q, uses) - float(q[0] > 0)) ** 2 for q in test]))

    assert error(made.policy.kernel) < 0.6 * error(fixed)
    assert made.losses[-1] < made.losses[0]
    made.policy.kernel.save(tmp_path / "kernel.safetensors")
    assert error(load_kernel(tmp_path / "kernel.safetensors")) == error(made.policy.kernel)


def test_the_target_network_follows_every_so_many_steps() -> None:
    made = learner(SoftQSettings(update_every=4, minibatches=3, target_every=5, beta=0.75, learning_rate=1e-2))
    for number in range(4):
        show(made, unit(number), (0, float(number % 2)))
    assert torch.equal(made.slow, torch.eye(D))  # three steps
    for number in range(4):
        show(made, unit(number) * 0.5, (0, float(number % 2)))
    moved = made.slow - torch.eye(D)
    assert made.steps == 6
    assert float(moved.abs().max()) > 0
    # after the fifth step: a quarter of the way to where W was then, from which the sixth step is small
    assert torch.allclose(moved, 0.25 * (made.weights.detach() - torch.eye(D)), atol=0.25 * 2e-2)


def test_the_policy_sees_the_map_after_an_update_and_what_it_holds_does_not_change() -> None:
    made = learner(SoftQSettings(update_every=3, learning_rate=1e-2))
    for number in range(3):
        assert made.policy.kernel.weights is None
        show(made, unit(number), (0, float(number % 2)))
    first = made.policy.kernel
    assert first.weights is not None
    assert first.encoder == "e"
    before = first.weights.copy()
    for number in range(3):
        show(made, unit(number) * 0.5, (0, float(number % 2)))
    assert np.array_equal(first.weights, before)
    assert not np.array_equal(made.policy.kernel.weights, before)  # type: ignore[arg-type]


def test_a_learned_map_is_gone_on_with() -> None:
    start = np.arange(8, dtype=np.float32).reshape(2, D)
    given = policy()
    given.kernel = Kernel(weights=start, encoder="e")
    assert np.array_equal(SoftQLearner(given, D, "e", ONE).weights.detach().numpy(), start)


def test_eta_moves_what_is_remembered_and_the_policy_sees_it() -> None:
    made = learner(SoftQSettings(gamma=0.5, eta=0.5, update_every=3, minibatches=1, beta=0.0, target_every=1), cases=2)
    for query in (0, 1, 0):
        show(made, unit(query), (0, 1.0))
    place = np.arange(2)
    assert remembered(made)[0] == made._columns["q"].values[place].tolist()
    written = learner(replace(made.settings, eta=0.0), cases=2)
    for query in (0, 1, 0):
        show(written, unit(query), (0, 1.0))
    assert remembered(made)[0] != remembered(written)[0]


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_it_goes_on_exactly_where_it_was(tmp_path: Path, gamma: float) -> None:
    settings = SoftQSettings(gamma=gamma, eta=0.1, update_every=4, minibatches=2, learning_rate=1e-2, hidden=3)

    def lived(made: SoftQLearner, start: int, end: int) -> SoftQLearner:
        for number in range(start, end):
            rng = np.random.default_rng(number)
            made.grew(UUID(int=number))
            outcomes = [(int(case), float(number % 2)) for case in rng.integers(number + 1, size=2)]
            show(made, rng.normal(size=D).astype(np.float32), *outcomes)
        return made

    whole = lived(learner(settings), 0, 30)
    lived(learner(settings), 0, 14).save(tmp_path / "state.pt")
    second = learner(settings)
    second.load(tmp_path / "state.pt")
    lived(second, 14, 30)
    assert second.losses == whole.losses
    assert remembered(second) == remembered(whole)
    assert torch.equal(second.weights, whole.weights)
    assert torch.equal(second.slow, whole.slow)
    assert np.array_equal(second.policy.kernel.weights, whole.policy.kernel.weights)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="settings"):
        learner(ONE).load(tmp_path / "state.pt")
    (tmp_path / "bad.pt").write_text("nonsense")
    with pytest.raises(FormatError):
        second.load(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": 1.0}, {"gamma": -0.1}, {"eta": 1.1}, {"beta": 2.0}, {"batch": 0}, {"update_every": 0}, {"minibatches": 0},
     {"target_every": 0}, {"hidden": 0}, {"learning_rate": 0.0}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        SoftQSettings(**wrong)  # type: ignore[arg-type]


def test_an_array_grows_and_keeps_what_it_has() -> None:
    rows = Growing(np.float64, 2)
    for number in range(200):
        rows.append(np.full((1, 2), number))
    assert rows.values.tolist() == [[n, n] for n in range(200)]
