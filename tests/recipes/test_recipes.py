"""Recipes end to end in this process, two steps each: what they return, what they leave behind, how they go on."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memweave.errors import FormatError, InputError, RewardError, SettingsError, UnavailableError
from memweave.recipes import Place, Recipe, RecipeResult, TrainSettings, find_recipe, recipes
from memweave.recipes.recipe import Stage, Staging
from memweave.records import new_id, utc_now
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Score, Trace, TraceStore, doctor
from memweave.trainers.rollouts import Task

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from memweave.recipes.run_scores import zero_std  # noqa: E402 - after importorskip
from memweave.recipes.running import (  # noqa: E402 - after importorskip
    DIALOG_BASE,
    FSMQA_BASE,
    MEMHOP_BASE,
    default_base,
    ensure_base,
    run_recipe,
)
from memweave.serving import LocalServer, create_policy, weights_version  # noqa: E402

SMALL = TrainSettings(steps=2, tasks_per_step=2, group_size=2, eval_tasks=2, concurrency=1, save_every=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("policies") / "tiny"
    ensure_base(folder)
    return folder


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RecipeResult, Path]:
    """Return an uninterrupted run and its folder, which tests only read."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return run_recipe(find_recipe("two-node"), SMALL, Place(out=out, base=base, quiet=True)), out


Said = tuple[RecipeResult, Path]


def same(one: RecipeResult, other: RecipeResult) -> bool:
    names = ("start", "end", "rewards", "parts", "episodes", "generated_tokens", "policy_version")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def failing_at(step: int, recipe: Recipe) -> Recipe:
    """Return the recipe with a reward that breaks down in a step of training."""

    def stage(given: Staging) -> Stage:
        made = recipe.stage(given)

        def reward(task: Task, output: Any, trace: Trace) -> Any:
            if trace.iteration == step and task.id.startswith("train"):
                raise ZeroDivisionError("a fault in the reward")
            return made.reward(task, output, trace)

        return replace(made, reward=reward)

    return replace(recipe, stage=stage)


def test_groups_without_spread_are_counted() -> None:
    def episodes(group: str, *scores: float | None) -> list[Trace]:
        now = utc_now()
        return [
            Trace(id=new_id(), started_at=now, ended_at=now, group=group, score=None if s is None else Score(value=s))
            for s in scores
        ]

    step = [
        *episodes("a", 0.0, 1.0, 1.0),
        *episodes("b", 1.0, 1.0),
        *episodes("c", 0.5, None),
        *episodes("d", 0.5, 0.0),
    ]
    assert zero_std(step) == 0.5
    assert zero_std(episodes("b", 0.0, 0.0)) == zero_std([]) == 1.0


def test_what_a_run_returns(whole: Said) -> None:
    result, out = whole
    assert (result.recipe, result.arm, result.seed, result.steps, result.server) == (
        "two-node",
        "per-role",
        0,
        2,
        "local",
    )
    assert result.policy == out / "policy"
    assert (result.episodes, result.excluded, len(result.rewards)) == (8, 0, 2)
    assert result.generated_tokens == 8 * (2 + 24)
    assert result.logprob_difference is not None
    assert result.logprob_difference <= 1e-3
    with TraceStore(out / "traces.db") as store:
        by_step = [store.query(run="two-node-per-role-s0", iteration=step) for step in (0, 1)]
        means = [sum(trace.score.value for trace in traces if trace.score) / 4 for traces in by_step]
        assert result.rewards == means
        assert result.parts == {"chooser": means}
        assert store.count(run="two-node-per-role-s0-before") == store.count(run="two-node-per-role-s0-after") == 4
        after = store.query(run="two-node-per-role-s0-after")
        assert {g.policy_version for trace in after for g in trace.generations} == {result.policy_version}
        assert [finding for finding in doctor(store.query()) if finding.severity == "error"] == []
    assert json.loads(json.dumps(result.payload()))["settings"]["temperature"] == 1.0


def test_what_a_run_leaves_behind(whole: Said, base: Path) -> None:
    result, out = whole
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith("traces.db-")) == [
        "checkpoints", "policy", "run.json", "traces.db",
    ]  # fmt: skip
    assert (out / "checkpoints" / "curves.png").read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in (out / "checkpoints" / "log.jsonl").read_text().splitlines()]
    assert [entry["reward"] for entry in log if "reward" in entry] == pytest.approx(list(result.rewards))
    with LocalServer(base) as server:
        assert server.publish(out / "policy", run="again").version == result.policy_version
        assert server.chat_model().invoke("amber").response_metadata["policy_version"] == result.policy_version
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("memweave-rollouts")]


