"""BabyAI's words, read back: views, missions, and a chart that knows where things are after any walk."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.worlds.babyai import ACTIONS, DIRECTIONS, BabyAIEnv, describe
from memweave.worlds.babyai_words import Chart, Mission, Thing, beside, read_mission, read_view

pytest.importorskip("minigrid")

KINDS = {4: "door", 5: "key", 6: "ball", 7: "box"}
COLORS = ("red", "green", "blue", "purple", "yellow", "grey")
STATES = ("open", "closed", "locked")
CELLS = st.one_of(
    st.sampled_from([(1, 0, 0), (2, 5, 0)]),
    st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 5), st.integers(0, 2)),
)


@given(st.lists(st.lists(CELLS, min_size=7, max_size=7), min_size=7, max_size=7), st.integers(0, 3))
def test_a_view_is_read_as_it_was_told(image: list[list[tuple[int, int, int]]], direction: int) -> None:
    if image[3][6][0] == 4:
        image[3][6] = (1, 0, 0)  # nobody carries a door
    view = read_view(describe(image, direction))
    assert view is not None
    assert view.heading == DIRECTIONS[direction]
    there = {
        (6 - row, column - 3): Thing(KINDS[kind], COLORS[color], STATES[state] if kind == 4 else None)
        for column, rows in enumerate(image)
        for row, (kind, color, state) in enumerate(rows)
        if kind in KINDS
    }
    carried = there.pop((0, 0), None)
    assert {(ahead, aside): thing for ahead, aside, thing in view.things} == there
    assert view.carried == carried
    assert all(image[3 + aside][6 - ahead][0] == 2 for ahead, aside in view.walls)


def test_that_nothing_happened_is_read_and_a_text_without_a_view_is_none() -> None:
    told = "You face east. You carry nothing. You see no objects."
    still, moved = read_view(f"Nothing happened. {told}"), read_view(told)
    assert still is not None
    assert moved is not None
    assert (still.still, moved.still) == (True, False)
    assert read_view("There is no action 'jump', so nothing happened. The actions are: toggle.") is None


@pytest.mark.parametrize(
    ("text", "mission"),
    [
        ("Your mission: go to the green ball.", Mission("go", (Thing("ball", "green"),))),
        ("Your mission: pick up a key. Go forward moves you one cell.", Mission("pick", (Thing("key", None),))),
        ("Your mission: open the door on your left.", Mission("open", (Thing("door", None),))),
        (
            "Your mission: put the red box next to the grey key.",
            Mission("put", (Thing("box", "red"), Thing("key", "grey"))),
        ),
        ("Your mission: pick up the blue object.", Mission("pick", (Thing(None, "blue"),))),
        ("Your mission: rest.", None),
        ("You face east. A red ball is 2 steps ahead.", None),
    ],
)
def test_missions(text: str, mission: Mission | None) -> None:
    assert read_mission(text) == mission


def objects(env: BabyAIEnv) -> dict[tuple[int, int], tuple[str, str]]:
    grid = env.env.unwrapped.grid
    found: dict[tuple[int, int], tuple[str, str]] = {}
    for x in range(grid.width):
        for y in range(grid.height):
            cell: Any = grid.get(x, y)
            if cell is not None and cell.type in KINDS.values():
                found[x, y] = (cell.type, cell.color)
    return found


@pytest.mark.parametrize("level", ["PickupLoc", "UnlockLocal", "FindObjS5"])
def test_a_chart_keeps_its_bearings_on_random_walks(level: str) -> None:
    """Where the chart says that the agent and things are, they are, after any walk in which nothing was put down."""
    names = [name for name in ACTIONS if name != "drop"] + ["go forward"] * 4 + ["jump"]
    for seed in range(6):
        env, rng = BabyAIEnv(level, max_steps=60), random.Random(seed)
        chart = Chart.begun(view) if (view := read_view(env.reset(seed))) else pytest.fail("no view")
        grid = env.env.unwrapped
        east, south = grid.agent_pos
        for _ in range(59):
            action = rng.choice(names)
            step = env.step(action)
            chart.take(action, step.text)
            assert chart.at == (grid.agent_pos[0] - east, grid.agent_pos[1] - south)
            if step.done:
                break
        there = objects(env)
        for (x, y), thing in chart.things.items():
            if thing.kind == "door":
                assert there[x + int(east), y + int(south)] == (thing.kind, thing.color)
        for x, y in chart.clear & {chart.front}:
            assert chart.free((x, y)) == ((x + east, y + south) not in there)


def test_doors_and_keys_of_a_mission() -> None:
    start = read_view("You face north. You carry nothing. A locked red door is 2 steps ahead. A red key is 1 step to the left. "
                      "A blue key is 1 step to the right. A wall is 1 step ahead and 3 to the left.")  # fmt: skip
    mission = read_mission("Your mission: open the red door.")
    assert start is not None
    assert mission is not None
    chart = Chart.begun(start)
    assert chart.goals(mission) == {(0, -2): Thing("door", "red", "locked")}
    assert list(chart.locked(mission)) == [(0, -2)]
    assert list(chart.keys(mission)) == [(-1, 0)]  # the blue one opens nothing here
    chart.take("turn left", "You face west. You carry nothing. A red key is right in front of you.")
    chart.take("pick up", "You face west. You carry a red key. You see no objects.")
    assert (-1, 0) not in chart.things
    assert not chart.locked(mission)
    assert list(chart.doors()) == [(0, -2)]


def test_what_an_action_will_do_is_told_only_where_it_is_sure() -> None:
    start = read_view("You face east. You carry nothing. A red ball is 3 steps ahead. A wall is 5 steps ahead.")
    assert start is not None
    chart = Chart.begun(start)
    one = chart.imagined("go forward")
    assert one is not None
    assert one.at == (1, 0)
    assert chart.at == (0, 0)
    two = one.imagined("go forward")
    assert two is not None
    assert two.imagined("go forward") is None
    turned = two.imagined("turn left")
    assert turned is not None
    assert turned.view.heading == "north"
    assert turned.imagined("go forward") is None  # nobody has looked there
    assert chart.imagined("toggle") is None
    assert len(set(beside((0, 0)))) == 4
