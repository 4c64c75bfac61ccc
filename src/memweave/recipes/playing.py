"""How well a player does in a text environment, over levels, episodes and seeds: `memweave eval world babyai`.

The score is the share of episodes that were won. An episode is what an integer stands for, so every player meets the same ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Literal, cast, get_args

from memweave.errors import InputError, SettingsError
from memweave.models import chat_model, model_name
from memweave.recipes.game import BotPlayer, Episode, Player, RandomPlayer, play
from memweave.recipes.play_scores import LevelResult, Played, PlayResult
from memweave.recipes.recipe import REPLY_SECONDS
from memweave.records import Scope, new_id
from memweave.tracing import TraceStore
from memweave.worlds.babyai import LEVELS, BabyAIEnv, level_id
from memweave.worlds.text_env import MAX_STEPS, TextEnv

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from pydantic import SecretStr

    from memweave.memory_stores import MemoryBank
    from memweave.recipes.agent_player import AgentFactory

__all__ = ["AgentName", "LevelResult", "PlayResult", "evaluate", "evaluate_babyai", "play"]

AgentName = Literal["bot", "random", "full", "rag", "none"]
"""Who plays: two players without a model, or AgeMem's agent with all its memory tools, those of long-term memory, or none."""
AGENTS: Final = get_args(AgentName)
WITHOUT_MODEL: Final = ("bot", "random")
EPISODES: Final = 20
MOST: Final = 100_000
"""Episodes of one seed; those of the next seed begin there."""
CONCURRENCY: Final = 8
REPLY_TOKENS: Final = 512
"""Most tokens of a reply, for policies of ours; hosted models have their own limits."""
TRAINED: Final = ("local", "vllm")

Report = Callable[[str, int, int], object]
"""Called with a level, how many of its episodes are done, and how many there are."""


def evaluate(
    make: Callable[[str], TextEnv],
    players: Sequence[Player],
    levels: Sequence[str],
    *,
    episodes: int = EPISODES,
    concurrency: int = 1,
    report: Report | None = None,
) -> Played:
    """Play `episodes` of every level once per player and return them: level -> player -> episodes, in order.

    make: level -> an environment; called for every episode.  players: one per seed. Player number s plays the episodes
    s x 100,000 and up, on every level.  concurrency: episodes at a time.

    Raises `InputError` for a number that cannot be, and what `play` raises; episodes that have begun then end first.
    """
    if not 1 <= episodes <= MOST or concurrency < 1 or not players or not levels:
        raise InputError(
            f"{len(levels)} levels, {len(players)} seeds, {episodes} episodes, {concurrency} at a time: give at least one of "
            f"each, and at most {MOST:,} episodes"
        )
    found: Played = {}
    with ThreadPoolExecutor(concurrency, "memweave-play") as pool:
        for level in dict.fromkeys(levels):
            waiting = [
                [pool.submit(_played, make, level, player, seed * MOST + number) for number in range(episodes)]
                for seed, player in enumerate(players)
            ]
            done = count(1)
            try:
                found[level] = []
                for futures in waiting:
                    found[level].append([])
                    for future in futures:
                        found[level][-1].append(future.result())
                        if report is not None:
                            report(level, next(done), episodes * len(players))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return found


def _played(make: Callable[[str], TextEnv], level: str, player: Player, seed: int) -> Episode:
    return play(make(level), player, seed, name=level)


