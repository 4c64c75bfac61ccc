"""PPO: advantages and values of real rows, a head that learns, checkpoints with the head, and what it refuses."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from memweave.errors import InputError, OperationError, RewardError, SettingsError
from memweave.serving.policy_folder import create_policy
from memweave.tracing import Trace
from memweave.trainers.credit import Group
from memweave.trainers.gae import gae
from memweave.trainers.losses import LossSettings
from memweave.trainers.ppo import (
    HEAD_FILE,
    TracePPOConfig,
    TracePPOTrainer,
    episode_reward,
    explained_variance,
    value_loss,
)
from tests.trainers import direct

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_policy(tmp_path_factory.mktemp("ppo") / "base", direct.WORDS, vocab_size=270, hidden=64).path


class Rollouts(direct.DirectRollouts):
    """Knows `training`, as the real ones do, and keeps what it ran."""

    def run(self, tasks: Sequence[Any], *, group_size: int, training: bool = True, **more: Any) -> list[Group]:
        assert training or group_size == 1
        assert group_size > 1 or not training
        self.groups: list[Group] = super().run(tasks, group_size=group_size, **more)
        return self.groups


def trainer(
    base: Path,
    folder: Path,
    reward: Callable[[str, Trace], float | None] = direct.class_share,
    *,
    lora: bool = False,
    turns: int = 1,
    length: int = 6,
    **options: Any,
) -> TracePPOTrainer:
    from transformers import AutoModelForCausalLM

    defaults: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "value_learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "use_cpu": True,
        "curves": False,
        "progress": False,
    }
    shutil.rmtree(folder / "served", ignore_errors=True)  # what another server of the same test left
    server = direct.DirectServer(base, folder / "served")
    return TracePPOTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        [direct.Task(f"task {i}") for i in range(8)],
        Rollouts(server, reward, turns=turns, length=length),
        server,
        TracePPOConfig(**{**defaults, **options}),
        peft_config=direct.lora() if lora else None,
    )


def logged(run: TracePPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


# --- pure parts --------------------------------------------------------------------------------------------------------


def test_value_loss_by_hand() -> None:
    values = torch.tensor([[1.0, 3.0, 9.0], [0.0, 0.0, math.nan]], requires_grad=True)
    old = torch.tensor([[0.0, 2.9, 9.0], [0.0, 1.0, 9.0]])
    returns = torch.tensor([[2.0, 2.0, 9.0], [1.0, 1.0, math.nan]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    free = value_loss(values, old_values=old, returns=returns, mask=mask, clip=None, tokens_in_batch=4)
    assert free.loss.item() == pytest.approx(0.5 * (1 + 1 + 1 + 1) / 4)
    # clip 0.5: 1 -> 0.5 (error 2.25, worse), 3 stays (moved 0.1), 0 stays, 0 -> 0.5 (error 0.25, better, so not taken)
    clipped = value_loss(values, old_values=old, returns=returns, mask=mask, clip=0.5, tokens_in_batch=4)
    assert clipped.loss.item() == pytest.approx(0.5 * (2.25 + 1 + 1 + 1) / 4)
    assert clipped.metrics["value/clip_ratio"].value == 0.25
    clipped.loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 0.25, 0.0], [-0.25, -0.25, 0.0]]  # a clipped value has no gradient


def test_explained_variance() -> None:
    one = [np.array([0.0, 1.0, 2.0], np.float32)]
    mask = [np.array([True, True, True])]
    assert explained_variance(one, one, mask) == 1
    assert explained_variance([np.ones(3, np.float32)], one, mask) == 0
    assert explained_variance(one, [np.ones(3, np.float32)], mask) is None


# --- what the rows carry -----------------------------------------------------------------------------------------------


def episodes_of(run: TracePPOTrainer, batch: dict[str, Tensor]) -> dict[Any, list[tuple[int, int]]]:
    """Return each trace's trained places in a batch whose rows hold a whole episode each."""
    rows = run._collected.rows if run._collected else []
    places = run._places(rows, [batch])[0]
    return {
        rows[i].trace: [(line, t) for t in range(batch["mask"].shape[1]) if batch["mask"][line, t]]
        for line, i in enumerate(places)
        if i is not None
    }


