from __future__ import annotations

import math
from uuid import UUID

import pytest

from memweave.errors import SettingsError
from memweave.records import new_id
from memweave.tracing import MemoryEvent, MemoryRef, Score, Trace, TraceStatus
from memweave.trainers.credit import CreditResult, Group, broadcast, per_role, shuffled
from memweave.trainers.hops import memory_hop
from tests.trainers.made_up import generation, trace


def episode(reward: float | None, replica: int = 0, *, calls: int = 1, group: str = "g", **fields: object) -> Trace:
    made = [generation(index, [1], [2]) for index in range(calls)]
    return trace(*made, score=reward, replica=replica, group=group, **fields)  # type: ignore[arg-type]  # test helper


def group(*rewards: float | None, name: str = "g") -> Group:
    return Group(name, tuple(episode(reward, number, group=name) for number, reward in enumerate(rewards)))


def values(result: CreditResult, *groups: Group) -> list[float | None]:
    keys = [(t.id, g.index) for each in groups for t in each.traces for g in t.generations]
    return [None if (found := result.advantages.get(key)) is None else round(found, 4) for key in keys]


# broadcast


def test_the_vector_of_agemem() -> None:
    """agemem.md 2.5: K = 4, r = [1, 0, 0, 1] gives 0.866024 with epsilon 1e-6: 0.5 / (sqrt(1/3) + 1e-6)."""
    four = group(1, 0, 0, 1)
    result = broadcast()([four])
    assert list(result.advantages.values())[0] == pytest.approx(0.866024, abs=5e-7)
    assert values(result, four) == [0.866, -0.866, -0.866, 0.866]
    report = result.report
    assert (report.groups, report.zero_variance, report.group_of_one, report.credited) == (1, 0, 0, 4)
    assert (report.rewards, report.reward_mean, report.excluded) == (4, 0.5, {})
    assert report.reward_std == pytest.approx(math.sqrt(1 / 3))


def test_every_generation_of_an_episode_has_its_advantage() -> None:
    pair = Group("g", (episode(1, 0, calls=3), episode(0, 1, calls=1)))
    assert values(broadcast()([pair]), pair) == [0.7071, 0.7071, 0.7071, -0.7071]


def test_scales() -> None:
    first, second = group(2, 0), group(5, 3, name="h")  # all four: mean 2.5, deviation sqrt(13 / 3)
    for_batch = round(1 / math.sqrt(13 / 3), 4)
    assert values(broadcast(scale="none")([first, second]), first, second) == [1, -1, 1, -1]
    assert values(broadcast(scale="batch")([first, second]), first, second) == [
        for_batch, -for_batch, for_batch, -for_batch,
    ]  # fmt: skip
    assert values(broadcast(epsilon=math.sqrt(2))([first]), first) == [0.3536, -0.3536]


def test_an_episode_without_a_score_is_not_a_reward_of_zero() -> None:
    three = group(2, None, 4)
    result = broadcast()([three])
    assert values(result, three) == [-0.7071, None, 0.7071]
    assert (result.report.reward_mean, result.report.excluded) == (3, {"unscored": 1})


@pytest.mark.parametrize("status", [TraceStatus.FAILED, TraceStatus.TIMEOUT, TraceStatus.UNAVAILABLE])
def test_a_failed_episode_is_left_out_even_if_it_has_a_score(status: TraceStatus) -> None:
    some = Group("g", (episode(1, 0), episode(0, 1), episode(-5, 2, status=status)))
    result = broadcast()([some])
    assert values(result, some) == [0.7071, -0.7071, None]
    assert result.report.excluded == {"failed_run": 1}


def test_a_group_of_one_has_no_credit() -> None:
    one, two = group(1, None), group(1, 0, name="h")
    result = broadcast()([one, two])
    assert values(result, one, two) == [None, None, 0.7071, -0.7071]
    assert (result.report.groups, result.report.group_of_one) == (1, 1)
    assert result.report.excluded == {"unscored": 1, "group_of_one": 1}


def test_equal_rewards_teach_nothing_exactly() -> None:
    flat = group(*[0.1] * 7)
    assert values(broadcast(epsilon=0)([flat]), flat) == [0] * 7
    assert set(broadcast()([flat]).advantages.values()) == {0.0}
    dropped = broadcast(drop_zero_variance=True)([flat])
    assert (dict(dropped.advantages), dropped.report.zero_variance) == ({}, 1)
    assert dropped.report.excluded == {"zero_variance": 7}


def test_nothing_gives_nothing() -> None:
    result = broadcast()([])
    assert (dict(result.advantages), result.report.reward_mean, result.report.reward_std) == ({}, None, None)


