"""Playing: how an episode ends, agents with the tool `act`, and the evaluation on BabyAI."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from memweave.errors import InputError, SettingsError, UnavailableError
from memweave.recipes import agent_player
from memweave.recipes.agent_player import AgentPlayer, act_tool
from memweave.recipes.game import BotPlayer, Episode, EpisodeStatus, Game, Move, RandomPlayer, play
from memweave.recipes.play_scores import LevelResult, PlayResult
from memweave.recipes.playing import AgentName, evaluate, evaluate_babyai
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import TraceStatus, TraceStore
from memweave.worlds.babyai import LEVELS, BabyAIEnv
from memweave.worlds.text_env import GymTextEnv, Step

pytest.importorskip("minigrid")

GO_TO_OBJ = ("go forward", "go forward", "turn right")
"""What wins GoToObj with seed 0."""


class Steps:
    """A hall with the goal `length` steps ahead and a hole behind; reward 1 at the goal."""

    def __init__(self, length: int = 3) -> None:
        self._length = length
        self.threads: set[str] = set()

    def reset(self, *, seed: int) -> tuple[int, dict[str, Any]]:
        self._at = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if action == 7:
            raise ZeroDivisionError("the floor gave way")
        self._at += action
        return self._at, float(self._at == self._length), self._at in (self._length, -1), False, {}


def hall(**options: Any) -> GymTextEnv:
    actions = {"ahead": 1, "back": -1, "break": 7}
    return GymTextEnv(Steps(), actions, lambda at, env: f"You are {at} steps in.", **options)


class Acts:
    """A player that does these actions and leaves, or fails then."""

    def __init__(self, *actions: str, fails: Exception | None = None) -> None:
        self.actions, self.fails, self.told = actions, fails, list[str]()

    def play(self, game: Game) -> None:
        self.told = [game.act(action) for action in self.actions]
        if self.fails is not None:
            raise self.fails


# an episode


@pytest.mark.parametrize(
    ("actions", "status", "reward"),
    [
        (["ahead"] * 3, EpisodeStatus.WON, 1.0),
        (["back"], EpisodeStatus.LOST, 0.0),
        (["ahead", "back"] * 2, EpisodeStatus.OUT_OF_STEPS, 0.0),
        (["ahead"], EpisodeStatus.GAVE_UP, 0.0),
        ([], EpisodeStatus.GAVE_UP, 0.0),
    ],
)
def test_how_an_episode_ends(actions: list[str], status: EpisodeStatus, reward: float) -> None:
    episode = play(hall(max_steps=4), Acts(*actions), 0)
    assert (episode.status, episode.reward, episode.steps) == (status, reward, len(actions))
    assert episode.won == (status == "won")
    assert episode.error is None
    assert episode.seconds > 0


def test_an_episode_keeps_what_was_said_and_done() -> None:
    episode = play(hall(), Acts("ahead", "fly", "back"), 5)
    assert (episode.seed, episode.first, episode.invalid) == (5, "You are 0 steps in.", 1)
    unknown = "There is no action 'fly', so nothing happened. The actions are: ahead, back, break."
    assert episode.moves == (
        Move("ahead", Step("You are 1 steps in.")),
        Move("fly", Step(unknown, ok=False)),
        Move("back", Step("You are 0 steps in.")),
    )


@pytest.mark.parametrize(
    ("actions", "says"),
    [
        (["ahead"] * 3, "you reached the goal"),
        (["back"], "you missed the goal"),
        (["ahead", "back"] * 2, "your steps are used up"),
    ],
)
def test_the_player_is_told_of_the_end_and_what_it_does_then_does_not_count(actions: list[str], says: str) -> None:
    player = Acts(*actions, "back", "ahead")
    episode = play(hall(max_steps=4), player, 0)
    assert episode.steps == len(actions)
    assert all("over" not in told for told in player.told[: len(actions) - 1])
    end = f"The episode is over: {says}. Do nothing more."
    assert player.told[len(actions) - 1].endswith(f"\n\n{end}")
    assert player.told[len(actions) :] == [end, end]


def test_a_player_that_fails_ends_its_episode_and_one_that_had_won_has_won() -> None:
    failed = play(hall(), Acts("ahead", fails=KeyError("x")), 0)
    assert (failed.status, failed.error, failed.steps) == (EpisodeStatus.FAILED, "KeyError: 'x'", 1)
    won = play(hall(), Acts("ahead", "ahead", "ahead", fails=KeyError("x")), 0)
    assert (won.status, won.error) == (EpisodeStatus.WON, "KeyError: 'x'")


def test_a_fault_of_the_environment_is_raised_whatever_the_player_makes_of_it() -> None:
    class Swallows(Acts):
        def play(self, game: Game) -> None:
            with pytest.raises(ZeroDivisionError):
                game.act("break")

    for player in (Acts("break"), Swallows()):
        with pytest.raises(ZeroDivisionError, match="the floor gave way"):
            play(hall(), player, 0)


def test_what_is_wrong_outside_the_player_is_raised() -> None:
    with pytest.raises(UnavailableError, match="gone"):
        play(hall(), Acts(fails=UnavailableError("gone")), 0)


# players without a model


def test_the_bot_wins_and_says_what_it_cannot() -> None:
    assert all(play(BabyAIEnv(level), BotPlayer(), 3).won for level in LEVELS)
    lost = play(BabyAIEnv("KeyInBox"), BotPlayer(), 0)
    assert lost.status is EpisodeStatus.FAILED
    assert "finds no way through BabyAI-KeyInBox-v0" in (lost.error or "")
    other = play(hall(), BotPlayer(), 0)
    assert other.error == "SettingsError: the bot plays BabyAI only, not GymTextEnv"


def test_chance_is_seeded() -> None:
    def moves(player_seed: int, seed: int) -> list[str]:
        episode = play(BabyAIEnv("PutNextLocal"), RandomPlayer(player_seed), seed, name="x")
        return [move.action for move in episode.moves]

    assert moves(1, 2) == moves(1, 2)
    assert moves(1, 2) != moves(2, 2)
    assert moves(1, 2) != moves(1, 3)


# agents


def call(*actions: str) -> AIMessage:
    calls = [{"name": "act", "args": {"action": a}, "id": f"c{i}", "type": "tool_call"} for i, a in enumerate(actions)]
    return AIMessage("", tool_calls=calls)


def plain_agent(model: BaseChatModel) -> Any:
    return lambda tools: create_agent(model, tools)


def test_an_agent_of_anyones_wins_through_the_tool() -> None:
    model = ScriptedChatModel([*map(call, GO_TO_OBJ), "I am there."])
    episode = play(BabyAIEnv("GoToObj"), AgentPlayer(plain_agent(model)), 0)
    assert episode.won
    assert [move.action for move in episode.moves] == list(GO_TO_OBJ)
    first, second, *_, last = model.calls
    asked = first[-1].text
    assert asked.startswith("Your mission: go to the green key.")
    assert asked.endswith("The actions are: turn left, turn right, go forward, pick up, drop, toggle.")
    assert episode.first in asked
    assert second[-1].text.startswith("You face west. You carry nothing. A green key is 1 step ahead")
    assert isinstance(last[-1], ToolMessage)
    assert last[-1].text.endswith("The episode is over: you reached the goal. Do nothing more.")


def test_calls_of_one_reply_are_done_in_their_order() -> None:
    class Slow(Steps):
        def step(self, action: int) -> Any:
            time.sleep(0.01 if action > 0 else 0.0)  # the first of two would come last if both ran at once
            return super().step(action)

    env = GymTextEnv(Slow(), {"ahead": 1, "back": -1}, lambda at, env: str(at))
    model = ScriptedChatModel([call("ahead", "back", "ahead", "ahead", "ahead"), "done"])
    episode = play(env, AgentPlayer(plain_agent(model)), 0)
    assert [move.step.text for move in episode.moves] == ["1", "0", "1", "2", "3"]
    assert episode.won


def test_an_agent_that_never_acts_gave_up() -> None:
    episode = play(hall(), AgentPlayer(plain_agent(ScriptedChatModel(["I would rather not."]))), 0)
    assert (episode.status, episode.steps, episode.error) == (EpisodeStatus.GAVE_UP, 0, None)


def test_an_agent_that_does_not_stop_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    acts = ScriptedChatModel(lambda messages: call("ahead"))
    episode = play(hall(), AgentPlayer(plain_agent(acts)), 0)
    assert (episode.won, episode.steps) == (True, 3)
    assert "goes on after the end" in (episode.error or "")
    assert len(acts.calls) == 7

    monkeypatch.setattr(agent_player, "GRAPH_STEPS", 40)
    wrong = AIMessage("", tool_calls=[{"name": "nothing", "args": {}, "id": "n", "type": "tool_call"}])
    loops = ScriptedChatModel(lambda messages: wrong)
    episode = play(hall(), AgentPlayer(plain_agent(loops)), 0)
    assert (episode.status, episode.steps) == (EpisodeStatus.FAILED, 0)
    assert "GraphRecursionError" in (episode.error or "")


@pytest.mark.parametrize("error", [ConnectionError("refused"), TimeoutError(), UnavailableError("gone")])
def test_a_model_that_is_away_is_no_failure_of_the_agent(error: Exception) -> None:
    model = ScriptedChatModel([error])
    with pytest.raises(UnavailableError):
        play(hall(), AgentPlayer(plain_agent(model), model=model), 0)


def test_without_its_model_a_connection_error_is_known_all_the_same() -> None:
    model = ScriptedChatModel([ConnectionError("refused")])
    with pytest.raises(UnavailableError, match="cannot be reached: ConnectionError: refused"):
        play(hall(), AgentPlayer(plain_agent(model)), 0)


def test_an_agent_that_fails_is_data() -> None:
    model = ScriptedChatModel([call("ahead"), ValueError("no idea")])
    episode = play(hall(), AgentPlayer(plain_agent(model), model=model), 0)
    assert (episode.status, episode.steps) == (EpisodeStatus.FAILED, 1)
    assert episode.error == "ValueError: no idea"


def test_every_episode_is_a_trace_with_its_score(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        for seed, script in ((0, [call("ahead", "ahead", "ahead"), "done"]), (1, ["no"]), (2, [ValueError("x")])):
            agent = plain_agent(ScriptedChatModel(cast(Any, script)))
            play(hall(), AgentPlayer(agent, store=store, run="r"), seed, name="hall")
        traces = {trace.group: trace for trace in store.query(run="r")}
    assert traces.keys() == {"hall@0", "hall@1", "hall@2"}
    won, gave_up, failed = (traces[f"hall@{seed}"] for seed in range(3))
    assert won.score is not None
    assert gave_up.score is not None
    assert (won.score.value, won.score.parts) == (1.0, {"won": 1.0})
    assert (gave_up.score.value, gave_up.score.parts) == (0.0, {"won": 0.0})
    assert (failed.status, failed.score) == (TraceStatus.FAILED, None)
    assert len(won.generations) == 2
    assert won.replica == 0


def test_the_tool_says_what_there_is_to_do() -> None:
    tool = act_tool(Game(hall(), 0))
    assert tool.name == "act"
    assert "ahead, back" in tool.description
    assert tool.args.keys() == {"action"}
    assert tool.invoke({"action": "ahead"}) == "You are 1 steps in."


# evaluations


def test_everyone_meets_the_same_episodes_and_seeds_bring_others() -> None:
    seen: list[tuple[str, int]] = []

    class Looks:
        def play(self, game: Game) -> None:
            seen.append((game.name, game.seed))

    played = evaluate(lambda level: hall(), [Looks(), Looks()], ["a", "b", "a"], episodes=2)
    assert sorted(seen) == [(level, seed) for level in "ab" for seed in (0, 1, 100_000, 100_001)]
    assert {level: [[each.seed for each in seed] for seed in by_seed] for level, by_seed in played.items()} == {
        "a": [[0, 1], [100_000, 100_001]],
        "b": [[0, 1], [100_000, 100_001]],
    }


def test_episodes_at_a_time_change_nothing_but_the_time() -> None:
    def moves(concurrency: int) -> list[list[str]]:
        players = [RandomPlayer(0), RandomPlayer(1)]
        played = evaluate(BabyAIEnv, players, ["GoToObj", "GoToLocal"], episodes=4, concurrency=concurrency)
        return [[m.action for m in each.moves] for by in played.values() for seed in by for each in seed]

    assert moves(1) == moves(6)


def test_a_player_of_many_episodes_is_asked_at_once() -> None:
    together = threading.Barrier(3, timeout=20)

    class Meets:
        def play(self, game: Game) -> None:
            together.wait()

    assert len(evaluate(lambda level: hall(), [Meets()], ["a"], episodes=3, concurrency=3)["a"][0]) == 3


def test_what_stops_one_episode_stops_the_evaluation() -> None:
    begun: list[int] = []

    class Away:
        def play(self, game: Game) -> None:
            begun.append(game.seed)
            raise UnavailableError("gone")

    with pytest.raises(UnavailableError):
        evaluate(lambda level: hall(), [Away()], ["a", "b"], episodes=50)
    assert len(begun) < 50


def episodes(marks: str) -> list[Episode]:
    return [
        Episode(
            seed=0, status=EpisodeStatus.WON if mark == "1" else EpisodeStatus.LOST, reward=float(mark), first="",
            moves=(Move("a", Step("")), Move("b", Step("", ok=False))), seconds=1.0, error="E" if mark == "0" else None,
        )
        for mark in marks
    ]  # fmt: skip


def test_what_a_level_comes_to() -> None:
    found = LevelResult.of([episodes("1101"), episodes("0001")])
    assert (found.score, found.reward, found.steps, found.invalid) == (0.5, 0.5, 2.0, 8)
    assert 0 <= found.low < 0.5 < found.high <= 1
    assert (found.won, found.errors) == (("1101", "0001"), ("E",))
    assert found.ended == {"won": 4, "lost": 4, "out_of_steps": 0, "gave_up": 0, "failed": 0}


def test_the_score_is_the_mean_of_the_levels_which_are_no_sample() -> None:
    """Levels that differ as night and day do not make the interval wide: they are always the same."""
    played = {"easy": [episodes("1111"), episodes("1111")], "hard": [episodes("0000"), episodes("0000")]}
    found = PlayResult.of(played, world="w", agent="a", max_steps=3, seconds=1.0)
    assert (found.score, found.low, found.high) == (0.5, 0.5, 0.5)
    assert (found.episodes, found.seeds) == (4, 2)
    spread = PlayResult.of({"one": [episodes("10")]}, world="w", agent="a", max_steps=3, seconds=1.0)
    assert (spread.low, spread.score, spread.high) == (0.0, 0.5, 1.0)


def test_bot_and_chance_on_babyai() -> None:
    told: list[tuple[str, int, int]] = []
    bot = evaluate_babyai("bot", episodes=3, seeds=2, report=lambda *each: told.append(each))
    chance, again = (evaluate_babyai("random", episodes=3, seeds=2) for _ in range(2))
    assert (bot.world, bot.agent, bot.policy, bot.run) == ("babyai", "bot", None, None)
    assert tuple(bot.levels) == LEVELS
    assert bot.score == 1.0
    assert chance.score < 0.4
    assert {level: at.won for level, at in chance.levels.items()} == {
        level: at.won for level, at in again.levels.items()
    }
    assert told[:2] == [(LEVELS[0], 1, 6), (LEVELS[0], 2, 6)]
    assert told[-1] == (LEVELS[-1], 6, 6)
    assert bot.payload()["episodes"] == 3


def scripted(messages: list[BaseMessage]) -> AIMessage | str:
    """Win GoToObj with seed 0; forget everything else."""
    done = sum(isinstance(message, ToolMessage) for message in messages)
    return call(GO_TO_OBJ[done]) if done < len(GO_TO_OBJ) else "I am there."


@pytest.mark.parametrize("variant", ["full", "rag", "none"])
def test_agemems_agent_plays_with_its_memory_tools(variant: AgentName, tmp_path: Path) -> None:
    model = ScriptedChatModel(scripted)
    found = evaluate_babyai(
        variant, model, ["GoToObj"], episodes=1, seeds=1, embedding="hashing", store=tmp_path / "traces.db"
    )
    assert (found.score, found.policy, found.agent) == (1.0, "scripted", variant)
    assert found.levels["BabyAI-GoToObj-v0"].steps == 3
    with TraceStore(tmp_path / "traces.db") as store:
        (trace,) = store.query(run=found.run)
    assert trace.score is not None
    assert trace.score.value == pytest.approx(found.levels["BabyAI-GoToObj-v0"].reward)
    assert (trace.group, trace.graph) == ("BabyAI-GoToObj-v0@0", "agemem")


def test_a_memory_is_the_episodes_own() -> None:
    """What one episode stored, the next does not find."""
    found: list[str] = []

    def remembers(messages: list[BaseMessage]) -> AIMessage | str:
        results = [message.text for message in messages if isinstance(message, ToolMessage)]
        if not results:
            args: dict[str, Any] = {"query": "the way"}
            return AIMessage("", tool_calls=[{"name": "Retrieve_memory", "args": args, "id": "r", "type": "tool_call"}])
        if len(results) == 1:
            found.append(results[0])
            args = {"content": "The way is north."}
            return AIMessage("", tool_calls=[{"name": "Add_memory", "args": args, "id": "a", "type": "tool_call"}])
        return "done"

    evaluate_babyai(
        "full", ScriptedChatModel(remembers), ["GoToObj"], episodes=3, seeds=2, embedding="hashing", concurrency=1
    )
    assert len(found) == 6
    assert not any("north" in text for text in found)


def test_an_agent_that_talks_only_gets_nothing_and_is_no_error() -> None:
    found = evaluate_babyai(
        "none", ScriptedChatModel(lambda messages: "Hm."), ["GoToObj"], episodes=2, embedding="hashing"
    )
    at = found.levels["BabyAI-GoToObj-v0"]
    assert (found.score, at.ended["gave_up"], at.steps) == (0.0, 2, 0.0)


def test_a_model_that_is_away_is_an_error_and_no_score() -> None:
    model = ScriptedChatModel(lambda messages: ConnectionError("refused"))
    with pytest.raises(UnavailableError, match="'scripted' cannot be reached"):
        evaluate_babyai("full", model, ["GoToObj"], episodes=2, embedding="hashing")


def test_any_player_can_be_measured() -> None:
    found = evaluate_babyai(Acts(*GO_TO_OBJ), levels=["GoToObj"], episodes=2)
    assert (found.agent, found.levels["BabyAI-GoToObj-v0"].won) == ("Acts", ("10",))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"agent": "robot"}, "no agent is called 'robot'. There are: bot, random, full, rag, none"),
        ({"agent": "full"}, "'full' needs a model"),
        ({"agent": "bot", "policy": "openai:x"}, "'bot' plays without a model"),
        ({"agent": "random", "store": Path("t.db")}, "'random' calls no model, so there is nothing to trace"),
        ({"agent": "full", "policy": "openai:x"}, "MEMWEAVE_MODEL_API_KEY"),
        ({"max_steps": 0}, "max_steps = 0"),
    ],
)
def test_what_does_not_go_together_is_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        evaluate_babyai(**asked)


def test_numbers_that_cannot_be_are_refused() -> None:
    for wrong in ({"episodes": 0}, {"episodes": 100_001}, {"seeds": 0}, {"levels": []}, {"concurrency": 0}):
        with pytest.raises(InputError, match="at least one"):
            evaluate_babyai(**cast(Any, {"agent": "bot", **wrong}))
    with pytest.raises(InputError, match="no level 'GoToMoon'"):
        evaluate_babyai("bot", levels=["GoToObj", "GoToMoon"])


def test_the_bots_own_error_does_not_end_an_evaluation() -> None:
    found = evaluate_babyai("bot", levels=["KeyInBox"], episodes=2)
    at = found.levels["BabyAI-KeyInBox-v0"]
    assert (at.ended["failed"], len(at.errors)) == (2, 1)


# the page


def test_the_page_tells_the_truth(root: Path) -> None:
    page = (root / "docs/text-environments.md").read_text()
    episode = play(BabyAIEnv("GoToObj"), BotPlayer(), 0)
    moves = "\n".join(f"> {move.action}\n{move.step.text}" for move in episode.moves)
    assert f"```text\n{episode.first}\n{moves}\n```" in page
    example = root / "examples/text_environment.py"
    program = example.read_text()
    assert len(program.splitlines()) == 58 < 60
    assert "with the game itself in 58 lines" in page
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        assert block in program
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=120, check=True)
    assert f"```text\n{done.stdout}```" in page