@pytest.mark.parametrize("lora", [False, True])
def test_advantages_are_gae_of_the_heads_values(base: Path, tmp_path: Path, lora: bool) -> None:
    run = trainer(base, tmp_path, turns=3, lora=lora, gamma=0.9, gae_lambda=0.8, whiten_advantages=False)
    torch.manual_seed(0)
    torch.nn.init.normal_(run.value_head.linear.weight, std=0.3)
    batch = run._generate_and_score_completions(None)[0]
    scores = {t.id: t.score.value for g in run._collector._rollouts._rollouts.groups for t in g.traces if t.score}  # type: ignore[attr-defined]  # the stand-in's
    with torch.no_grad():  # the head on the hidden states of a plain forward pass, row by row
        model = run.accelerator.unwrap_model(run.model)
        model = model.get_base_model() if lora else model
        hidden = model.model(input_ids=batch["input_ids"]).last_hidden_state
        values = run.value_head(hidden)[:, :-1]
    episodes = episodes_of(run, batch)
    assert set(episodes) == set(scores)
    for trace, places in episodes.items():
        assert len(places) == 18
        value = np.array([[values[p].item() for p in places]])
        reward = np.zeros_like(value)
        reward[0, -1] = scores[trace]
        expected = gae(value, reward, np.ones_like(value, dtype=bool), gamma=0.9, lambda_=0.8)[0]
        for place, advantage, estimate in zip(places, expected, value[0], strict=True):
            assert batch["advantages"][place].item() == pytest.approx(advantage, abs=1e-5)
            assert batch["values"][place].item() == pytest.approx(estimate, abs=1e-5)
            assert batch["returns"][place].item() == pytest.approx(advantage + estimate, abs=1e-5)
    outside = ~batch["mask"]
    assert not batch["advantages"][outside].any()


def test_the_kl_penalty_is_part_of_the_reward(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path, beta=0.5, whiten_advantages=False)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(1.2)  # away from the reference
    batch = run._generate_and_score_completions(None)[0]
    assert run.args.loss_settings().beta == 0  # once, not twice
    penalty = -0.5 * (batch["sampled_logps"] - batch["ref_logps"]) * batch["mask"]
    assert penalty.abs().max() > 0.01
    rows = run._collected.rows if run._collected else []
    for line, i in enumerate(run._places(rows, [batch])[0]):
        if i is None:
            continue
        reward = rows[i].advantages[rows[i].mask][0]
        places = batch["mask"][line].nonzero().flatten().tolist()
        to_go = np.cumsum([penalty[line, t].item() for t in reversed(places)])[::-1] + reward
        assert [batch["returns"][line, t].item() for t in places] == pytest.approx(to_go.tolist(), abs=1e-5)


def test_the_kl_penalty_is_a_term_of_the_loss_where_asked(tmp_path: Path) -> None:
    assert TracePPOConfig(str(tmp_path), use_cpu=True, beta=0.5, kl_in="loss").loss_settings().beta == 0.5


def test_whitening(base: Path, tmp_path: Path) -> None:
    batch = trainer(base, tmp_path)._generate_and_score_completions(None)[0]
    advantages = batch["advantages"][batch["mask"]]
    assert advantages.mean().item() == pytest.approx(0, abs=1e-5)
    assert advantages.std(correction=0).item() == pytest.approx(1, abs=1e-4)


# --- learning ----------------------------------------------------------------------------------------------------------


def test_the_head_learns_a_reward_that_the_state_tells(base: Path, tmp_path: Path) -> None:
    """Reward decided by the task alone: the values become right, so that next to no advantage remains for the policy."""
    run = trainer(
        base,
        tmp_path,
        lambda task, trace: float(int(task.split()[1]) % 2),
        length=2,
        max_steps=24,
        learning_rate=3e-3,
        value_learning_rate=3e-2,
        vf_coef=1.0,
        value_clip=None,
        whiten_advantages=False,
    )
    run.train()
    losses, explained = logged(run, "value/loss"), logged(run, "value/explained_variance")
    assert losses[-1] < 0.3 * losses[0]  # half of it would be the mean reward, learned and nothing else
    assert explained[0] <= 0.01 < 0.7 < explained[-1]


def test_the_policy_learns_a_class_of_tokens(base: Path, tmp_path: Path) -> None:
    run = trainer(
        base,
        tmp_path,
        length=4,
        max_steps=16,
        per_device_train_batch_size=32,
        num_generations=4,
        learning_rate=5e-3,
    )
    run.train()
    rewards = logged(run, "reward")
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.3
    assert run.value_head.linear.weight.any()


def test_the_value_loss_reaches_the_policy_only_where_it_may(base: Path, tmp_path: Path) -> None:
    """With equal rewards and a head that is not zero, the policy moves with `value_gradient` and stays without."""
    moved = {}
    for shares in (True, False):
        run = trainer(
            base, tmp_path / str(shares), lambda *_: 1.0, value_gradient=shares, max_steps=1, whiten_advantages=False,
            gae_lambda=0.0, gamma=0.0,
        )  # fmt: skip
        torch.nn.init.constant_(run.value_head.linear.weight, 0.1)
        run._settings = LossSettings(clip=False)
        batch = run._generate_and_score_completions(None)[0]
        batch["advantages"].zero_()
        run._piece_loss(run.model, batch).loss.backward()
        moved[shares] = any(p.grad is not None and p.grad.abs().max() > 1e-8 for p in run.model.parameters())
        assert run.value_head.linear.weight.grad.abs().max() > 0  # type: ignore[union-attr]  # backward has run
    assert moved == {True: True, False: False}


def test_the_head_has_its_own_learning_rate_and_no_accumulated_gradient(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4, max_steps=2)
    run.train()
    groups = run.optimizer.param_groups
    assert [group["lr"] for group in groups] == [1e-2, 1e-2, 1e-2][: len(groups)]
    assert {id(p) for p in groups[-1]["params"]} == {id(p) for p in run.value_head.parameters()}
    alone = trainer(base, tmp_path / "alone", value_learning_rate=0.0)
    alone.train()
    assert not alone.value_head.linear.weight.any()