@pytest.mark.parametrize("save_every", [1, 20])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    whole: Said, base: Path, tmp_path: Path, save_every: int
) -> None:
    """With a checkpoint of step 1, and without any: then it starts over and finds its episodes in the store."""
    recipe, settings = find_recipe("two-node"), replace(SMALL, save_every=save_every)
    out = tmp_path / "run"
    with pytest.raises(RewardError, match="a fault in the reward"):
        run_recipe(failing_at(1, recipe), settings, Place(out=out, base=base, quiet=True))
    with TraceStore(out / "traces.db") as store:
        done = {trace.id for trace in store.query()}
    result = run_recipe(recipe, settings, Place(out=out, base=base, quiet=True, resume=True))
    assert same(result, whole[0])
    with TraceStore(out / "traces.db") as store:
        assert done < {trace.id for trace in store.query()}
        assert store.count() == 16  # 8 of training, 4 before and 4 after: none twice


def test_a_run_that_goes_on_for_longer_is_evaluated_anew(whole: Said, base: Path, tmp_path: Path) -> None:
    recipe, out = find_recipe("two-node"), tmp_path / "run"
    short = run_recipe(recipe, replace(SMALL, steps=1), Place(out=out, base=base, quiet=True))
    assert short.rewards == whole[0].rewards[:1]
    longer = run_recipe(recipe, SMALL, Place(out=out, base=base, quiet=True, resume=True))
    assert same(longer, whole[0])
    assert longer.policy_version != short.policy_version
    again = run_recipe(recipe, SMALL, Place(out=out, base=base, quiet=True, resume=True))  # nothing is left to do
    assert same(again, whole[0])


def test_another_run_is_not_gone_on_with(whole: Said, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(whole[1] / "run.json", out)
    recipe, place = find_recipe("two-node"), Place(out=out, base=base, quiet=True, resume=True)
    with pytest.raises(SettingsError, match=r"temperature: 1.0 then, 0.7 now.*start a new run in another folder"):
        run_recipe(recipe, SMALL.changed(temperature=0.7), place)
    with pytest.raises(SettingsError, match="arm: 'per-role' then, 'broadcast' now"):
        run_recipe(recipe, SMALL, place, arm="broadcast")
    other = tmp_path / "other"
    shutil.copytree(base, other)
    weights = other / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-2] ^= 1
    weights.write_bytes(bytes(raw))
    with pytest.raises(SettingsError, match=f"base: '{weights_version(base)}' then, '{weights_version(other)}' now"):
        run_recipe(recipe, SMALL, replace(place, base=other))
    (out / "run.json").write_text('{"format": 99}')
    with pytest.raises(FormatError, match="format 99"):
        run_recipe(recipe, SMALL, place)
    (out / "run.json").write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        run_recipe(recipe, SMALL, place)


def test_the_other_recipe_runs_too(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    place = Place(out=tmp_path / "run", base=base, quiet=True, say=said.append)
    settings = replace(SMALL, steps=1, temperature=0.7)
    result = run_recipe(find_recipe("token-class"), settings, place, arm="shuffled")
    assert (result.arm, result.parts, len(result.rewards)) == ("shuffled", {}, 1)
    assert result.logprob_difference is not None
    assert result.logprob_difference <= 1e-3  # at temperature 0.7
    assert said == [
        "evaluating the base policy on 2 held-out tasks", f"mean reward {result.start:.3f}",
        "evaluating token-class-shuffled-s0-policy-v2 on 2 held-out tasks", f"mean reward {result.end:.3f}",
    ]  # fmt: skip


def test_nothing_is_made_when_the_policy_cannot_be_had(
    base: Path, tmp_path: Path, closed_port: Callable[[], int]
) -> None:
    recipe, out = find_recipe("two-node"), tmp_path / "run"
    with pytest.raises(InputError, match="nowhere is no folder. A policy is a folder with"):
        run_recipe(recipe, SMALL, Place(out=out, base=tmp_path / "nowhere"))
    with pytest.raises(UnavailableError, match="does not answer"):
        run_recipe(recipe, SMALL, Place(out=out, base=base, server_url=f"http://127.0.0.1:{closed_port()}"))
    with pytest.raises(SettingsError, match="has no arm 'x'. There are: per-role, broadcast"):
        run_recipe(recipe, SMALL, Place(out=out, base=base), arm="x")
    assert not out.exists()


def test_the_base_is_the_same_everywhere_and_is_never_replaced(base: Path, tmp_path: Path) -> None:
    ensure_base(tmp_path / "tiny")
    assert weights_version(tmp_path / "tiny") == weights_version(base)
    (tmp_path / "mine").mkdir()
    ensure_base(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_two_commands_may_make_the_base_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "tiny"

    def slower(folder: Path, *args: Any, **kwargs: Any) -> Any:
        made = create_policy(folder, *args, **kwargs)
        shutil.copytree(made.path, target)  # the other one's, meanwhile
        return made

    monkeypatch.setattr("memweave.serving.policy_folder.create_policy", slower)
    ensure_base(target)
    assert list(tmp_path.iterdir()) == [target]
    with LocalServer(target):
        pass


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 0}, "steps = 0 is too small: it must be at least 1"),
        ({"group_size": 1}, "group_size = 1 is too small: it must be at least 2"),
        ({"seed": -1}, "seed = -1"),
        ({"eval_tasks": 0}, "eval_tasks = 0"),
        ({"temperature": 0.0}, "temperature = 0.0 must be a number above 0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"learning_rate": float("inf")}, "learning_rate = inf"),
    ],
)
def test_impossible_settings_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        TrainSettings().changed(**given)


