"""Rows and credit on random episodes: agents that go on, forget, rewrite and take turns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memweave.tracing import Generation, Trace, TraceStatus
from memweave.trainers.credit import Group, Scale, broadcast
from memweave.trainers.rows import Row, assign, build_rows
from tests.trainers.made_up import generation, trace

Tokens = list[int]
token = st.integers(0, 2)  # few, so that chance prefixes are common


@st.composite
def episodes(draw: st.DrawFn, *, replica: int = 0, group: str = "g") -> Trace:
    """Draw a trace whose prompts go on from, cut, or change what was said before."""
    said: list[Tokens] = []
    made: list[Generation] = []
    for index in range(draw(st.integers(0, 6))):
        prompt = draw(st.lists(token, min_size=1, max_size=4))
        if said:
            before = list(draw(st.sampled_from(said)))
            how = draw(st.sampled_from(("goes on", "goes on", "cut", "changed", "new", "dropped")))
            if how == "goes on":
                prompt = before + (prompt if draw(st.booleans()) else [])
            elif how == "cut":
                prompt = before[: draw(st.integers(1, len(before)))]
            elif how == "changed":
                place = draw(st.integers(0, len(before) - 1))
                prompt = [*before[:place], (before[place] + 1) % 3, *before[place + 1 :], *prompt]
            elif how == "dropped":
                prompt = before[1:] + prompt
        sampled = draw(st.lists(token, max_size=3))
        logprobs = [-float(place + index) for place in range(len(sampled))]
        if sampled and draw(st.integers(0, 7)) == 0:
            logprobs[0] = math.nan
        made.append(generation(index, prompt, sampled, role=draw(st.sampled_from("ab")), logprobs=logprobs))
        said.append(prompt + sampled)
    score = draw(st.none() | st.integers(0, 2).map(float))
    status = draw(st.sampled_from((TraceStatus.OK,) * 5 + (TraceStatus.FAILED,)))
    return trace(*made, score=score, status=status, group=group, replica=replica)


@st.composite
def batches(draw: st.DrawFn) -> list[Group]:
    """Draw groups of episodes."""
    return [
        Group(name, tuple(draw(episodes(replica=n, group=name)) for n in range(draw(st.integers(1, 4)))))
        for name in "gh"[: draw(st.integers(1, 2))]
    ]


def traces_of(groups: Sequence[Group]) -> list[Trace]:
    return [one for group in groups for one in group.traces]


Pair = tuple[tuple[int, ...], int, float, float]


def pairs(rows: Sequence[Row]) -> Counter[Pair]:
    """Return what is trained: (whole prefix, token, log-probability, advantage), with how often."""
    return Counter(
        (tuple(row.ids[:at].tolist()), int(row.ids[at]), float(row.logprobs[at]), float(row.advantages[at]))
        for row in rows
        for at in range(len(row.ids))
        if row.mask[at]
    )


def accepted(one: Generation, of: Trace) -> bool:
    sampled = one.token_ids or ()
    trusted = bool(sampled) and not any(math.isnan(value) for value in one.logprobs or ())
    return of.status is TraceStatus.OK and of.score is not None and trusted


@settings(max_examples=40)
@given(batches())
def test_every_sampled_token_trains_exactly_once_and_nothing_else_does(groups: list[Group]) -> None:
    traces = traces_of(groups)
    made = build_rows(traces, policy_version="v1", temperature=1.0)
    expected = Counter(
        ((*(g.prompt_token_ids or ()), *(g.token_ids or ())[:at]), (g.token_ids or ())[at], (g.logprobs or ())[at], 0.0)
        for t in traces
        for g in t.generations
        if accepted(g, t)
        for at in range(len(g.token_ids or ()))
    )
    assert pairs(made.rows) == expected
    report = made.report
    assert (
        report.trained
        == sum(len(row.spans) for row in made.rows)
        == sum(accepted(g, t) for t in traces for g in t.generations)
    )
    assert report.trained + sum(report.refusals.values()) == report.generations
    assert sum(report.forks.values()) == report.rows == len(made.rows)
    for row in made.rows:
        assert all((row.mask[s.start : s.stop]).all() for s in row.spans)
        assert row.mask.sum() == sum(s.stop - s.start for s in row.spans)
        assert row.prompt_length == row.spans[0].start > 0


@settings(max_examples=40)
@given(batches(), st.sampled_from(("group", "batch", "none")))
def test_merging_changes_no_prefix_token_or_advantage(groups: list[Group], scale: Scale) -> None:
    advantages = broadcast(scale=scale)(groups).advantages
    found = []
    for merge in (True, False):
        made = build_rows(traces_of(groups), policy_version="v1", temperature=1.0, merge=merge)
        found.append((pairs(assign(made.rows, advantages)), made.report.tokens + made.report.tokens_saved))
    assert found[0] == found[1]


@settings(max_examples=40)
@given(batches())
def test_credit_within_a_group_sums_to_zero(groups: list[Group]) -> None:
    result = broadcast()(groups)
    for group in groups:
        # One value per episode: that of its first generation, if it has any.
        first = [result.advantages.get((t.id, t.generations[0].index)) for t in group.traces if t.generations]
        scored = [t for t in group.traces if t.status is TraceStatus.OK and t.score is not None]
        if all(t.generations for t in scored):
            assert sum(value for value in first if value is not None) == pytest.approx(0, abs=1e-9)
    credited, excluded = result.report.credited, sum(result.report.excluded.values())
    assert credited + excluded == sum(len(t.generations) for t in traces_of(groups))


@settings(max_examples=40)
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_groups_and_episodes_changes_nothing(groups: list[Group], random: object) -> None:
    assert hasattr(random, "shuffle")
    mixed = []
    for group in groups:
        shuffled = list(group.traces)
        random.shuffle(shuffled)
        mixed.append(Group(group.id, tuple(shuffled)))
    random.shuffle(mixed)
    before, after = broadcast(scale="batch")(groups), broadcast(scale="batch")(mixed)
    assert after.advantages == pytest.approx(dict(before.advantages))
    rows = [pairs(build_rows(traces_of(g), policy_version="v1", temperature=1.0).rows) for g in (groups, mixed)]
    assert rows[0] == rows[1]