def test_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(SettingsError, match="scale"):
        broadcast(scale="each")  # type: ignore[arg-type]  # the test
    with pytest.raises(SettingsError, match="epsilon"):
        per_role(epsilon=-1)
    with pytest.raises(SettingsError, match="gamma"):
        memory_hop(gamma=1.5)
    with pytest.raises(SettingsError, match="unread"):
        memory_hop(unread="never")  # type: ignore[arg-type]  # the test


# per role


def two_roles(whole: float, replica: int, **parts: float) -> Trace:
    roles = ("manager", "answerer", "manager")
    # One node plays both: a role is what a reward is for, the node where it was called.
    made = [generation(index, [1], [2], role=role, node="answerer") for index, role in enumerate(roles)]
    return trace(*made, replica=replica, score=Score(value=whole, low=-10, high=10, parts=parts))


def test_each_role_is_compared_by_its_own_reward() -> None:
    pair = Group("g", (two_roles(0, 0, manager=3, answerer=0), two_roles(0, 1, manager=1, answerer=1)))
    result = per_role()([pair])
    assert values(result, pair) == [0.7071, -0.7071, 0.7071, -0.7071, 0.7071, -0.7071]
    assert (result.report.groups, result.report.rewards) == (2, 4)
    named = per_role({"manager": "answerer", "answerer": "manager"})([pair])
    assert values(named, pair) == [-0.7071, 0.7071, -0.7071, 0.7071, -0.7071, 0.7071]


def test_a_role_without_a_reward_of_its_own() -> None:
    pair = Group("g", (two_roles(4, 0, manager=1), two_roles(2, 1, manager=1.5)))
    result = per_role(scale="none")([pair])
    assert values(result, pair) == [-0.25, None, -0.25, 0.25, None, 0.25]
    assert result.report.excluded == {"no_own_reward": 2}
    broad = per_role(scale="none", otherwise="broadcast")([pair])
    assert values(broad, pair) == [-0.25, 1, -0.25, 0.25, -1, 0.25]


def test_a_role_that_only_one_episode_rewards_is_a_group_of_one() -> None:
    pair = Group("g", (two_roles(0, 0, manager=1, answerer=1), two_roles(0, 1, manager=2)))
    result = per_role(scale="none")([pair])
    assert values(result, pair) == [-0.5, None, -0.5, 0.5, None, 0.5]
    assert result.report.excluded == {"group_of_one": 1, "no_own_reward": 1}


# memory hop


ONE, TWO = new_id(), new_id()


def ref(memory: UUID, version: int = 1) -> MemoryRef:
    return MemoryRef(id=memory, version=version)


def write(index: int, *refs: MemoryRef) -> object:
    return generation(index, [1], [2], role="manager", wrote=refs)


def answer(index: int, *refs: MemoryRef) -> object:
    return generation(index, [1], [2], role="answerer", read=refs)


def run(score: float | Score | None, replica: int, *made: object, **fields: object) -> Trace:
    return trace(*made, score=score, replica=replica, **fields)  # type: ignore[arg-type]  # test helper


def test_a_write_earns_the_mean_of_its_readers_across_linked_traces() -> None:
    """Replica 0 writes 1 and 2 in one dialogue; answers in two later runs read 1 (score 1 and 0), nobody reads 2.

    manager: rewards (1 + 0) / 2 = 0.5, unread 0, and 0.25 in replica 1: mean 0.25; answerers 1, 0, 0.25: mean 5/12.
    """
    writing = run(None, 0, write(0, ref(ONE)), write(1, ref(TWO)))
    first, second = run(1.0, 0, answer(0, ref(ONE))), run(0.0, 0, answer(0, ref(ONE)))
    other = run(0.25, 1, write(0, ref(ONE)), answer(1, ref(ONE)))
    linked = Group("g", (writing, first, second, other))
    result = memory_hop(unread="zero", scale="none")([linked])
    assert values(result, linked) == [0.25, -0.25, 0.5833, -0.4167, 0.0, -0.1667]
    assert result.report.excluded == {}
    # Without a score of its own, the writing trace says nothing about the write that nobody read.
    alone = memory_hop(unread="trace", scale="none")([linked])
    assert values(alone, linked)[:2] == [0.125, None]
    assert alone.report.excluded == {"unscored": 1}
    assert memory_hop(unread="exclude")([linked]).report.excluded == {"unread_write": 1}


def test_the_reader_of_a_replaced_memory_pays_its_first_writer_discounted() -> None:
    """Version 1 is written, read (score part 1), replaced by version 2, which is read (score part 0.5).

    First write: (1 + 0.8 * 0.5) / 2 = 0.7; second: 0.5. The other episode writes once, read with 0.2. Mean 1.4 / 3.
    """
    parts = {"answerer#0": 1.0, "answerer#1": 0.5}
    chain = run(
        Score(value=0.75, parts=parts), 0,
        write(0, ref(ONE)), answer(1, ref(ONE)), write(2, ref(ONE, 2)), answer(3, ref(ONE, 2)),
    )  # fmt: skip
    other = run(0.2, 1, write(0, ref(ONE)), answer(1, ref(ONE)))
    linked = Group("g", (chain, other))
    result = memory_hop(gamma=0.8, scale="none")([linked])
    mean, answers = 1.4 / 3, 1.7 / 3
    expected = [0.7 - mean, 1 - answers, 0.5 - mean, 0.5 - answers, 0.2 - mean, 0.2 - answers]
    assert values(result, linked) == [round(value, 4) for value in expected]


