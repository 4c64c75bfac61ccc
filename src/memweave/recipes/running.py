"""Run a recipe: base policy, server, rollouts, trainer, evaluation before and after, one result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Final, TypedDict

import memweave
from memweave.errors import OperationError, SettingsError
from memweave.recipes.recipe import (
    POLICY,
    REPLY_SECONDS,
    TRACES,
    Arm,
    Examples,
    Place,
    Recipe,
    RecipeResult,
    Stage,
    Staging,
    TrainSettings,
)
from memweave.recipes.run_file import claim, held
from memweave.recipes.run_scores import by_step, mean_score, parts, scores, zero_std
from memweave.serving import DEFAULT_ROLE, PolicyServer
from memweave.serving.adapters import check_adapter, check_weights, is_adapter
from memweave.serving.policy_folder import PolicyFolder, load_policy_folder
from memweave.serving.server import weights_version
from memweave.tracing import Sampling, TraceStore
from memweave.trainers.rollouts import Rollouts

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

DIALOG_BASE: Final = Path(memweave.__file__).parent / "policies" / "dialog-world"
"""The base policy that knows DialogWorld; made by `memweave.recipes.memory_r1.pretraining`."""
MEMHOP_BASE: Final = DIALOG_BASE.with_name("memhop")
"""The base policy that knows MemHop; made by `memweave.recipes.agemem.pretraining`."""
PLANWORLD_BASE: Final = DIALOG_BASE.with_name("planworld")
"""The frozen planner that knows PlanWorld; made by `memweave.recipes.memento.pretraining`."""
FSMQA_BASE: Final = DIALOG_BASE.with_name("fsmqa")
"""The base policy that knows FSM-QA; made by `memweave.recipes.graph_memory.pretraining`, as is the larger one."""
FSMQA_LARGE_BASE: Final = DIALOG_BASE.with_name("fsmqa-large")
IMITATED: Final = "imitation.txt"
"""File within a run's folder: for how many steps it imitates."""
BASE_SEED: Final = 0
"""Of the tiny base policy: all runs of a recipe start from the same weights."""
FROZEN: Final = "frozen"
"""Role of the policy server that plays what is not trained."""
BASE: Final = "base"
"""Role that nothing is published for, so that the base policy plays it."""
EPISODE_SECONDS: Final = 900.0
"""For one episode; a rollout over a whole dialogue shares the machine with many others."""
EPISODE_STEPS: Final = 10_000
"""LangGraph steps of one episode; the graphs have caps of their own."""


def run_recipe(recipe: Recipe, settings: TrainSettings, place: Place, *, arm: str | None = None) -> RecipeResult:
    """Train as `recipe` says and return what came of it; everything made is under `place.out`.

    Raises `SettingsError` for an unknown arm, or a resumed run with other settings; `InputError` for a bad base or partner;
    `ConflictError` when another process runs in that folder; `UnavailableError`, `ServerSetupError` when the policy server
    cannot be used; `OperationError` when weights that should be frozen changed.
    """
    arm = arm or next(iter(recipe.arms))
    chosen = recipe.arm(arm)
    if chosen.trainer == "sft" and place.server_url is not None:
        raise SettingsError(
            f"arm {arm} trains all weights, which a vLLM server cannot take over; run it in-process (leave out the server)"
        )
    if recipe.check is not None:
        recipe.check(arm, place)
    run = f"{recipe.name}-{arm}-s{settings.seed}"
    base = load_policy_folder(place.base)
    partner = partner_version(recipe, place, base)
    with ExitStack() as opened:
        server = opened.enter_context(open_server(place))
        place.out.mkdir(parents=True, exist_ok=True)
        opened.enter_context(held(place.out))
        claim(place.out, recipe=recipe.name, arm=arm, base=base.version, partner=partner, settings=settings)
        if place.partner is not None:
            server.publish(place.partner, run=run, role=FROZEN)
        stage = recipe.stage(_staging(recipe, arm, settings, place, server, opened))
        if chosen.trainer == "sft":
            learned = _imitate(recipe, settings, place, server, stage, run)
        else:
            learned = _learn(chosen, recipe, settings, place, server, stage, run, opened)
        test = dict(stage.test()) if stage.test else {}
        _check_frozen(recipe, place, server, partner)
        published = server.current()
        return RecipeResult(
            recipe=recipe.name,
            arm=arm,
            seed=settings.seed,
            steps=settings.steps,
            server="vllm" if place.server_url else "local",
            policy_version=published.version if published else "base",
            settings=settings,
            policy=place.out / POLICY,
            test=test,
            frozen={} if partner is None else {recipe.partner_role: partner},
            **learned,
        )


