"""The recipe `agemem` through a real vLLM that serves the base policy of the package: trained over three stages, tested, gone on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra `train`")

import torch
from pydantic import SecretStr

from memweave.recipes import Place, RecipeResult, find_recipe
from memweave.recipes.agemem.evaluation import evaluate_memhop
from memweave.recipes.recipe import TRACES
from memweave.recipes.running import MEMHOP_BASE, run_recipe
from memweave.serving import load_policy_folder, weights_version
from memweave.tracing import Trace, TraceStore
from tests.integration.served import KEY, Served, serving

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft 0.21
]
TOLERANCE = 1e-3
TASKS, GROUP_SIZE = 2, 4
Play = Callable[..., RecipeResult]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a vLLM server of the base policy that knows MemHop."""
    rank = find_recipe("agemem").settings.lora_rank
    assert rank is not None
    with serving(MEMHOP_BASE, tmp_path_factory.mktemp("vllm") / "vllm.log", max_lora_rank=rank) as process:
        yield process


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def play(served: Served) -> Play:
    """Return a function that runs the recipe against the server."""

    def run(out: Path, *, steps: int, resume: bool = False) -> RecipeResult:
        recipe = find_recipe("agemem")
        few = {"tasks_per_step": TASKS, "group_size": GROUP_SIZE, "eval_tasks": 2, "test_size": 3, "save_every": 1}
        place = Place(
            out=out, base=served.base, server_url=served.process.url, api_key=SecretStr(KEY), resume=resume, quiet=True
        )
        return run_recipe(recipe, recipe.settings.changed(steps=steps, seed=9, **few), place)

    return run


def test_all_three_stages_are_trained_from_what_the_server_sampled(served: Served, play: Play, tmp_path: Path) -> None:
    first = play(tmp_path / "run", steps=1)
    check(first, steps=1)
    result = play(tmp_path / "run", steps=2, resume=True)
    check(result, steps=2)
    assert result.rewards[0] == first.rewards[0]  # that step was not played again
    assert result.policy_version not in (first.policy_version, weights_version(served.base))
    with TraceStore(result.policy.parent / TRACES) as store:
        traces = list(store.query())
    trained = [trace for trace in traces if trace.iteration is not None and "after" not in trace.run]
    stages = {g.node for trace in trained for g in trace.generations}
    assert {g.actor for trace in trained for g in trace.generations} == {"agent"}
    assert stages
    check_prompts(served, traces)


def test_a_greedy_policy_plays_as_in_this_process(served: Served) -> None:
    there = evaluate_memhop(
        policy=f"vllm:{served.base.name}@{served.process.url}", number=12, split="val", api_key=SecretStr(KEY)
    )
    here = evaluate_memhop(policy="base", number=12, split="val")
    assert there.right == here.right
    assert there.means == here.means


def check(result: RecipeResult, *, steps: int) -> None:
    assert (result.server, result.excluded, result.episodes) == ("vllm", 0, steps * TASKS * GROUP_SIZE)
    assert len(result.rewards) == steps
    assert {"em", "mq", "tokens"} <= result.parts.keys()
    assert result.logprob_difference is not None
    assert result.logprob_difference <= TOLERANCE
    assert weights_version(result.policy) == result.policy_version
    assert set(result.test) == {"greedy", "sampled", "ood"}


def check_prompts(served: Served, traces: list[Trace]) -> None:
    """Check that the server wrote each prompt as the policy's own template and tokenizer do, after tools rewrote it too."""
    tokenizer = load_policy_folder(served.base).tokenizer()
    prompts = {g.prompt_token_ids: g.messages for trace in traces for g in trace.generations}
    assert prompts
    for ids, messages in prompts.items():
        text = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.text} for message in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        assert tuple(tokenizer.encode(str(text), add_special_tokens=False)) == ids
