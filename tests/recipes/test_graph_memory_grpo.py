"""GRPO with strategies in the prompt, on a policy that is too small to be good and a graph that the script has built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from memweave.errors import InputError, SettingsError  # noqa: E402 - after importorskip
from memweave.recipes import Place, RecipeResult, TrainSettings, find_recipe  # noqa: E402
from memweave.recipes.graph_memory import grpo  # noqa: E402
from memweave.recipes.graph_memory.building import BuildSettings, build  # noqa: E402
from memweave.recipes.graph_memory.keeping import Kept  # noqa: E402
from memweave.recipes.graph_memory.lessons import texts  # noqa: E402
from memweave.recipes.graph_memory.pretraining import whole  # noqa: E402
from memweave.recipes.graph_memory.script import FSMQAScript  # noqa: E402
from memweave.recipes.graph_memory.weighing import WeightsSettings, train  # noqa: E402
from memweave.recipes.running import FSMQA_BASE, default_base, run_recipe  # noqa: E402
from memweave.serving.policy_folder import PolicyFolder, create_policy  # noqa: E402
from memweave.tracing import TraceStore  # noqa: E402

SMALL = TrainSettings(
    steps=1, tasks_per_step=2, group_size=2, eval_tasks=2, concurrency=4, save_every=1, test_size=2, lora_rank=2
)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "TRAIN_TASKS", 4)
        patch.setattr(grpo, "TESTS", {"greedy": ("test", 0.0)})
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyFolder:
    folder = tmp_path_factory.mktemp("policy") / "base"
    return create_policy(
        folder, texts(0, 60), vocab_size=400, hidden=64, layers=1, heads=2, intermediate=64, context=768, whole=whole()
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("built")
    return build(folder, BuildSettings(queries=12, samples=4), FSMQAScript()).kept


@pytest.fixture(scope="module")
def trained(built: Kept, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("trained")
    return train(folder, built, WeightsSettings(arm="chosen", queries=6, epochs=1, val=0), FSMQAScript()).kept


def run(arm: str, policy: PolicyFolder, out: Path, data: Path | None, **more: Any) -> RecipeResult:
    place = Place(out=out, base=policy.path, data=data, quiet=True, **more)
    return run_recipe(find_recipe("graph-memory-grpo"), SMALL, place, arm=arm)


def cell(result: RecipeResult, name: str) -> Mapping[str, Any]:
    found = result.test[name]
    assert isinstance(found, dict)
    return found


def test_a_graph_that_nothing_would_be_done_with_is_refused(
    policy: PolicyFolder, trained: Kept, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="arm plain has no memory in its prompts; leave out --data"):
        run("plain", policy, tmp_path / "run", trained.folder)


def test_prompts_have_the_advice_of_the_graph_and_only_sampled_tokens_are_trained_on(
    policy: PolicyFolder, trained: Kept, tmp_path: Path
) -> None:
    found = run("trained", policy, tmp_path / "run", trained.folder)
    assert found.test["charged"] == {"build": 48, "weights": 12}
    assert found.episodes == 4
    for name in ("greedy", "greedy-without"):
        assert len(cell(found, name)["right"]) == 2
    tokenizer = policy.tokenizer()
    with TraceStore(tmp_path / "run" / "traces.db") as store:
        traces = list(store.iterate(run="graph-memory-grpo-trained-s0"))
    assert len(traces) == 4
    first: dict[str | None, set[str]] = {}
    for trace in traces:
        advice = trace.generations[0].messages[0].text
        assert advice.startswith("<advice>\n- When ")
        assert advice.count("\n- ") == 1
        first.setdefault(trace.group, set()).add(advice)
        for generation in trace.generations:
            assert generation.token_ids is not None
            said = tokenizer.decode(list(generation.token_ids), skip_special_tokens=True)
            assert said == generation.reply  # what tools returned stands in prompts only
    assert {len(same) for same in first.values()} == {1}  # a group shares its prompt
    assert (tmp_path / "run" / "graph" / "graph.json").exists()
    json.dumps(cast("Any", found.payload()), default=str)


def test_the_plain_arm_has_no_memory_and_pays_for_none(policy: PolicyFolder, tmp_path: Path) -> None:
    found = run("plain", policy, tmp_path / "run", None)
    assert found.test["charged"] == {"build": 0, "weights": 0}
    assert set(found.test) == {"charged", "greedy"}
    assert not (tmp_path / "run" / "graph").exists()


def test_untrained_memory_pays_for_its_building_only(policy: PolicyFolder, trained: Kept, tmp_path: Path) -> None:
    for arm in ("uniform", "random", "raw-trajectories"):
        given = grpo.charged(arm, trained)
        assert given == {"build": 48, "weights": 0}
    tasks = grpo.questions("val", 3, 0)
    shown = {arm: grpo.advised(arm, trained, tasks, 0) for arm in grpo.ADVISED}
    assert set(shown["plain"].values()) == {None}
    kinds = [str(sorted((key, value and value.text) for key, value in each.items())) for each in shown.values()]
    assert len(set(kinds)) >= 4


def test_weights_that_are_not_trained_and_another_graph_are_refused(
    policy: PolicyFolder, built: Kept, trained: Kept, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="are not trained: memweave train graph-memory-weights"):
        run("trained", policy, tmp_path / "a", built.folder)
    with pytest.raises(InputError, match="holds no graph"):
        run("trained", policy, tmp_path / "a", tmp_path / "nowhere")
    assert not (tmp_path / "a").exists()  # so the right graph can be given there
    run("uniform", policy, tmp_path / "b", built.folder)
    with pytest.raises(SettingsError, match="was begun with another graph"):
        run("uniform", policy, tmp_path / "b", trained.folder, resume=True)


def test_without_a_graph_the_base_policy_builds_one_and_it_stays(
    policy: PolicyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "BuildSettings", lambda seed: BuildSettings(seed=seed, queries=2, samples=2))
    found = run("random", policy, tmp_path / "run", None)
    assert found.test["charged"] == {"build": 4, "weights": 0}
    kept = Kept.find(tmp_path / "run" / "graph" / "built")
    assert kept.made.build_rollouts == 4

    def never(seed: int) -> BuildSettings:
        raise AssertionError("it is there")

    monkeypatch.setattr(grpo, "BuildSettings", never)
    again = run("random", policy, tmp_path / "run", None, resume=True)
    assert again.test == found.test


def test_the_base_policy_is_that_of_the_world(tmp_path: Path) -> None:
    assert default_base(tmp_path, find_recipe("graph-memory-grpo")) == FSMQA_BASE