def test_a_later_version_does_not_pay_backwards_and_one_reader_counts_once() -> None:
    """The reader saw version 1 of both memories that the first write made; the second write came after version 1."""
    chain = run(
        Score(value=0, parts={"answerer": 1.0}), 0,
        write(0, ref(ONE), ref(TWO)), answer(1, ref(ONE), ref(TWO)), write(2, ref(ONE, 2)),
    )  # fmt: skip
    other = run(0.5, 1, write(0, ref(ONE)), answer(1))
    linked = Group("g", (chain, other))
    result = memory_hop(scale="none")([linked])  # managers: 1, 0 (unread: its trace), 0.5 (unread: its trace)
    assert values(result, linked) == [0.5, 0.25, -0.5, 0.0, -0.25]


def test_branches_number_their_versions_alike_but_are_not_mixed() -> None:
    left = run(1.0, 0, write(0, ref(ONE, 2)), answer(1, ref(ONE, 2)))
    right = run(0.0, 1, write(0, ref(ONE, 2)), answer(1, ref(ONE, 2)))
    linked = Group("g", (left, right))
    assert values(memory_hop(scale="none")([linked]), linked) == [0.5, 0.5, -0.5, -0.5]


def test_a_write_known_only_from_the_log_counts_and_a_failed_or_deleting_one_does_not() -> None:
    def event(kind: str, status: str, made_by: int) -> MemoryEvent:
        return MemoryEvent(op_id="o", kind=kind, status=status, memory=ref(ONE), generation=made_by)

    made = [generation(index, [1], [2], role="manager") for index in range(3)]
    log = (event("ADD", "applied", 0), event("UPDATE", "failed", 1), event("DELETE", "applied", 2))
    parts = Score(value=0.25, parts={"answerer": 1.0})
    left = run(parts, 0, *made, answer(3, ref(ONE)), memory_events=log)
    right = run(0.25, 1, made[0], answer(1))
    linked = Group("g", (left, right))
    result = memory_hop(scale="none")([linked])
    mean = (1 + 3 * 0.25) / 4
    assert values(result, linked)[:3] == [round(1 - mean, 4), round(0.25 - mean, 4), round(0.25 - mean, 4)]


def test_readers_without_a_score_are_no_readers_and_a_lost_one_makes_no_zero() -> None:
    lost = run(None, 0, answer(0, ref(ONE)), status=TraceStatus.TIMEOUT)
    linked = Group("g", (run(1.0, 0, write(0, ref(ONE))), lost, run(0.0, 1, write(0, ref(TWO)))))
    result = memory_hop(unread="zero", scale="none")([linked])
    assert dict(result.advantages) == {}  # of the two writes only one has a reward, 0: nothing to compare it with
    assert result.report.excluded == {"failed_run": 1, "unscored": 1, "group_of_one": 1}


def test_generations_of_one_episode_are_no_comparison() -> None:
    alone = Group("g", (run(1.0, 0, write(0, ref(ONE)), write(1, ref(TWO))),))
    assert memory_hop()([alone]).report.group_of_one == 1


# the control


def test_shuffled_rewards_are_the_same_rewards_dealt_out_anew() -> None:
    groups = [group(*range(4), name="a"), group(*range(4, 8), None, name="b")]
    seen: list[list[float | None]] = []

    def look(given: object) -> CreditResult:
        assert isinstance(given, list)
        seen.append([t.score.value if t.score else None for each in given for t in each.traces])
        return broadcast()(given)

    for seed in (1, 1, 2):
        shuffled(look, seed)(groups)
    assert seen[0] == seen[1] != seen[2]
    assert seen[0][-1] is None
    assert sorted(value for value in seen[0] if value is not None) == list(range(8))
    assert seen[0] != [*range(8), None]
    assert [t.score.value if t.score else None for g in groups for t in g.traces] == [*range(8), None]


def test_the_deal_changes_from_iteration_to_iteration() -> None:
    def dealt(iteration: int) -> list[float]:
        one = Group("g", tuple(episode(float(n), n, iteration=iteration) for n in range(9)))
        found = shuffled(broadcast(scale="none"), 0)([one])
        return list(found.advantages.values())

    assert dealt(0) != dealt(1)
    assert dealt(1) == dealt(1)