class _Learned(TypedDict):
    """The part of a result that says how the training went."""

    start: float | None
    end: float | None
    rewards: list[float | None]
    parts: Mapping[str, Sequence[float]]
    zero_std: list[float]
    seconds: float
    episodes: int
    generated_tokens: int
    excluded: int
    logprob_difference: float | None


def _staging(
    recipe: Recipe, arm: str, settings: TrainSettings, place: Place, server: PolicyServer, opened: ExitStack
) -> Staging:
    def model(role: str, temperature: float) -> BaseChatModel:
        frozen = recipe.trains not in (None, role)
        sampling = Sampling(
            temperature=0.0 if frozen else temperature, max_tokens=recipe.max_tokens[role], seed=settings.seed
        )
        return server.chat_model(FROZEN if frozen else DEFAULT_ROLE, sampling=sampling, timeout=REPLY_SECONDS)

    def base(role: str, temperature: float) -> BaseChatModel:
        sampling = Sampling(temperature=temperature, max_tokens=recipe.max_tokens[role], seed=settings.seed)
        return server.chat_model(BASE, sampling=sampling, timeout=REPLY_SECONDS)

    return Staging(
        arm=arm,
        settings=settings,
        place=place,
        model_of=lambda role: model(role, settings.temperature),
        model_at=model,
        base_at=base,
        open=opened,
    )


def _learn(
    arm: Arm,
    recipe: Recipe,
    settings: TrainSettings,
    place: Place,
    server: PolicyServer,
    stage: Stage,
    run: str,
    opened: ExitStack,
) -> _Learned:
    """Train from episodes: evaluate, train, evaluate."""
    store = opened.enter_context(TraceStore(place.out / TRACES))
    rollouts = opened.enter_context(
        Rollouts(
            stage.graph,
            stage.reward,
            concurrency=settings.concurrency,
            store=store,
            bank=stage.bank,
            timeout=EPISODE_SECONDS,
            recursion_limit=EPISODE_STEPS,
        )
    )
    start = _evaluate(settings, place, server, rollouts, stage, f"{run}-before", step=0)
    from memweave.recipes.building import build_trainer

    trainer = build_trainer(arm, recipe, settings, place, stage, run=run, rollouts=rollouts, server=server)
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=_checkpoint(place))
    seconds = time.perf_counter() - began
    trainer.publish()
    end = _evaluate(settings, place, server, rollouts, stage, f"{run}-after", step=trainer.state.global_step)
    trainer.save_policy(place.out / POLICY)
    steps = by_step(store, run, settings.steps)
    everything = [trace for step in steps for trace in step]
    differences = [
        entry["sampling/logp_difference_max"]
        for entry in trainer.state.log_history
        if "sampling/logp_difference_max" in entry
    ]
    return _Learned(
        start=start,
        end=end,
        rewards=[fmean(values) if (values := scores(step)) else None for step in steps],
        parts=parts(steps),
        zero_std=[zero_std(step) for step in steps],
        seconds=seconds,
        episodes=len(everything),
        generated_tokens=sum(len(g.token_ids or ()) for trace in everything for g in trace.generations),
        excluded=sum(trace.score is None for trace in everything),
        logprob_difference=max(differences, default=None),
    )


def _imitate(
    recipe: Recipe, settings: TrainSettings, place: Place, server: PolicyServer, stage: Stage, run: str
) -> _Learned:
    """Train on demonstrations, and publish what came of it."""
    if stage.examples is None:
        raise SettingsError(f"recipe {recipe.name} has no demonstrations to imitate")
    policy, seconds = place.out / POLICY, 0.0
    if not (_imitated(place, settings) and place.resume):
        seconds = _train_on_examples(settings, place, stage.examples)
    server.publish(policy, run=run, role=DEFAULT_ROLE)
    return _Learned(
        start=None, end=None, rewards=[], parts={}, zero_std=[], seconds=seconds, episodes=0, generated_tokens=0, excluded=0,
        logprob_difference=None,
    )  # fmt: skip


def _imitated(place: Place, settings: TrainSettings) -> bool:
    """Return whether the run in this folder has done its imitation. Raises `SettingsError` when it did so for other steps."""
    note, done = place.out / IMITATED, (place.out / POLICY).is_dir()
    if done and (then := int(note.read_text())) != settings.steps:
        raise SettingsError(
            f"{place.out} imitated for {then} step(s), and its learning rate ended there; it cannot go on to "
            f"{settings.steps}. Start a new run in another folder"
        )
    note.write_text(f"{settings.steps}\n")
    return done


