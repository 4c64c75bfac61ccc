"""Graph memory on BabyAI: a script whose habits vary, which heeds advice to a degree, and the whole of the pipeline on a few missions."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from langchain_core.messages import AIMessage, BaseMessage

from memweave.agents.babyai_paths import BabyAIMapper
from memweave.agents.path_mapper import MappedPath
from memweave.agents.run_log import Call, Result, Round, RunLog
from memweave.agents.tool_protocol import read_text_turn
from memweave.errors import InputError, SettingsError
from memweave.graphs.graph_memory_induction import log_of
from memweave.graphs.graph_memory_play import Job, Played, Player, QueryTask
from memweave.graphs.graph_memory_state import Guidance
from memweave.recipes import game
from memweave.recipes.babyai_strategies import script, seeing
from memweave.recipes.babyai_strategies.missions import LEVELS, Playing, missions
from memweave.recipes.babyai_strategies.script import BASE, BabyAIScript, Habits
from memweave.recipes.babyai_strategies.seeing import Plan, read_advice, see
from memweave.recipes.babyai_strategies.study import StudySettings, run_study
from memweave.recipes.lesson_rows import Said
from memweave.testing.models import ScriptedChatModel
from memweave.worlds.babyai import BabyAIEnv

pytest.importorskip("minigrid")

UNKNOWN = "- When it is not known where the goal is, consider {}."
LOOK, WALK = UNKNOWN.format("looking around on the spot"), UNKNOWN.format("walking about")
KEY = "- When a locked door is in the way, consider fetching a key first instead of trying the locked door as it is."
EMPTY = "Your mission: go to the red ball.\n\nYou face east. You carry nothing. You see no objects. A wall is 5 steps ahead."
LOCKED = "Your mission: open the door.\n\nYou face east. You carry nothing. A locked red door is 3 steps ahead. A red key is 2 steps ahead."


def first(query: str, advice: str = "", *, habits: Habits = BASE, episode: str = "e") -> str:
    said: list[Said] = [("user", f"<advice>\n{advice}\n</advice>")] if advice else []
    return read_text_turn(script.reply([*said, ("user", query)], habits, episode)).think


def plans(query: str, advice: str = "", *, compliance: float, number: int = 200) -> Counter[str]:
    habits = Habits(compliance=compliance)
    return Counter(first(query, advice, habits=habits, episode=f"e{i}") for i in range(number))


# the script


def test_habits_vary_from_run_to_run_and_not_within_one() -> None:
    found = plans(EMPTY, compliance=0)
    assert {Plan.LOOK, Plan.WALK} <= set(found)
    assert found[Plan.WALK] > found[Plan.LOOK] > 20
    assert first(EMPTY, episode="x") == first(EMPTY, episode="x")


@pytest.mark.parametrize(("compliance", "low", "high"), [(0.0, 0.1, 0.45), (0.5, 0.5, 0.8), (1.0, 1.0, 1.0)])
def test_advice_is_heeded_to_the_degree_that_was_set(compliance: float, low: float, high: float) -> None:
    share = plans(EMPTY, LOOK, compliance=compliance)[Plan.LOOK] / 200
    assert low <= share <= high


def test_the_first_piece_of_advice_that_fits_is_taken_and_one_about_something_else_is_not() -> None:
    assert plans(EMPTY, f"{KEY}\n{WALK}\n{LOOK}", compliance=1) == {Plan.WALK: 200}
    assert plans(EMPTY, KEY, compliance=1) == plans(EMPTY, compliance=1)  # no locked door here
    assert plans(LOCKED, f"{LOOK}\n{KEY}", compliance=1) == {Plan.KEY: 200}


def test_advice_is_read_in_the_words_of_the_machine() -> None:
    (piece,) = read_advice(KEY)
    assert (piece.finding, piece.plan) == ("DoorLocked", Plan.KEY)
    two = "everything around has been looked at and it is not known where the goal is"
    (piece,) = read_advice(f"- When {two}, consider going through a door to search behind it.")
    assert (piece.finding, piece.plan) == ("GoalUnknown", Plan.DOOR)
    assert list(read_advice("- When in doubt, consider the lilies.\nGo straight to the goal.")) == []


def test_every_choice_of_the_machine_is_a_plan() -> None:
    choices = {state.name for state in BabyAIMapper().machine.states if state.kind == "choice"}
    assert set(seeing.STATES) == choices
    assert set(seeing.STATES.values()) == set(Plan)


def test_it_stops_when_the_episode_is_over_and_plays_nothing_but_missions() -> None:
    end = "You face east. You carry nothing. You see no objects.\n\nThe episode is over: you reached the goal."
    over = f"<tool_response>{end}</tool_response>"
    call = '<think>walk about</think><tool_call>[{"name": "act", "arguments": {"action": "go forward"}}]</tool_call>'
    assert (
        read_text_turn(script.reply([("user", EMPTY), ("assistant", call), ("tool", over)], BASE, "e")).answer == "done"
    )
    with pytest.raises(ValueError, match="no mission"):
        see([("user", "Who is Anna's friend?")])


# missions


def test_missions_of_different_splits_and_seeds_are_different_and_none_is_asked_twice() -> None:
    known: set[str] = set()
    tasks = [
        task
        for seed in (0, 1)
        for split in ("build", "weights", "test")
        for task in missions(split, 4, seed=seed, levels=("PickupLoc", "UnlockLocal"), known=known)
    ]
    assert len(tasks) == 2 * 3 * 4 * 2 == len({task.query_id for task in tasks}) == len({task.text for task in tasks})
    assert known == {task.text for task in tasks}
    assert all("Go forward moves you" not in task.text for task in tasks)
    with pytest.raises(InputError, match="no level"):
        missions("build", 1, seed=0, levels=("Nowhere",), known=set())


def test_a_query_that_is_no_mission_is_refused() -> None:
    with pytest.raises(InputError, match="names no level"):
        Playing()(Job(QueryTask(text="Who is Anna's friend?"), "eval", 0))


# real rollouts


def played(tasks: list[QueryTask], playing: Playing, advice: str = "", *, run: str = "test") -> list[Played]:
    guidance = Guidance(text=f"<advice>\n{advice}\n</advice>") if advice else None
    return Player(playing, run, parallel=2).play([Job(task, "eval", 0, guidance=guidance) for task in tasks])


@pytest.fixture(scope="module")
def tasks() -> list[QueryTask]:
    return missions("test", 3, seed=7, levels=LEVELS, known=set())


def test_recorded_episodes_have_legal_paths_that_say_what_the_script_planned(tasks: list[QueryTask]) -> None:
    mapper = BabyAIMapper()
    told = {plan: state for state, plan in seeing.STATES.items()}
    planned: Counter[Plan] = Counter()
    seen: Counter[Plan] = Counter()
    for each in played(tasks, Playing(BabyAIScript(seed=1))):
        assert each.failure is None
        assert each.record is not None
        mapped = mapper.map(log_of(each))
        assert isinstance(mapped, MappedPath), mapped
        assert mapper.machine.legal(mapped.states)
        thoughts = {read_text_turn(m.text).think for m in each.record.dialogue if m.role == "assistant"}
        for plan in (Plan.LOOK, Plan.GO, Plan.TRY, Plan.LEAVE):
            planned[plan] += plan in thoughts
            seen[plan] += plan in thoughts and told[plan] in mapped.states
    assert planned[Plan.GO] >= 5
    assert sum(seen.values()) >= 0.9 * sum(planned.values())


class Recorded(game.Game):
    """A game that keeps what was done and told."""

    def __init__(self, env: BabyAIEnv, seed: int, *, name: str) -> None:
        super().__init__(env, seed, name=name)
        self.rounds: list[Round] = []

    def act(self, action: str) -> str:
        text = super().act(action)
        call = Call(name="act", arguments={"action": action})
        self.rounds.append(Round(calls=(call,), results=(Result(text=text),)))
        return text


def paths(player: game.Player, level: str, number: int) -> list[tuple[str, ...]]:
    """Return the paths of episodes that are recorded action by action."""
    found = []
    for seed in range(number):
        playing = Recorded(BabyAIEnv(level, max_steps=40), seed, name=level)
        player.play(playing)
        reward = float(playing.status is game.EpisodeStatus.WON)
        mapped = BabyAIMapper().map(RunLog(question=playing.first, rounds=tuple(playing.rounds), reward=reward))
        assert isinstance(mapped, MappedPath), mapped
        assert BabyAIMapper().machine.legal(mapped.states)
        found.append(mapped.states)
    return found


def test_runs_of_the_reference_player_that_were_alike_share_a_path() -> None:
    assert set(paths(game.BotPlayer(), "GoToLocal", 30)) == {
        ("Start", "GoalKnown", "Approach", "Fulfilled", "End"),
        ("Start", "GoalUnknown", "LookAround", "GoalKnown", "Approach", "Fulfilled", "End"),
    }
    assert all("FetchKey" in states for states in paths(game.BotPlayer(), "UnlockLocal", 5))


@pytest.mark.parametrize("level", ["UnlockPickup", "FindObjS5", "PutNextLocal", "GoToSeq"])
def test_whoever_plays_takes_a_legal_path(level: str) -> None:
    assert len(paths(game.RandomPlayer(), level, 3)) == 3


def test_both_sides_of_a_pair_play_alike_until_advice_makes_a_difference(tasks: list[QueryTask]) -> None:
    playing = Playing(BabyAIScript(compliance=0.0))
    plain, deaf = played(tasks[:4], playing), played(tasks[:4], playing, LOOK)
    actions = [
        [[call.arguments for call in each.record.calls] for each in side if each.record] for side in (plain, deaf)
    ]
    assert actions[0] == actions[1]
    other = played(tasks[:4], playing, run="another")
    assert actions[0] != [[call.arguments for call in each.record.calls] for each in other if each.record]


def test_a_key_that_is_advised_opens_more_doors_than_trying() -> None:
    tasks = missions("test", 8, seed=3, levels=("UnlockLocal",), known=set())
    playing = Playing(BabyAIScript(compliance=1.0))
    advised, alone = played(tasks, playing, f"{LOOK}\n{KEY}"), played(tasks, playing)
    assert sum(each.reward or 0 for each in advised) > sum(each.reward or 0 for each in alone)


# all of it


SMALL = StudySettings(levels=("PickupLoc", "UnlockLocal"), seeds=1, build=3, samples=4, train=3, test=2, k=(1,))


def test_the_whole_pipeline_repeats_and_measures_what_was_not_learned_from() -> None:
    told: list[tuple[str, int, int]] = []
    found = run_study(SMALL, report=lambda *each: told.append(each))
    assert set(found.arms) == {"none", *(f"{arm}, k = 1" for arm in ("random", "similarity", "uniform", "trained"))}
    assert all([len(each) for each in arm.won] == [4] for arm in found.arms.values())
    assert {"trained, k = 1 - none", "trained, k = 1 - uniform", "trained, k = 1 - random"} <= set(found.gains)
    (seed,) = found.seeds
    assert len(seed.strategies) > 1
    assert all(each.startswith("When ") and "consider " in each for each in seed.strategies)
    assert 0 < seed.pairs <= 6
    assert seed.failures == {}
    assert seed.moved > 0
    assert any(change for _, change in seed.raised)
    assert told[0] == ("seed 0", 1, 3)
    again = run_study(SMALL)
    payload = found.payload()
    assert json.loads(json.dumps(payload)) | {"seconds": 0} == json.loads(json.dumps(again.payload())) | {"seconds": 0}


def test_a_model_plays_instead_of_the_script() -> None:
    def turn(messages: list[BaseMessage]) -> AIMessage | str:
        return "I cannot." if len(messages) > 4 else AIMessage("", tool_calls=[_call("turn left")])

    model = ScriptedChatModel(turn)
    found = run_study(StudySettings(levels=("PickupLoc",), seeds=1, build=1, samples=1, train=1, test=1, k=(1,)), model)
    assert found.policy == "scripted"
    assert found.arms["none"].score == 0
    assert "a locked one only while you carry the key" in model.prompts[0]  # the rules stand in its system prompt


def _call(action: str) -> dict[str, object]:
    return {"name": "act", "args": {"action": action}, "id": "1", "type": "tool_call"}


@pytest.mark.parametrize(
    ("given", "told"),
    [({"seeds": 0}, "seeds = 0"), ({"k": (0,)}, "k of 1"), ({"arms": ("best",)}, "no advice 'best'"), ({"compliance": 1.5}, "probability")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        StudySettings(**given)  # type: ignore[arg-type]
