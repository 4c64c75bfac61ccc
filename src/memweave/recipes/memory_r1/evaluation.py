"""The evaluation on whole dialogues of DialogWorld, for any manager and any answerer: `memweave eval world dialog`.

A manager remembers the dialogues once; then every question is asked at each budget on what it left. The score is that of the
recipes' final test (`dialogs.ask`), so the numbers of both can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Final, TypeVar

from memweave.agents.llm import ANSWERER, MANAGER, LLMPolicy, Role, as_answerer, as_manager
from memweave.agents.roles import Answerer, AnswerRequest, Manager, ManageRequest
from memweave.errors import ContextLengthError, InputError, SettingsError
from memweave.metrics import hierarchical_bootstrap
from memweave.models import chat_model, providers
from memweave.recipes.memory_r1 import dialogs, players
from memweave.recipes.memory_r1.training import MAX_TOKENS
from memweave.recipes.recipe import REPLY_SECONDS
from memweave.recipes.running import BASE, DIALOG_BASE
from memweave.serving.adapters import CONFIG as ADAPTER_FILE
from memweave.tracing import Sampling
from memweave.worlds.dialog_world import Dialogue, DialogWorld, Split

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from pydantic import SecretStr

    from memweave.memory_stores import MemoryBank
    from memweave.serving.local_server import LocalServer

R = TypeVar("R", ManageRequest, AnswerRequest)
Report = Callable[[str, int, int], object]
"""Called with a stage, how many of its dialogues are done, and how many there are."""

RAW_TURNS: Final = "raw-turns"
"""No manager: every turn is a memory, and BM25 finds it."""
TRAINED: Final = ("local", "vllm")
"""Providers of policies that were trained on their role, and get no instructions."""


@dataclass(frozen=True, kw_only=True)
class BudgetResult:
    """The answers at one budget."""

    score: float
    """Share of exact matches, in [0, 1]: of each dialogue, then their mean."""
    low: float
    high: float
    """95 % bootstrap interval of the score, over dialogues."""
    kinds: Mapping[str, float]
    """Kind of question -> share of its questions that were answered right."""
    right: Mapping[str, str]
    """Dialogue -> one `1` or `0` per question."""
    bank_size: float
    """Memories per dialogue, mean."""
    failed_turns: int
    """Turns whose reply could not be used; they changed nothing."""
    unanswered: int
    """Questions whose reply could not be used; they count as wrong."""
    f1: float
    """Mean token F1 over all questions."""
    lenient: float
    """Share of answers that contain all words of the gold answer."""
    words: float
    """Words per answer, mean."""
    seconds: float
    """Of the asking."""


@dataclass(frozen=True, kw_only=True)
class WorldResult:
    """What an evaluation found."""

    world: str
    manager: str
    answerer: str
    policy_versions: Mapping[str, str | None]
    """Role -> hash of the weights that played it; `None` for what has no weights here."""
    split: str
    seed: int
    temperature: float
    """Of the manager."""
    answerer_temperature: float
    dialogues: int
    questions: int
    questions_by_kind: Mapping[str, int]
    budgets: Mapping[int, BudgetResult]
    seconds: float

    def payload(self) -> dict[str, object]:
        """Return this as one JSON object; budgets are its keys in decimal."""
        budgets = {str(budget): asdict(found) for budget, found in self.budgets.items()}
        return {**asdict(self), "budgets": budgets}


def evaluate_world(
    manager: str = BASE,
    answerer: str = BASE,
    *,
    budgets: Sequence[int] = (dialogs.BUDGET,),
    split: Split = "test",
    number: int | None = None,
    temperature: float = 0.0,
    answerer_temperature: float | None = None,
    seed: int = 0,
    base: Path = DIALOG_BASE,
    api_key: SecretStr | None = None,
    concurrency: int | None = None,
    report: Report | None = None,
) -> WorldResult:
    """Let a manager remember the dialogues of DialogWorld once, and ask all their questions at each budget.

    manager: `oracle`, `always-add`, `always-noop`, `exact-key`, `rule`, `raw-turns`, `base`, the folder of a trained adapter or
    policy, or a specification for `chat_model`.  answerer: `oracle`, `rule`, `base`, a folder or a specification.
    budgets: memories that the answerer sees, each 2 to 2,000.  number: dialogues, by default all of the split.  temperature,
    seed: of every policy that samples; 0 is greedy.
    answerer_temperature: that of the answerer, where it differs.  base: policy that plays `base`, and that adapters belong to.
    concurrency: dialogues at a time, by default 64.

    Raises `SettingsError` for an unknown name or temperature, `InputError` for a budget, a number or a folder that cannot be,
    `ContextLengthError` when a prompt does not fit a policy, `UnavailableError` when a model does not answer.
    """
    began = time.perf_counter()
    for budget in budgets:
        dialogs.per_participant(budget)
    if not budgets:
        raise InputError("no budget is given; name one at least")
    heat = {"manager": temperature, "answerer": temperature if answerer_temperature is None else answerer_temperature}
    for role, value in heat.items():
        if not 0 <= value < float("inf"):
            raise SettingsError(f"the {role}'s temperature is 0 (greedy) or above, not {value}")
    world = DialogWorld()
    chosen = world.dialogues(split, number)
    tell = report or _silent
    with ExitStack() as opened:
        cast = _Cast(base, heat, seed, api_key, opened)
        remembers, answers = cast.manager(manager), cast.answerer(answerer)
        bank = opened.enter_context(dialogs.scratch_bank(dialogs.BM25 if remembers is None else None))
        failed = _remember(bank, world, chosen, remembers, concurrency, tell)
        found = {
            budget: _asked(bank, world, chosen, answers, budget, failed, concurrency, tell)
            for budget in dict.fromkeys(budgets)
        }
        versions = {"manager": remembers.policy_version if remembers else None, "answerer": answers.policy_version}
    return WorldResult(
        world="dialog",
        manager=manager,
        answerer=answerer,
        policy_versions=versions,
        split=split,
        seed=seed,
        temperature=temperature,
        answerer_temperature=heat["answerer"],
        dialogues=len(chosen),
        questions=sum(len(each.questions) for each in chosen),
        questions_by_kind={kind: len(marks) for kind, marks in _by_kind(chosen, None).items()},
        budgets=found,
        seconds=time.perf_counter() - began,
    )


def _remember(
    bank: MemoryBank,
    world: DialogWorld,
    dialogues: Sequence[Dialogue],
    manager: Manager | None,
    concurrency: int | None,
    tell: Report,
) -> int:
    """Fill the bank; return the turns that failed."""
    if manager is None:
        dialogs.raw_turns(dialogues).fill(bank)
        return 0
    tick = _counting(tell, f"{manager.name} remembers", len(dialogues))
    return dialogs.construct(bank, world, dialogues, manager, concurrency=concurrency or 64, tick=tick)


def _asked(
    bank: MemoryBank,
    world: DialogWorld,
    dialogues: Sequence[Dialogue],
    answerer: Answerer,
    budget: int,
    failed: int,
    concurrency: int | None,
    tell: Report,
) -> BudgetResult:
    began = time.perf_counter()
    tick = _counting(tell, f"{answerer.name} answers, budget {budget}", len(dialogues))
    try:
        outcome = dialogs.ask(
            bank, world, dialogues, answerer,
            budget=budget, failed_turns=failed, concurrency=concurrency or 64, tick=tick,
        )  # fmt: skip
    except ContextLengthError as error:
        raise ContextLengthError(f"with a budget of {budget}, {error}. Or take a smaller budget") from error
    interval = hierarchical_bootstrap(outcome.by_dialogue)
    kinds = {kind: fmean(marks) for kind, marks in _by_kind(dialogues, outcome.right).items()}
    return BudgetResult(
        score=interval.mean,
        low=interval.low,
        high=interval.high,
        kinds=kinds,
        seconds=time.perf_counter() - began,
        **asdict(outcome),
    )


def _by_kind(dialogues: Sequence[Dialogue], right: Mapping[str, str] | None) -> dict[str, list[float]]:
    """Return the marks (without `right`: zeros) of the questions of each kind that was asked, sorted by name."""
    found: dict[str, list[float]] = {}
    for dialogue in dialogues:
        marks = right[dialogue.id] if right else "0" * len(dialogue.questions)
        for question, mark in zip(dialogue.questions, marks, strict=True):
            found.setdefault(question.kind.value, []).append(float(mark))
    return dict(sorted(found.items()))


def _silent(stage: str, done: int, total: int) -> None:
    return None


def _counting(tell: Report, stage: str, total: int) -> Callable[[], object]:
    """Return a function that tells how often it was called. Only the loop of the episodes calls it."""
    done = 0
    tell(stage, done, total)

    def tick() -> None:
        nonlocal done
        done += 1
        tell(stage, done, total)

    return tick


class _Cast:
    """Finds who plays a role by name; keeps one server per base policy until `opened` closes."""

    def __init__(
        self, base: Path, heat: Mapping[str, float], seed: int, api_key: SecretStr | None, opened: ExitStack
    ) -> None:
        self._base = base
        self._heat = heat
        self._seed = seed
        self._api_key = api_key
        self._opened = opened
        self._servers: dict[tuple[Path, str, str], LocalServer] = {}

    def manager(self, name: str) -> Manager | None:
        """Return the manager called `name`; `None` for raw turns, which have none."""
        if name == RAW_TURNS:
            return None
        if name == "rule":
            return as_manager(name)
        return players.MANAGERS.get(name) or self._policy(name, MANAGER, [*players.MANAGERS, "rule", RAW_TURNS])

    def answerer(self, name: str) -> Answerer:
        """Return the answerer called `name`."""
        if name == "rule":
            return as_answerer(name)
        return players.ANSWERERS.get(name) or self._policy(name, ANSWERER, [*players.ANSWERERS, "rule"])

    def _policy(self, name: str, role: Role[R], known: Sequence[str]) -> LLMPolicy[R]:
        provider, colon, _ = name.partition(":")
        if name == BASE:
            model = self._served(role.name, self._base)
        elif colon and provider in providers():
            model = self._specified(name, role.name)
        elif Path(name).is_dir():
            model = self._trained(Path(name), role.name)
        else:
            raise SettingsError(
                f"no {role.name} is called {name!r}. There are: {', '.join(known)}, {BASE}, the folder of a trained policy, and "
                "models: local:FOLDER, vllm:NAME@URL, openai:NAME"
            )
        trained = not colon or provider in TRAINED or provider not in providers()
        return LLMPolicy(model, role, profile="none" if trained else "full", timeout=REPLY_SECONDS)

    def _trained(self, folder: Path, role: str) -> BaseChatModel:
        """Return the model of what a training run left: an adapter of the base, or a whole policy."""
        if (folder / ADAPTER_FILE).is_file():
            return self._served(role, self._base, folder)
        if (folder / "config.json").is_file():
            return self._served(role, folder)
        raise InputError(
            f"{folder} holds neither an adapter nor a policy. Give the folder that a run left, e.g. runs/RUN/policy"
        )

    def _specified(self, spec: str, role: str) -> BaseChatModel:
        provider, _, rest = spec.partition(":")
        if provider == "local":  # through our own server, which has a seed for every call
            from memweave.serving.local_spec import parse_local

            found = parse_local(rest)
            return self._served(role, found.base, found.adapter, found.device, found.dtype)
        return chat_model(
            spec,
            api_key=self._api_key,
            temperature=self._heat[role],
            max_tokens=MAX_TOKENS[role] if provider in TRAINED else None,
            timeout=REPLY_SECONDS,
            seed=self._seed if provider in TRAINED else None,
        )

    def _served(
        self, role: str, base: Path, adapter: Path | None = None, device: str = "cpu", dtype: str = "float32"
    ) -> BaseChatModel:
        """Return the model of a policy in this process."""
        if not base.is_dir():
            make = ", or make it: memweave pretrain" if base == DIALOG_BASE else ""
            raise InputError(f"the base policy {base} does not exist. Name one with --base FOLDER{make}")
        from memweave.serving.local_server import LocalServer

        key = (base.resolve(), device, dtype)
        server = self._servers.get(key)
        if server is None:
            server = self._opened.enter_context(LocalServer(base, device=device, dtype=dtype))
            self._servers[key] = server
        if adapter is not None:
            server.publish(adapter, run="eval", role=role)
        sampling = Sampling(temperature=self._heat[role], max_tokens=MAX_TOKENS[role], seed=self._seed)
        return server.chat_model(role if adapter else BASE, sampling=sampling, timeout=REPLY_SECONDS)