def test_settings_that_are_not_given_stay() -> None:
    assert TrainSettings().changed(steps=None, seed=3) == TrainSettings(seed=3)


def test_recipes_are_found_by_name() -> None:
    of_agemem = ("agemem", "agemem-answer-only", "agemem-rag")
    names = ("token-class", "two-node", "memory-r1-manager", "memory-r1-answerer", *of_agemem, "graph-memory-grpo")
    assert [(name, recipe.name) for name, recipe in recipes().items()] == [(name, name) for name in names]
    with pytest.raises(SettingsError, match="Did you mean two-node"):
        find_recipe("two-nod")
    with pytest.raises(SettingsError, match="Did you mean memory-r1-manager"):
        find_recipe("memory-r1-manger")
    with pytest.raises(
        SettingsError,
        match="There are: agemem, agemem-answer-only, agemem-rag, graph-memory-build, graph-memory-grpo, ",
    ):
        find_recipe("poetry")
    with pytest.raises(SettingsError, match="memento-q runs on its own"):
        find_recipe("memento-q")


def test_each_recipe_has_a_base_of_its_own(tmp_path: Path) -> None:
    where = {name: default_base(tmp_path, recipe) for name, recipe in recipes().items()}
    assert where["token-class"] == where["two-node"] == default_base(tmp_path) == tmp_path / "policies" / "tiny"
    assert where["memory-r1-manager"] == where["memory-r1-answerer"] == DIALOG_BASE
    assert {where[name] for name in ("agemem", "agemem-answer-only", "agemem-rag")} == {MEMHOP_BASE}
    assert where["graph-memory-grpo"] == FSMQA_BASE
    assert {DIALOG_BASE.parent.name, MEMHOP_BASE.parent.name, FSMQA_BASE.parent.name} == {"policies"}


def staged(recipe: Recipe, settings: TrainSettings, opened: ExitStack) -> Stage:
    """Return the stage that a run with these settings is played on, with a model that always says the same."""
    model = ScriptedChatModel(lambda messages: '{"memory": []}')
    return recipe.stage(
        Staging(
            arm=next(iter(recipe.arms)),
            settings=settings,
            place=Place(out=Path("out"), base=default_base(Path("home"), recipe)),
            model_of=lambda role: model,
            model_at=lambda role, temperature: model,
            base_at=lambda role, temperature: model,
            open=opened,
        )
    )


@pytest.mark.parametrize("recipe", recipes().values(), ids=lambda recipe: recipe.name)
def test_tasks_are_a_function_of_their_seed_and_splits_differ(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memweave.worlds.dialog_world.SIZES", {"train": 2, "val": 1, "test": 1})
    settings = TrainSettings(tasks_per_step=8, eval_tasks=8, seed=1)
    with ExitStack() as opened:
        first, again = (staged(recipe, settings, opened) for _ in range(2))
        assert (first.train, first.held_out) == (again.train, again.held_out)
        assert len(first.train) >= 8
        assert len(first.held_out) == 8
        for attribute in ("id", "input"):
            train, held_out = (
                {repr(getattr(task, attribute)) for task in tasks} for tasks in (first.train, first.held_out)
            )
            assert train != held_out
        assert not {task.id for task in first.train} & {task.id for task in first.held_out}