def test_cutting_a_batch_changes_nothing(base: Path, tmp_path: Path) -> None:
    """Accumulated micro-steps and pieces of rows give the head and the policy of one pass."""
    whole = trainer(base, tmp_path / "whole", turns=2)
    whole.train()
    cut = trainer(
        base,
        tmp_path / "cut",
        turns=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        rows_per_forward=3,
    )
    cut.train()
    torch.testing.assert_close(cut.value_head.linear.weight, whole.value_head.linear.weight, rtol=0, atol=1e-4)
    assert logged(cut, "value/loss") == pytest.approx(logged(whole, "value/loss"), abs=1e-5)


# --- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_resumed_run_takes_the_same_steps(base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "lora": True}
    whole = trainer(base, tmp_path / "whole", max_steps=4, **options)
    whole.train()
    first = trainer(base, tmp_path / "cut", max_steps=2, **options)
    first.train()
    second = trainer(base, tmp_path / "cut", max_steps=4, **options)
    second.train(resume_from_checkpoint=True)
    assert logged(second, "value/loss")[-2:] == logged(whole, "value/loss")[-2:]
    assert torch.equal(second.value_head.linear.weight, whole.value_head.linear.weight)
    assert whole.value_head.linear.weight.any()


def test_what_is_published_has_no_head(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path)
    run.train()
    run.save_policy(tmp_path / "policy")
    from safetensors import safe_open

    with safe_open(tmp_path / "policy" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "value" in name]  # noqa: SIM118 - a file, not a dict


def test_a_checkpoint_without_a_head_is_refused(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    run.train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    (checkpoint / HEAD_FILE).unlink()
    with pytest.raises(InputError, match="holds no value head"):
        trainer(base, tmp_path, save_strategy="steps", save_steps=1, max_steps=2).train(resume_from_checkpoint=True)


# --- several processes -------------------------------------------------------------------------------------------------


def launch(base: Path, out: Path, processes: int, port: int) -> None:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
        command += ["--master_addr=127.0.0.1"]
    command += [str(Path(__file__).with_name("ppo_child.py")), str(base), str(out), str(8 // processes)]
    variables = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **variables, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((one[key] - other[key]).square().sum()) for key in one))


def test_two_processes_make_the_policy_and_the_head_of_one(
    base: Path, tmp_path: Path, closed_port: Callable[[], int]
) -> None:
    """An episode's generations, here rows of their own, may be on different processes; its advantages need all of them."""
    for name, processes in (("one", 1), ("two", 2)):
        launch(base, tmp_path / name, processes, closed_port())
    one, two = (load_file(tmp_path / name / "policy/model.safetensors") for name in ("one", "two"))
    start = load_file(base / "model.safetensors")
    assert max(float((one[key] - start[key]).abs().max()) for key in one) > 1e-3
    # As vectors: Adam makes a full step of a gradient that is only rounding, so single weights differ from machine to machine.
    assert distance(one, two) <= 1e-3 * distance(one, start)
    heads = [torch.load(tmp_path / name / "checkpoint-3" / HEAD_FILE, weights_only=True) for name in ("one", "two")]
    assert heads[0]["linear.weight"].abs().max() > 1e-3
    torch.testing.assert_close(heads[1], heads[0], rtol=0, atol=1e-5)


# --- bad input ---------------------------------------------------------------------------------------------------------


def test_no_reward_at_all(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="has a scored episode"):
        trainer(base, tmp_path, lambda *_: None).train()


def test_an_episode_without_reward_is_left_out(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path, lambda task, _: None if task == "task 3" else 1.0, max_steps=1)
    run.train()
    assert logged(run, "episodes/excluded") == [1]
    assert logged(run, "rows/count") == [7]


def test_a_loss_that_is_no_number(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path)
    torch.nn.init.constant_(run.value_head.linear.bias, math.inf)
    with pytest.raises(
        OperationError, match="the value head gives values that are no numbers; lower value_learning_rate"
    ):
        run.train()
    run = trainer(base, tmp_path / "loss")
    run.args.vf_coef = math.nan
    with pytest.raises(OperationError, match=r"the loss is (nan|inf) at step \d; lower learning_rate"):
        run.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.1}, r"gamma = 1.1 must lie in \[0, 1\]"),
        ({"gae_lambda": -0.1}, "gae_lambda = -0.1"),
        ({"vf_coef": math.nan}, "vf_coef = nan"),
        ({"value_clip": -1.0}, "value_clip = -1.0"),
        ({"kl_in": "prompt"}, "kl_in = 'prompt' is unknown"),
        ({"per_device_train_batch_size": 1}, "a generation batch of one episode"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TracePPOConfig(str(tmp_path), use_cpu=True, **options)


def test_a_credit_rule_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="PPO has no credit rule"):
        TracePPOTrainer("model", [], None, None, None, credit=episode_reward)  # type: ignore[arg-type]  # refused before