def _train_on_examples(settings: TrainSettings, place: Place, made: Examples) -> float:
    """Train on demonstrations, and return how long that took."""
    from memweave.trainers.sft import SFTSettings, demonstrations, train_sft

    conversations = made()
    examples = demonstrations(conversations, load_policy_folder(place.base).tokenizer())
    place.say(f"imitating {len(examples)} demonstrations")
    return train_sft(
        place.base,
        examples,
        place.out / POLICY,
        SFTSettings(
            steps=settings.steps,
            batch_size=settings.tasks_per_step * settings.group_size,
            learning_rate=settings.learning_rate,
            lora_rank=settings.lora_rank,
            seed=settings.seed,
            save_every=settings.save_every,
        ),
        resume=place.resume,
    ).seconds


def _evaluate(
    settings: TrainSettings,
    place: Place,
    server: PolicyServer,
    rollouts: Rollouts,
    stage: Stage,
    run: str,
    *,
    step: int,
) -> float:
    """Return the mean reward on held-out tasks, of the weights that are served now. What is stored is not run again."""
    published = server.current()
    place.say(
        f"evaluating {published.name if published else 'the base policy'} on {len(stage.held_out)} held-out tasks"
    )
    groups = rollouts.run(
        stage.held_out,
        group_size=settings.group_size,
        run=run,
        iteration=step,
        policy_version=published.version if published else None,
        training=False,
    )
    mean = mean_score(groups, f"evaluation at step {step}")
    place.say(f"mean reward {mean:.3f}")
    return mean


def partner_version(recipe: Recipe, place: Place, base: PolicyFolder) -> str | None:
    """Return the hash of the weights that play the role that is not trained; `None` when there is no such role.

    Raises `SettingsError` for a partner of a recipe that has no use for one; `AdapterError` for one that cannot be served
    with the base policy: weights of another model, another tokenizer or chat template, or all weights on a vLLM server.
    """
    if recipe.trains is None:
        if place.partner is not None:
            raise SettingsError(f"recipe {recipe.name} has one role only; it takes no partner")
        return None
    if place.partner is None:
        return base.version
    if place.server_url is not None or is_adapter(place.partner):
        return check_adapter(place.partner, base.path).version
    return check_weights(place.partner, base.path)


def _check_frozen(recipe: Recipe, place: Place, server: PolicyServer, version: str | None) -> None:
    """Raise `OperationError` unless the partner is served, and lies on disk, with the weights it had at the start."""
    if version is None:
        return
    served = server.current(FROZEN)
    now = {
        "served": served.version if served else load_policy_folder(server.base).version,
        "on disk": weights_version(place.partner) if place.partner else load_policy_folder(place.base).version,
    }
    changed = [f"{where}: {other}" for where, other in now.items() if other != version]
    if changed:
        raise OperationError(
            f"the {recipe.partner_role} should have been frozen at {version}, but it changed ({', '.join(changed)}). "
            "The result says nothing; run it again with a policy folder that nobody writes to"
        )


def default_base(home: Path, recipe: Recipe | None = None) -> Path:
    """Return the base policy of a recipe: the one of the package, or the tiny one, which a data folder keeps."""
    known = {"dialog": DIALOG_BASE, "memhop": MEMHOP_BASE, "fsmqa": FSMQA_BASE}
    if recipe is not None and recipe.base in known:
        return known[recipe.base]
    return home / "policies" / "tiny"


def ensure_base(folder: Path) -> None:
    """Make the tiny base policy at `folder` unless something is there. Every machine makes the same weights."""
    if folder.exists():
        return
    from memweave.recipes.token_class import WORDS
    from memweave.serving.policy_folder import create_policy

    texts = [f"{a} {b}" for a in (*WORDS, "choose", "tell", "write") for b in WORDS]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = create_policy(Path(scratch) / "policy", texts, initializer_range=0.2, seed=BASE_SEED).path
        try:
            made.rename(folder)
        except OSError:
            if (
                not folder.exists()
            ):  # else `memweave serve` and `memweave train` began together, and the other was faster
                raise


@contextmanager
def open_server(place: Place) -> Iterator[PolicyServer]:
    """Connect to the vLLM server that `place` names, or serve in this process."""
    if place.server_url is None:
        from memweave.serving.local_server import LocalServer

        with LocalServer(place.base) as local:
            yield local
        return
    from memweave.serving.vllm_server import VLLMServer

    adapters = place.adapters or place.out / "adapters"
    with VLLMServer(place.server_url, base=place.base, adapter_dir=adapters.resolve(), api_key=place.api_key) as vllm:
        vllm.check()
        yield vllm


def _checkpoint(place: Place) -> bool:
    """Return whether there is a complete checkpoint to resume from. Without one, a run starts over with what is stored."""
    from memweave.trainers.resume import last_checkpoint

    return place.resume and last_checkpoint(place.out / "checkpoints") is not None
