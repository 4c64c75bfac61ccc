"""Run a recipe: base policy, server, rollouts, trainer, evaluation before and after, one result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Final

from memweave.errors import OperationError
from memweave.recipes.recipe import TRACES, Place, Recipe, RecipeResult, TrainSettings
from memweave.recipes.run_file import claim
from memweave.serving import DEFAULT_ROLE, PolicyServer
from memweave.serving.policy_folder import load_policy_folder
from memweave.tracing import Sampling, Trace, TraceStore
from memweave.trainers.credit import Group
from memweave.trainers.rollouts import Rollouts

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from memweave.trainers.grpo import TraceGRPOTrainer

BASE_SEED: Final = 0
"""Of the tiny base policy: all runs of a recipe start from the same weights."""


def run_recipe(recipe: Recipe, settings: TrainSettings, place: Place, *, arm: str | None = None) -> RecipeResult:
    """Train as `recipe` says and return what came of it; everything made is under `place.out`.

    Raises `SettingsError` for an unknown arm, or a resumed run with other settings; `InputError` for a bad base policy;
    `UnavailableError`, `ServerSetupError` when the policy server cannot be used.
    """
    arm = arm or next(iter(recipe.arms))
    credit = recipe.credit(arm, settings.seed)
    run = f"{recipe.name}-{arm}-s{settings.seed}"
    base = load_policy_folder(place.base)
    with ExitStack() as opened:
        server = opened.enter_context(open_server(place))
        place.out.mkdir(parents=True, exist_ok=True)
        claim(place.out, recipe=recipe.name, arm=arm, base=base.version, settings=settings)
        store = opened.enter_context(TraceStore(place.out / TRACES))
        graph = recipe.graph(lambda role: _model(recipe, settings, server, role))
        rollouts = opened.enter_context(Rollouts(graph, recipe.reward, concurrency=settings.concurrency, store=store))
        start = _evaluate(recipe, settings, place, server, rollouts, f"{run}-before", step=0)
        from memweave.recipes.building import build_trainer

        trainer = build_trainer(recipe, settings, place, run=run, credit=credit, rollouts=rollouts, server=server)
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=_checkpoint(place))
        seconds = time.perf_counter() - began
        trainer.publish()
        end = _evaluate(recipe, settings, place, server, rollouts, f"{run}-after", step=trainer.state.global_step)
        policy = place.out / "policy"
        trainer.save_policy(policy)
        return _result(recipe, settings, place, arm, run, store, server, trainer, (start, end), seconds, policy)


def _evaluate(
    recipe: Recipe,
    settings: TrainSettings,
    place: Place,
    server: PolicyServer,
    rollouts: Rollouts,
    run: str,
    *,
    step: int,
) -> float:
    """Return the mean reward on held-out tasks, of the weights that are served now. What is stored is not run again."""
    tasks = recipe.tasks("test", settings.eval_tasks, settings.seed)
    published = server.current()
    place.say(f"evaluating {published.name if published else 'the base policy'} on {len(tasks)} held-out tasks")
    groups = rollouts.run(
        tasks,
        group_size=settings.group_size,
        run=run,
        iteration=step,
        policy_version=published.version if published else None,
        training=False,
    )
    mean = _mean(groups, f"evaluation at step {step}")
    place.say(f"mean reward {mean:.3f}")
    return mean


def default_base(home: Path) -> Path:
    """Return where the tiny base policy of a data folder is kept."""
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


def _model(recipe: Recipe, settings: TrainSettings, server: PolicyServer, role: str) -> BaseChatModel:
    sampling = Sampling(temperature=settings.temperature, max_tokens=recipe.max_tokens[role], seed=settings.seed)
    return server.chat_model(DEFAULT_ROLE, sampling=sampling)


def _checkpoint(place: Place) -> bool:
    """Return whether there is a complete checkpoint to resume from. Without one, a run starts over with what is stored."""
    from memweave.trainers.resume import last_checkpoint

    return place.resume and last_checkpoint(place.out / "checkpoints") is not None


def _scores(traces: Sequence[Trace]) -> list[float]:
    return [trace.score.value for trace in traces if trace.score is not None]


def _mean(groups: Sequence[Group], what: str) -> float:
    scores = _scores([trace for group in groups for trace in group.traces])
    if not scores:
        raise OperationError(f"the {what} scored no episode; `memweave traces list` shows how they ended")
    return fmean(scores)


def _result(
    recipe: Recipe,
    settings: TrainSettings,
    place: Place,
    arm: str,
    run: str,
    store: TraceStore,
    server: PolicyServer,
    trainer: TraceGRPOTrainer,
    scores: tuple[float, float],
    seconds: float,
    policy: Path,
) -> RecipeResult:
    steps = _by_step(store, run, settings.steps)
    published = server.current()
    differences = [
        entry["sampling/logp_difference_max"]
        for entry in trainer.state.log_history
        if "sampling/logp_difference_max" in entry
    ]
    everything = [trace for step in steps for trace in step]
    return RecipeResult(
        recipe=recipe.name,
        arm=arm,
        seed=settings.seed,
        steps=settings.steps,
        server="vllm" if place.server_url else "local",
        start=scores[0],
        end=scores[1],
        rewards=[fmean(values) if (values := _scores(step)) else None for step in steps],
        parts=_parts(steps),
        seconds=seconds,
        episodes=len(everything),
        generated_tokens=sum(len(g.token_ids or ()) for trace in everything for g in trace.generations),
        excluded=sum(trace.score is None for trace in everything),
        logprob_difference=max(differences, default=None),
        policy_version=published.version if published else "base",
        settings=settings,
        policy=policy,
    )


def _by_step(store: TraceStore, run: str, count: int) -> list[list[Trace]]:
    """Return the traces of each step. An episode that was sampled again after a crash counts once, as it was last."""
    last = {(t.iteration, t.group, t.replica): t for t in store.iterate(run=run, newest=False)}
    steps: list[list[Trace]] = [[] for _ in range(count)]
    for trace in last.values():
        if trace.iteration is not None and trace.iteration < count:
            steps[trace.iteration].append(trace)
    return steps


def _parts(steps: Sequence[Sequence[Trace]]) -> Mapping[str, Sequence[float]]:
    """Return the mean of each named part, step by step."""
    names = sorted({name for step in steps for trace in step if trace.score for name in trace.score.parts})
    found: dict[str, list[float]] = {}
    for name in names:
        for step in steps:
            values = [t.score.parts[name] for t in step if t.score is not None and name in t.score.parts]
            if values:
                found.setdefault(name, []).append(fmean(values))
    return found
