"""One episode of a text environment: the game, who plays it, and what is kept of it.

    episode = play(BabyAIEnv("GoToObj"), RandomPlayer(), seed=7)
    episode.status, episode.reward, episode.steps

What a player does wrong, its failure included, is how its episode ended. A fault of the environment is an error, and so is a
model that cannot be reached: neither says anything about the player.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from memweave.errors import (
    DataFolderError,
    NotInstalledError,
    OperationError,
    SettingsError,
    StorageFullError,
    UnavailableError,
)
from memweave.tracing.reading import error_line
from memweave.worlds.babyai import BabyAIEnv
from memweave.worlds.text_env import Step, TextEnv

STOPS: Final = (DataFolderError, NotInstalledError, StorageFullError, UnavailableError)
"""What ends an evaluation and not only an episode: it would fail the next one too, whoever plays."""

ENCORES: Final = 3
"""Actions after the end to which a player is told so again; one more is an error, so that no model is asked for nothing."""


class EpisodeStatus(StrEnum):
    """How an episode ended."""

    WON = "won"
    """The environment ended it, with a reward above 0 in all."""
    LOST = "lost"
    """The environment ended it, without."""
    OUT_OF_STEPS = "out_of_steps"
    """A cap ended it."""
    GAVE_UP = "gave_up"
    """The player stopped before it was over."""
    FAILED = "failed"
    """The player raised an error before it was over."""


_LAST_WORDS: Final = {
    EpisodeStatus.WON: "you reached the goal",
    EpisodeStatus.LOST: "you missed the goal",
    EpisodeStatus.OUT_OF_STEPS: "your steps are used up",
}


@dataclass(frozen=True)
class Move:
    """An action as the player named it, and what came of it."""

    action: str
    step: Step


@dataclass(frozen=True, kw_only=True)
class Episode:
    """What is kept of an episode."""

    seed: int
    status: EpisodeStatus
    reward: float
    """Sum over its steps."""
    first: str
    """The task and the first observation."""
    moves: tuple[Move, ...]
    seconds: float
    error: str | None = None
    """What the player failed with; it may have won before."""

    @property
    def won(self) -> bool:
        """Return whether the goal was reached."""
        return self.status is EpisodeStatus.WON

    @property
    def steps(self) -> int:
        """Return how many steps were taken, those that were no action included."""
        return len(self.moves)

    @property
    def invalid(self) -> int:
        """Return how many steps were no action that the environment knows."""
        return sum(not move.step.ok for move in self.moves)


class Game:
    """An episode in progress, as its player sees it. Safe under threads: actions are done one after the other.

    name: of the level, for players and traces that tell levels apart.
    """

    def __init__(self, env: TextEnv, seed: int, *, name: str = "") -> None:
        self.env = env
        self.seed = seed
        self.name = name or type(env).__name__
        self.first = env.reset(seed)
        self.over = False
        self.fault: Exception | None = None
        """What the environment failed with."""
        self._moves: list[Move] = []
        self._encores = 0
        self._lock = threading.Lock()
        self._began = time.perf_counter()

    @property
    def actions(self) -> tuple[str, ...]:
        """Return the names of the actions."""
        return self.env.actions

    @property
    def reward(self) -> float:
        """Return the rewards so far."""
        return sum(move.step.reward for move in self._moves)

    @property
    def status(self) -> EpisodeStatus:
        """Return how the episode ended; while it goes on, how it would if the player left now."""
        if not self.over:
            return EpisodeStatus.GAVE_UP
        if self._moves[-1].step.cut:
            return EpisodeStatus.OUT_OF_STEPS
        return EpisodeStatus.WON if self.reward > 0 else EpisodeStatus.LOST

    def act(self, action: str) -> str:
        """Do one action; return what is seen then, and whether that was the end. After the end nothing is done.

        Raises what the environment fails with, and `OperationError` for a player that does not stop after the end.
        """
        with self._lock:
            if self.over:
                self._encores += 1
                if self._encores > ENCORES:
                    raise OperationError("the player goes on after the end of the episode. It has to stop when told so")
                return self._end()
            try:
                step = self.env.step(action)
            except Exception as error:
                self.fault = error
                raise
            self._moves.append(Move(action, step))
            self.over = step.done
            return f"{step.text}\n\n{self._end()}" if step.done else step.text

    def episode(self, error: Exception | None = None) -> Episode:
        """Return what came of it. error: what the player failed with."""
        failed = error is not None and not self.over
        return Episode(
            seed=self.seed,
            status=EpisodeStatus.FAILED if failed else self.status,
            reward=self.reward,
            first=self.first,
            moves=tuple(self._moves),
            seconds=time.perf_counter() - self._began,
            error=None if error is None else error_line(error),
        )

    def _end(self) -> str:
        return f"The episode is over: {_LAST_WORDS[self.status]}. Do nothing more."


class Player(Protocol):
    """Plays games, several at once if they are evaluated so."""

    def play(self, game: Game) -> None:
        """Act until the game is over, or give up."""


class RandomPlayer:
    """Takes any action with equal probability. Equal seeds play equal games."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def play(self, game: Game) -> None:
        """Act until the game is over."""
        chance = random.Random(f"{self._seed}/{game.name}/{game.seed}")
        while not game.over:
            game.act(chance.choice(game.actions))


class BotPlayer:
    """BabyAI's reference player."""

    def play(self, game: Game) -> None:
        """Act as its plan says; give up where it thinks that nothing is left to do. Raises what `Bot` raises."""
        if not isinstance(game.env, BabyAIEnv):
            raise SettingsError(f"the bot plays BabyAI only, not {game.name}")
        bot = game.env.bot()
        while not game.over and (action := bot.action()) is not None:
            game.act(action)


def play(env: TextEnv, player: Player, seed: int, *, name: str = "") -> Episode:
    """Let `player` play the episode of `seed` and return what came of it.

    Raises what the environment fails with, and of the player's errors those that are not its own: `UnavailableError`,
    `NotInstalledError`, `StorageFullError`, `DataFolderError`.
    """
    game = Game(env, seed, name=name)
    try:
        player.play(game)
    except STOPS:
        raise
    except Exception as error:
        if game.fault is not None:
            raise game.fault from None
        return game.episode(error)
    if game.fault is not None:  # the player swallowed it
        raise game.fault
    return game.episode()