def evaluate_babyai(
    agent: AgentName | Player = "bot",
    policy: str | BaseChatModel | None = None,
    levels: Sequence[str] = LEVELS,
    *,
    episodes: int = EPISODES,
    seeds: int = 1,
    max_steps: int = MAX_STEPS,
    temperature: float = 0.0,
    embedding: str | None = None,
    store: Path | None = None,
    api_key: SecretStr | None = None,
    concurrency: int | None = None,
    report: Report | None = None,
) -> PlayResult:
    """Measure a player on BabyAI.

    agent: `bot`, `random`; `full`, `rag`, `none` (AgeMem's agent around `policy`); or any player.  policy: a specification
    for `chat_model`, or a chat model.  seeds: how often everything is done, with other episodes and, for policies of ours,
    other samples.  max_steps: steps of an episode; a level may allow fewer.  temperature: of a policy given by name.
    embedding: of the memory, which is empty when an episode begins.  store: file that gets a trace of every episode.
    concurrency: episodes at a time, by default 8 where a model plays.

    Raises `SettingsError` for who does not go with what, `InputError` for a level or a number that cannot be,
    `NotInstalledError` without minigrid, `UnavailableError` when the model does not answer.
    """
    began = time.perf_counter()
    _check(agent, policy, store)
    if seeds < 1:
        raise InputError(f"{seeds} seeds: give at least one")
    names = [level_id(level) for level in levels]
    run = f"babyai-{agent}-{str(new_id())[-8:]}" if store is not None else None
    model: BaseChatModel | None = None
    with ExitStack() as opened:
        players: list[Player] = []
        kept = opened.enter_context(TraceStore(store)) if store is not None else None
        if agent in WITHOUT_MODEL:
            players = [BotPlayer() if agent == "bot" else RandomPlayer(seed) for seed in range(seeds)]
        elif not isinstance(agent, str):
            players = [agent] * seeds
        else:
            from memweave.recipes.agent_player import AgentPlayer

            bank = opened.enter_context(_scratch_bank(embedding))
            for seed in range(seeds):
                model = _model(policy, temperature, seed, api_key)
                factory = _memory_agent(model, bank, agent, seed, max_steps)
                players.append(AgentPlayer(factory, model=model, store=kept, run=run or "babyai"))
        played = evaluate(
            lambda level: BabyAIEnv(level, max_steps=max_steps),
            players,
            names,
            episodes=episodes,
            concurrency=concurrency if concurrency is not None else 1 if model is None else CONCURRENCY,
            report=report,
        )
    version = getattr(model, "policy_version", None)
    return PlayResult.of(
        played,
        world="babyai",
        agent=agent if isinstance(agent, str) else type(agent).__name__,
        policy=None if model is None else policy if isinstance(policy, str) else model_name(model),
        policy_version=version if isinstance(version, str) else None,
        max_steps=max_steps,
        run=run,
        seconds=time.perf_counter() - began,
    )


def _check(agent: str | Player, policy: object, store: Path | None) -> None:
    """Raise `SettingsError` for what does not go together."""
    if isinstance(agent, str) and agent not in AGENTS:
        raise SettingsError(f"no agent is called {agent!r}. There are: {', '.join(AGENTS)}")
    plays_a_model = isinstance(agent, str) and agent not in WITHOUT_MODEL
    if plays_a_model and policy is None:
        raise SettingsError(f"the agent {agent!r} needs a model: name one as the policy, e.g. openai:gpt-4.1-mini")
    if not plays_a_model and policy is not None:
        raise SettingsError(f"the agent {agent!r} plays without a model; leave the policy out")
    if not plays_a_model and store is not None:
        raise SettingsError(f"the agent {agent!r} calls no model, so there is nothing to trace; leave the store out")


def _model(
    policy: str | BaseChatModel | None, temperature: float, seed: int, api_key: SecretStr | None
) -> BaseChatModel:
    if not isinstance(policy, str):
        return cast("BaseChatModel", policy)
    ours = policy.partition(":")[0] in TRAINED
    return chat_model(
        policy,
        api_key=api_key,
        temperature=temperature,
        max_tokens=REPLY_TOKENS if ours else None,
        timeout=REPLY_SECONDS,
        seed=seed if ours else None,
    )


def _memory_agent(model: BaseChatModel, bank: MemoryBank, variant: str, seed: int, max_steps: int) -> AgentFactory:
    """Return what makes AgeMem's agent; each one that it makes has a memory of its own, empty at first."""
    from memweave.graphs.agemem import create_agemem_agent
    from memweave.graphs.agemem_state import Variant

    numbers = count()
    return lambda tools: create_agemem_agent(
        model,
        bank,
        tools=tools,
        scope=Scope(user=f"seed-{seed}-episode-{next(numbers)}"),
        variant=cast("Variant", variant),
        max_rounds=2 * max_steps + 2,  # as many to remember and think as to act
        timeout=REPLY_SECONDS,
    )


@contextmanager
def _scratch_bank(embedding: str | None) -> Iterator[MemoryBank]:
    """Open an empty bank that is gone afterwards."""
    from memweave.memory_stores import open_bank

    with TemporaryDirectory(prefix="memweave-play-") as folder, open_bank(folder, embedding=embedding) as bank:
        yield bank
