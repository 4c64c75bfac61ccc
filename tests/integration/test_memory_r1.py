"""The recipes of Memory-R1 through a real vLLM that serves the base policy of the package: trained, frozen, tested, gone on with.

The world is small, so that a run takes seconds. How well the policy plays is none of these tests' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra `train`")

import torch
from pydantic import SecretStr

from memweave.recipes import Place, RecipeResult, find_recipe
from memweave.recipes.memory_r1 import dialogs, evaluation, training
from memweave.recipes.memory_r1.evaluation import evaluate_world
from memweave.recipes.recipe import TRACES, Stage, Staging
from memweave.recipes.running import DIALOG_BASE, run_recipe
from memweave.serving import load_policy_folder, weights_version
from memweave.serving.vllm_server import VLLMServer
from memweave.tracing import Generation, Score, Trace, TraceStore
from memweave.trainers.rollouts import Task
from memweave.worlds import dialog_world
from memweave.worlds.dialog_world import DialogWorld
from tests.integration.served import KEY, Served, serving
from tests.integration.training import listed

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft 0.21
]
TOLERANCE = 1e-3
SMALL_WORLD = DialogWorld(sessions=1, session_turns=14, keys=2, friend_keys=1, follow_ups=2)
SIZES = {"train": 2, "val": 2, "test": 1, "ood": 1}
GROUP_SIZE = 4
TASKS = 2
HOT = 2.0
"""Temperature of training. A policy that knows its world says the same each time at 1, and learns nothing from that."""
Play = Callable[..., RecipeResult]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a vLLM server of the base policy that knows DialogWorld."""
    rank = find_recipe("memory-r1-manager").settings.lora_rank
    assert rank is not None
    with serving(DIALOG_BASE, tmp_path_factory.mktemp("vllm") / "vllm.log", max_lora_rank=rank) as process:
        yield process


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Play in a small world, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for module in (training, evaluation):
            patch.setattr(module, "DialogWorld", lambda: SMALL_WORLD)
        patch.setattr(dialog_world, "SIZES", SIZES)
        yield
    torch.set_num_threads(before)


def by_ids(role: str) -> Callable[[Task, Any, Trace], Score]:
    """Return a reward that differs between episodes, whatever the policy knows; what the recipe rewards is a part of it."""

    def reward(task: Task, output: Any, trace: Trace) -> Score:
        ids = [token for g in trace.generations if g.actor == role for token in g.token_ids or ()]
        exact = dialogs.reward(task, output, trace).value
        return Score(value=sum(token % 3 == 0 for token in ids) / len(ids), parts={"exact": exact})

    return reward


@pytest.fixture(scope="module")
def play(served: Served) -> Play:
    """Return a function that runs the recipe of a role against the server."""

    def run(role: str, out: Path, *, steps: int, partner: Path | None = None, resume: bool = False) -> RecipeResult:
        recipe = find_recipe(f"memory-r1-{role}")

        def stage(given: Staging) -> Stage:
            return replace(recipe.stage(given), reward=by_ids(role))

        few = {"tasks_per_step": TASKS, "group_size": GROUP_SIZE, "eval_tasks": 2, "test_size": 1, "save_every": 1}
        sampling = {"seed": 9, "temperature": HOT}
        place = Place(
            out=out, base=served.base, partner=partner, server_url=served.process.url, api_key=SecretStr(KEY),
            resume=resume, quiet=True,
        )  # fmt: skip
        return run_recipe(replace(recipe, stage=stage), recipe.settings.changed(steps=steps, **few, **sampling), place)

    return run


@pytest.fixture(scope="module")
def manager(play: Play, tmp_path_factory: pytest.TempPathFactory) -> RecipeResult:
    """Return a run of the manager beside the base policy; its folder is only read."""
    return play("manager", tmp_path_factory.mktemp("runs") / "manager", steps=2)


def test_the_manager_learns_beside_the_frozen_base(served: Served, manager: RecipeResult) -> None:
    check_result(manager, steps=2)
    base = weights_version(served.base)
    assert manager.frozen == {"answerer": base}
    traces = episodes(manager)
    own, frozen = ({(g.policy, g.policy_version) for g in calls(traces, role)} for role in ("manager", "answerer"))
    assert frozen == {(served.base.name, base)}
    assert {name for name, _ in own} == {
        served.base.name,
        *(f"{manager.recipe}-grpo-s9-policy-v{n}" for n in (1, 2, 3)),
    }
    assert len(own) == 4
    check_prompts(served, traces)


