"""From a run in BabyAI to a path: always legal, whoever plays, and what was done is what it says."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memweave.agents.babyai_paths import BabyAIMapper
from memweave.agents.cognition import load_machine
from memweave.agents.leaks import Source
from memweave.agents.path_mapper import MappedPath, UnmappedRun
from memweave.agents.run_log import Call, Result, Round, RunLog
from memweave.agents.strategist import InductionRequest, Proposal, RuleStrategist
from memweave.graph_records import StrategyKind

MAPPER = BabyAIMapper()
FACING = "You face east. You carry {}. {}"
NOTHING = FACING.format("nothing", "You see no objects.")
BALL = FACING.format("nothing", "A red ball is 3 steps ahead.")
STILL = "Nothing happened. "
WON = "\n\nThe episode is over: you reached the goal. Do nothing more."
USED_UP = "\n\nThe episode is over: your steps are used up. Do nothing more."


def run(first: str, *steps: tuple[str, str], reward: float | None = 1.0, mission: str = "go to the red ball") -> RunLog:
    rounds = tuple(
        Round(calls=(Call(name="act", arguments={"action": action}),), results=(Result(text=text),))
        for action, text in steps
    )
    return RunLog(
        question=f"Your mission: {mission}.\n\n{first}", rounds=(*rounds, Round(answer="done")), reward=reward
    )


def path(log: RunLog) -> str:
    mapped = MAPPER.map(log)
    assert isinstance(mapped, MappedPath), mapped
    assert MAPPER.machine.legal(mapped.states)
    assert mapped.machine == "babyai@1"
    return " ".join(mapped.states[1:-1])


# what the machine is


def test_everything_in_the_machine_is_marked_as_ours() -> None:
    machine = load_machine("babyai")
    assert all(state.reconstructed for state in machine.states)
    assert {arc.origin for arc in machine.arcs} == {"reconstructed"}
    assert all(state.when for state in machine.states if state.kind == "finding")
    acts = [state.act for state in machine.states if state.act]
    assert not [(one, other) for one in acts for other in acts if one != other and one in other]


# known behaviours


def test_going_to_what_is_in_sight() -> None:
    assert path(run(BALL, ("go forward", BALL), ("go forward", BALL + WON))) == "GoalKnown Approach Fulfilled"


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_until_the_goal_is_seen_is_looking_around(turns: int) -> None:
    steps = [("turn left", NOTHING)] * (turns - 1) + [("turn left", BALL), ("go forward", BALL + WON)]
    assert path(run(NOTHING, *steps)) == "GoalUnknown LookAround GoalKnown Approach Fulfilled"


def test_a_turn_on_the_way_is_no_looking_around() -> None:
    steps = [
        ("go forward", NOTHING),
        ("turn left", NOTHING),
        ("go forward", NOTHING),
        ("go forward", NOTHING + USED_UP),
    ]
    assert path(run(NOTHING, *steps, reward=0)) == "GoalUnknown WalkAbout Unfulfilled OutOfSteps"


def test_three_turns_are_looking_around_even_in_vain() -> None:
    steps = [*[("turn right", NOTHING)] * 3, ("go forward", NOTHING + USED_UP)]
    assert path(run(NOTHING, *steps, reward=0)) == "GoalUnknown LookAround GoalUnknown WalkAbout Unfulfilled OutOfSteps"


def test_a_door_is_opened_from_when_it_was_seen_and_the_steps_through_it_belong_to_that() -> None:
    door = FACING.format("nothing", "A closed blue door is {}.")
    steps = [
        ("go forward", door.format("2 steps ahead")),
        ("go forward", door.format("right in front of you")),
        ("toggle", FACING.format("nothing", "An open blue door is right in front of you.")),
        ("go forward", NOTHING),
        ("go forward", BALL),
        ("go forward", BALL + WON),
    ]
    assert path(run(NOTHING, *steps)) == "GoalUnknown WalkAbout GoalUnknown OpenDoor GoalKnown Approach Fulfilled"


def test_opening_the_door_of_the_mission_is_no_search_behind_a_door() -> None:
    door = FACING.format("nothing", "A closed blue door is right in front of you.")
    log = run(door, ("toggle", NOTHING + WON), mission="open the blue door")
    assert path(log) == "GoalKnown Approach Fulfilled"


LOCKED = "A locked red door is right in front of you. A red key is 1 step to the left."
UNLOCK = "open the door"


def test_fetching_the_key_of_a_locked_door() -> None:
    steps = [
        ("turn left", "You face north. You carry nothing. A red key is right in front of you."),
        ("pick up", "You face north. You carry a red key. You see no objects."),
        ("turn right", FACING.format("a red key", "A locked red door is right in front of you.")),
        ("toggle", FACING.format("a red key", "An open red door is right in front of you.") + WON),
    ]
    log = run(FACING.format("nothing", LOCKED), *steps, mission=UNLOCK)
    assert path(log) == "DoorLocked FetchKey GoalKnown Approach Fulfilled"


def test_trying_a_locked_door_and_giving_up() -> None:
    shut = FACING.format("nothing", LOCKED)
    log = run(shut, ("toggle", STILL + shut), reward=0, mission=UNLOCK)
    assert path(log) == "DoorLocked TryLocked DoorLocked GiveUp Unfulfilled Stopped"


def test_the_key_that_the_mission_names_is_no_key_fetched_on_the_way() -> None:
    key = FACING.format("nothing", "A red key is right in front of you.")
    log = run(key, ("pick up", FACING.format("a red key", "You see no objects.") + WON), mission="pick up the red key")
    assert path(log) == "GoalKnown Approach Fulfilled"


def test_after_a_step_without_effect_the_same_again_or_another_way() -> None:
    again = [("go forward", STILL + BALL), ("go forward", STILL + BALL + USED_UP)]
    assert path(run(BALL, *again, reward=0)) == "GoalKnown Approach WayBlocked TryAgain Unfulfilled OutOfSteps"
    around = [
        ("go forward", STILL + BALL),
        ("turn left", "You face north. You carry nothing. You see no objects."),
        ("go forward", "You face north. You carry nothing. You see no objects." + WON),
    ]
    assert path(run(BALL, *around)) == "GoalKnown Approach WayBlocked GoAround Fulfilled"


def test_stopping_without_having_done_anything_is_giving_up() -> None:
    assert path(run(NOTHING, reward=0)) == "GoalUnknown GiveUp Unfulfilled Stopped"


def test_thoughts_do_not_count() -> None:
    log = run(BALL, ("go forward", BALL + WON))
    thinking = log.model_copy(
        update={"rounds": tuple(each.model_copy(update={"think": "look around"}) for each in log.rounds)}
    )
    assert MAPPER.map(log) == MAPPER.map(thinking)


# what has no path


def test_what_nobody_verified_and_what_is_no_mission_is_a_named_failure() -> None:
    found = MAPPER.map(run(BALL, ("go forward", BALL), reward=None))
    assert isinstance(found, UnmappedRun)
    assert found.kind == "no_reward"
    found = MAPPER.map(RunLog(question="Who is Anna's friend?", reward=1.0))
    assert isinstance(found, UnmappedRun)
    assert found.kind == "no_fit"
    found = asyncio.run(MAPPER.amap(run(NOTHING)))  # fulfilled without any action
    assert isinstance(found, UnmappedRun)
    assert "babyai" in found.text


# legal, whatever is logged

VIEWS = st.sampled_from(
    [NOTHING, BALL, STILL + NOTHING, STILL + BALL, FACING.format("a red key", "A locked red door is right in front of you."),
     FACING.format("nothing", LOCKED), FACING.format("nothing", "An open red door is right in front of you."),
     FACING.format("nothing", "A closed blue door is right in front of you. A blue key is 2 steps ahead."),
     FACING.format("nothing", "A blue key is right in front of you."), "There is no action 'jump', so nothing happened."]
)  # fmt: skip
ACTIONS = st.sampled_from(["turn left", "turn right", "go forward", "pick up", "drop", "toggle", "jump", ""])


@settings(max_examples=300)
@given(
    st.sampled_from(["go to the red ball", "open the door", "pick up a key", "put the red ball next to the blue key"]),
    st.lists(st.tuples(ACTIONS, VIEWS), min_size=1, max_size=30),
    st.sampled_from([("", 0.0), (WON, 1.0), (USED_UP, 0.0)]),
)
def test_any_log_of_actions_has_a_legal_path(
    mission: str, steps: list[tuple[str, str]], end: tuple[str, float]
) -> None:
    *others, (action, text) = steps
    path(run(NOTHING, *others, (action, text + end[0]), reward=end[1], mission=mission))


# into advice


def test_rules_make_advice_of_two_runs_in_the_words_of_the_machine() -> None:
    looked = MAPPER.map(run(NOTHING, ("turn left", BALL), ("go forward", BALL + WON)))
    walked = MAPPER.map(run(NOTHING, ("go forward", NOTHING), ("go forward", NOTHING + USED_UP), reward=0))
    assert isinstance(looked, MappedPath)
    assert isinstance(walked, MappedPath)
    request = InductionRequest(
        kind=StrategyKind.CONTRAST, successes=(looked.states,), failures=(walked.states,), source=Source(question="?")
    )
    induced = RuleStrategist(MAPPER.machine).induce(request)
    assert isinstance(induced, Proposal)
    assert induced.new.principles[0].text == (
        "When it is not known where the goal is, consider looking around on the spot instead of walking about."
    )