def test_the_answerer_learns_beside_the_managers_adapter_and_goes_on(
    served: Served, play: Play, manager: RecipeResult, tmp_path: Path
) -> None:
    first = play("answerer", tmp_path / "run", steps=1, partner=manager.policy)
    check_result(first, steps=1)
    result = play("answerer", tmp_path / "run", steps=2, partner=manager.policy, resume=True)
    check_result(result, steps=2)
    assert result.rewards[0] == first.rewards[0]  # that step was not played again
    assert result.policy_version != first.policy_version
    assert result.frozen == first.frozen == {"manager": manager.policy_version}
    check_prompts(served, episodes(result))
    # Both are served side by side, what the first process had left is gone, and the partner plays as it did when it was trained.
    adapters = tmp_path / "run" / "adapters"
    with VLLMServer(served.process.url, base=served.base, adapter_dir=adapters, api_key=KEY) as server:
        names = {name for name in listed(server) if name.startswith(result.recipe)}
    assert names == {path.name for path in adapters.iterdir() if path.is_dir()}
    found = {weights_version(adapters / name): name.rpartition("-v")[0] for name in names}
    assert found[manager.policy_version] == f"{result.recipe}-grpo-s9-frozen"
    assert found[result.policy_version] == f"{result.recipe}-grpo-s9-policy"
    assert len(names) == 3
    assert result.test["partner/base"] == manager.test["greedy-6"]


@pytest.mark.parametrize("trained", [False, True])
def test_greedy_policies_answer_as_in_this_process(served: Served, manager: RecipeResult, trained: bool) -> None:
    base = f"vllm:{served.base.name}@{served.process.url}"
    newest = max(calls(episodes(manager), "manager"), key=lambda g: g.started_at)
    assert newest.policy_version == manager.policy_version
    player = f"vllm:{newest.policy}@{served.process.url}" if trained else base
    there = evaluate_world(player, base, budgets=[6, 60], split="val", api_key=SecretStr(KEY))
    here = evaluate_world(str(manager.policy) if trained else "base", "base", budgets=[6, 60], split="val")
    for budget, found in there.budgets.items():
        assert replace(found, seconds=0.0) == replace(here.budgets[budget], seconds=0.0)
        assert len(found.right) == SIZES["val"]


def check_result(result: RecipeResult, *, steps: int) -> None:
    assert (result.server, result.excluded, result.episodes) == ("vllm", 0, steps * TASKS * GROUP_SIZE)
    assert len(result.rewards) == steps
    assert list(result.parts) == ["exact"]
    assert len(result.parts["exact"]) == steps
    assert result.logprob_difference is not None
    assert result.logprob_difference <= TOLERANCE
    assert weights_version(result.policy) == result.policy_version
    assert {"greedy-6", "greedy-12", "greedy-60", "sampled-6"} <= result.test.keys()
    for name, cell in result.test.items():
        assert isinstance(cell, dict)
        (dialogue,) = SMALL_WORLD.dialogues("ood" if name.startswith("ood") else "test", 1)
        marks = cell["right"]
        assert isinstance(marks, dict)
        assert list(marks) == [dialogue.id]
        assert len(str(marks[dialogue.id])) == len(dialogue.questions)
        assert cell["score"] == fmean(map(int, str(marks[dialogue.id])))


def check_prompts(served: Served, traces: list[Trace]) -> None:
    """Check that the server wrote each prompt as the policy's own template and tokenizer do: no instructions, same tokens."""
    tokenizer = load_policy_folder(served.base).tokenizer()
    prompts = {g.prompt_token_ids: g.messages for trace in traces for g in trace.generations}
    assert prompts
    for ids, messages in prompts.items():
        (message,) = messages
        assert message.role == "user"
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": message.text}], tokenize=False, add_generation_prompt=True
        )
        assert tuple(tokenizer.encode(str(text), add_special_tokens=False)) == ids


def calls(traces: list[Trace], role: str) -> list[Generation]:
    return [generation for trace in traces for generation in trace.generations if generation.actor == role]


def episodes(result: RecipeResult) -> list[Trace]:
    with TraceStore(result.policy.parent / TRACES) as store:
        return list(store.query())
