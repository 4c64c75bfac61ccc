"""The trainer: credit reaches the tokens that were sampled, no row is lost, and other weights are found at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from memweave.errors import (
    GroupError,
    NoPolicyError,
    OperationError,
    RewardError,
    ServerSetupError,
    SettingsError,
    UnavailableError,
)
from memweave.serving import PolicyServer, PublishedPolicy, create_policy
from memweave.tracing import Score, Trace, TraceStatus
from memweave.trainers.rows import Row, Span

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from memweave.trainers.batches import collate, deal, empty_row, pieces  # noqa: E402 - after importorskip
from memweave.trainers.collecting import Collected  # noqa: E402
from memweave.trainers.credit import CreditResult, Group, broadcast, shuffled  # noqa: E402
from memweave.trainers.grpo import TraceGRPOTrainer  # noqa: E402
from memweave.trainers.grpo_config import Preset, TraceGRPOConfig, agemem, memory_r1  # noqa: E402
from memweave.trainers.losses import AGEMEM_EQ6, MEMORY_R1_EQ3, LossSettings  # noqa: E402
from tests.trainers.direct import (  # noqa: E402
    WORDS,
    DirectRollouts,
    DirectServer,
    Reward,
    Task,
    class_share,
    config,
    lora,
)

Make = Callable[..., TraceGRPOTrainer]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("policy") / "base"
    create_policy(folder, [" ".join(WORDS)], vocab_size=300)
    return folder


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Make:
    def build(
        reward: Reward = class_share,
        *,
        server: PolicyServer | None = None,
        adapter: bool = True,
        credit: Any = None,
        tasks: str = "ab",
        rollouts: dict[str, Any] | None = None,
        **settings: Any,
    ) -> TraceGRPOTrainer:
        from transformers import AutoModelForCausalLM

        chosen: Any = server or DirectServer(base, tmp_path / "served")
        return TraceGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
            [Task(name) for name in tasks],
            DirectRollouts(chosen, reward, **(rollouts or {})),
            chosen,
            config(tmp_path / "out", **settings),
            credit=credit,
            peft_config=lora() if adapter else None,
        )

    return build


def row(ids: list[int], spans: list[tuple[int, int]], advantages: list[float], trace: int = 1) -> Row:
    mask, credit = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.float32)
    logps = np.zeros(len(ids), np.float32)
    for (start, stop), advantage in zip(spans, advantages, strict=True):
        mask[start:stop], credit[start:stop] = True, advantage
        logps[start:stop] = -np.arange(start, stop) - 1
    return Row(
        ids=np.array(ids, np.int32),
        mask=mask,
        logprobs=logps,
        advantages=credit,
        spans=[Span(start, stop, number) for number, (start, stop) in enumerate(spans)],
        trace=UUID(int=trace),
        group="g",
        actor="policy",
        policy_version="v",
        temperature=1.0,
        prompt_length=spans[0][0],
    )


def settled(trainer: TraceGRPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# -- rows as tensors ---------------------------------------------------------------------------------------------------


def test_every_value_stands_where_its_token_is_predicted() -> None:
    # prompt 5 6 | sampled 7 8 | tool 90 91 | sampled 9
    batch = collate([row([5, 6, 7, 8, 90, 91, 9], [(2, 4), (6, 7)], [0.5, -2.0])], pad_id=0)
    # position t predicts token t + 1
    assert batch["mask"].tolist() == [[False, True, True, False, False, True]]
    assert batch["advantages"].tolist() == [[0, 0.5, 0.5, 0, 0, -2.0]]
    assert batch["sampled_logps"].tolist() == [[0, -3, -4, 0, 0, -7]]
    assert batch["step_ids"][batch["mask"]].tolist() == [0, 0, 1]


def test_rows_are_padded_at_the_right_and_cut_where_nothing_trains() -> None:
    long, short = row([1, 2, 3, 4, 5, 6], [(1, 3)], [1.0]), row([1, 2], [(1, 2)], [1.0])
    batch = collate([long, short], pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [1, 2, 9, 9, 9, 9]]
    first, second = pieces(batch, 1)
    assert first["input_ids"].tolist() == [[1, 2, 3]]  # nothing after the last sampled token can change a loss
    assert first["mask"].tolist() == [[True, True]]
    assert second["input_ids"].tolist() == [[1, 2]]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(("count", "steps"), [(7, 2), (1, 2), (8, 4), (5, 1), (0, 2)])
def test_no_row_is_dropped_and_processes_get_equal_counts(count: int, steps: int, processes: int) -> None:
    rows = [row([1] * (3 + i), [(1, 3)], [1.0], trace=i + 1) for i in range(count)]
    dealt = deal(rows, steps, processes, [0, 1])
    found = [each.trace.int for step in dealt for share in step for each in share if each.spans]
    assert sorted(found) == list(range(1, count + 1))
    for step in dealt:
        assert len({len(share) for share in step}) == 1
        assert len(step[0]) > 0


def test_which_rows_share_a_step_does_not_depend_on_the_number_of_processes() -> None:
    rows = [row([1] * (3 + i % 4), [(1, 3)], [1.0], trace=i + 1) for i in range(7)]

    def steps(processes: int) -> list[set[int]]:
        return [{r.trace.int for share in step for r in share if r.spans} for step in deal(rows, 3, processes, [5])]

    assert steps(1) == steps(2) == steps(4)
    assert steps(1) != [{r.trace.int for s in step for r in s} for step in deal(rows, 3, 1, [6])]


# -- what is learned ---------------------------------------------------------------------------------------------------


def gradient(trainer: TraceGRPOTrainer, rows: list[Row], per_forward: int = 100) -> tuple[float, Any]:
    """Return loss and gradient of `rows` as one batch."""
    trainer.args.rows_per_forward = per_forward
    trainer.model.zero_grad()
    tokens = sum(int(r.mask.sum()) for r in rows)
    counts = {name: torch.tensor(float(tokens)) for name in ("tokens", "rows", "steps")}
    batch = collate(rows, 0)
    batch["sampled_logps"] = trainer._no_grad_logps(trainer.model, batch)
    loss = 0.0
    for piece in pieces({**batch, **counts}, per_forward):
        part = trainer._compute_loss(trainer.model, piece)
        part.backward()
        loss += part.item()
    found = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return loss, torch.cat(found)


ROWS = [
    row([5, 6, 7, 8, 90, 91, 9, 30], [(2, 4), (6, 8)], [0.5, -2.0]),
    row([5, 6, 17, 18, 19], [(2, 5)], [1.0]),
    row([15, 16, 27], [(2, 3)], [-1.0]),
]


def test_padding_changes_neither_loss_nor_gradient(make: Make) -> None:
    trainer = make(adapter=False)
    loss, plain = gradient(trainer, ROWS)
    padded, with_padding = gradient(trainer, [*ROWS, empty_row(), empty_row()])
    assert padded == pytest.approx(loss, abs=1e-7)
    assert torch.allclose(plain, with_padding, atol=1e-7)
    assert plain.abs().max() > 1e-3


@pytest.mark.parametrize(("steps", "share"), [(1, 1.0), (2, 0.5)])
def test_losses_are_divided_by_what_trains_and_nothing_else(make: Make, steps: int, share: float) -> None:
    trainer = make(steps_per_generation=steps, tasks="abcd")
    counted = trainer._count(Collected([*ROWS, empty_row()]))
    assert {name: float(value) for name, value in counted.items()} == {
        "tokens": 8 * share,
        "rows": 3 * share,
        "steps": 4 * share,
    }


def test_rows_in_pieces_give_the_gradient_of_all_at_once(make: Make) -> None:
    trainer = make(adapter=False)
    loss, whole = gradient(trainer, ROWS)
    in_pieces, parts = gradient(trainer, ROWS, per_forward=1)
    assert in_pieces == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(whole, parts, atol=1e-6)


def test_log_probabilities_are_those_of_a_plain_forward_at_the_temperature(make: Make) -> None:
    trainer = make(adapter=False, temperature=0.7)
    batch = collate(ROWS[:1], 0)
    mine = trainer._no_grad_logps(trainer.model, batch)[0]
    ids = torch.tensor([ROWS[0].ids.tolist()])
    plain = torch.log_softmax(trainer.model.eval()(input_ids=ids).logits[0] / 0.7, -1)
    for place in (2, 3, 6, 7):
        assert mine[place - 1].item() == pytest.approx(plain[place - 1, ids[0, place]].item(), abs=1e-5)
    assert mine[3].item() == 0.0  # predicts a token of the tool


def one_step(trainer: TraceGRPOTrainer) -> list[tuple[float, float]]:
    """Train one step; return, for each trained reply, its advantage and by how much its log-probability rose."""
    batches: list[Any] = []
    prepare = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(prepare(inputs)) or batches[-1]
    trainer.train()
    ((batch,),) = batches
    rise = trainer._no_grad_logps(trainer.model, batch) - batch["sampled_logps"]
    replies = []
    for line, mask in enumerate(batch["mask"]):
        for step in batch["step_ids"][line][mask].unique():
            own = mask & (batch["step_ids"][line] == step)
            (advantage,) = set(batch["advantages"][line][own].tolist())
            replies.append((advantage, float(rise[line][own].sum())))
    return replies


ONE_STEP = {"max_steps": 1, "tasks": "a", "per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 1e-2}


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("advantages", [(1.0,), (-1.0,), (1.0, -1.0), (-1.0, 1.0)])
def test_one_step_makes_each_reply_likelier_or_less_likely_by_the_sign_of_its_advantage(
    make: Make, advantages: tuple[float, ...], adapter: bool
) -> None:
    """One episode alone, then two replies in one row with opposite credit."""

    def credit(groups: Sequence[Group]) -> CreditResult:
        trace = groups[0].traces[0]
        keys = {(trace.id, number): value for number, value in enumerate(advantages)}
        return CreditResult(keys, broadcast()(groups).report)

    turns = {"turns": len(advantages)}
    replies = one_step(make(adapter=adapter, credit=credit, rollouts=turns, **ONE_STEP))
    assert [advantage for advantage, _ in replies] == list(advantages)
    for advantage, rise in replies:
        assert rise * advantage > 1e-4


@pytest.mark.parametrize("adapter", [True, False])
def test_in_a_group_each_reply_moves_by_its_own_reward(make: Make, adapter: bool) -> None:
    def replica(task: str, trace: Trace) -> float:
        return float(trace.replica or 0)

    replies = one_step(make(replica, adapter=adapter, **ONE_STEP))
    assert len(replies) == 4
    outer = sorted(replies)[:1] + sorted(replies)[-1:]  # those between have less credit than what they share with these
    assert outer[0][1] < -1e-5
    assert outer[1][1] > 1e-5
    assert np.corrcoef(np.array(replies).T)[0, 1] > 0.8


def test_the_policy_learns_which_tokens_are_rewarded(make: Make) -> None:
    trainer = make(
        max_steps=20, per_device_train_batch_size=32, num_generations=8, tasks="abcd", learning_rate=1e-2, adapter=False
    )
    trainer.train()
    rewards = settled(trainer, "reward")
    start, end = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    assert start < 0.5
    assert end > start + 0.3


def test_shuffled_credit_learns_nothing(make: Make) -> None:
    credit = shuffled(broadcast(), 0)
    trainer = make(
        max_steps=20,
        per_device_train_batch_size=32,
        num_generations=8,
        tasks="abcd",
        learning_rate=1e-2,
        adapter=False,
        credit=credit,
    )
    trainer.train()
    rewards = settled(trainer, "reward")
    assert sum(rewards[-3:]) / 3 < sum(rewards[:3]) / 3 + 0.15


# -- the ratio, and servers that serve something else ------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_ratio_of_a_batch_is_one(make: Make, temperature: float) -> None:
    trainer = make(max_steps=3, temperature=temperature, rollouts={"temperature": temperature, "turns": 2})
    trainer.train()
    assert max(settled(trainer, "sampling/logp_difference_max")) <= 1e-3
    assert settled(trainer, "ratio") == pytest.approx([1.0] * 3, abs=1e-4)


class StaleServer(DirectServer):
    """Says that it serves what was published, and goes on with the first weights."""

    def _load(self, weights: Path | None) -> Any:
        return super()._load(weights) if getattr(self, "model", None) is None else self.model


def test_a_server_that_serves_older_weights_is_found(make: Make, base: Path, tmp_path: Path) -> None:
    trainer = make(server=StaleServer(base, tmp_path / "stale"), max_steps=5, learning_rate=0.1)
    with pytest.raises(
        ServerSetupError, match=r"does not sample from the weights that were published as run-policy-v\d"
    ):
        trainer.train()
    assert 1 <= trainer.state.global_step < 5


def test_a_difference_may_be_a_warning(
    make: Make, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = StaleServer(base, tmp_path / "stale")
    make(server=server, max_steps=3, learning_rate=0.1, logp_difference_action="warn").train()
    assert "does not sample from the weights" in caplog.text


def test_rows_sampled_at_another_temperature_are_refused(make: Make) -> None:
    with pytest.raises(NoPolicyError, match="temperature"):
        make(temperature=1.0, rollouts={"temperature": 0.7}).train()


def test_weights_that_did_not_change_are_not_published_again(make: Make) -> None:
    trainer = make(max_steps=2)
    trainer.train()
    first = trainer.publish()
    assert trainer.publish() == first
    assert trainer.server.publications == 3  # type: ignore[attr-defined]  # DirectServer's: two steps, and the last weights


def test_old_log_probabilities_may_be_computed_again(make: Make) -> None:
    trainer = make(
        max_steps=2, vllm_importance_sampling_correction=True, vllm_importance_sampling_mode="token_truncate"
    )
    trainer.train()
    assert max(settled(trainer, "sampling/logp_difference_max")) <= 1e-3
    assert settled(trainer, "ratio") == pytest.approx([1.0] * 2, abs=1e-4)


def test_a_batch_may_serve_several_steps(make: Make) -> None:
    trainer = make(
        max_steps=8, per_device_train_batch_size=4, steps_per_generation=2, num_iterations=2, learning_rate=2e-2
    )
    trainer.train()
    assert [number for number, _ in trainer._collector._rollouts.calls] == [0, 1]
    ratios = settled(trainer, "ratio")
    assert len(ratios) == 8
    assert ratios[0] == pytest.approx(1.0, abs=1e-4)
    assert abs(ratios[3] - 1.0) > 1e-5  # off policy by then


def test_accumulated_gradients_make_the_same_step(make: Make) -> None:
    def weights(**settings: Any) -> Any:
        trainer = make(max_steps=1, rollouts={"turns": 2}, **settings)
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])

    whole = weights(per_device_train_batch_size=8)
    parts = weights(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_the_reference_policy_is_the_start(make: Make) -> None:
    for adapter in (True, False):
        trainer = make(max_steps=3, beta=0.1, adapter=adapter, learning_rate=2e-2)
        trainer.train()
        kl = settled(trainer, "kl")
        assert kl[0] == pytest.approx(0.0, abs=1e-6)
        assert kl[-1] > 1e-6


@pytest.mark.parametrize("preset", [memory_r1(), memory_r1(literal=True, kl="k1"), agemem(kl="k2")])
def test_presets_of_the_papers_train(make: Make, preset: dict[str, Any]) -> None:
    trainer = make(**{**preset, "num_generations": 4}, rollouts={"turns": 2})
    trainer.train()
    assert len(settled(trainer, "kl")) == 2
    assert trainer.args.loss_settings().clip is preset["clip"]


@pytest.mark.parametrize(
    ("preset", "equation"), [(memory_r1(literal=True, kl="k1"), MEMORY_R1_EQ3), (agemem(kl="k1"), AGEMEM_EQ6)]
)
def test_presets_are_the_equations_of_the_papers(tmp_path: Path, preset: Preset, equation: LossSettings) -> None:
    """Every setting is compared: what a preset leaves out would be TRL's default, such as a KL term times the ratio."""
    args = TraceGRPOConfig(output_dir=str(tmp_path), use_cpu=True, **preset)
    expected = replace(equation, kl="k1", max_completion_length=args.max_completion_length)
    assert args.loss_settings() == expected
    assert not TraceGRPOConfig(output_dir=str(tmp_path), use_cpu=True, **memory_r1()).use_bias_correction_kl


def test_a_loss_that_is_no_number_stops_the_run_before_its_gradient(make: Make) -> None:
    """The second step of a batch: the first has ruined the weights, and they are not published again in between."""
    trainer = make(
        max_steps=4,
        per_device_train_batch_size=4,
        steps_per_generation=2,
        adapter=False,
        learning_rate=1e39,
        max_grad_norm=0.0,
    )
    with pytest.raises(
        OperationError, match=r"the loss is nan at step 2 \(the weight \S+ holds NaN or infinity\); lower"
    ):
        trainer.train()
    trainer = make(max_steps=1)
    trainer.accelerator.backward = lambda loss: pytest.fail("the gradient was taken")
    batches = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: [
        {**batch, "advantages": batch["advantages"] * float("nan")} for batch in batches(inputs)
    ]
    with pytest.raises(OperationError, match=r"the loss is nan at step 1; lower learning_rate \(0.01\), and look at"):
        trainer.train()


# -- who trains, and what is refused -----------------------------------------------------------------------------------


def test_a_frozen_partners_replies_are_not_trained_on(make: Make) -> None:
    def partner(trace: Trace) -> Trace:
        first, second = trace.generations
        return trace.model_copy(update={"generations": (first, second.model_copy(update={"policy_version": "frozen"}))})

    trainer = make(max_steps=1, rollouts={"turns": 2, "length": 6, "change": partner})
    trainer.train()
    assert settled(trainer, "tokens/generated") == [8 * 12]
    assert settled(trainer, "tokens/trained") == [8 * 6]
    assert settled(trainer, "rows/refused") == [8]


def test_only_chosen_actors_train(make: Make) -> None:
    def named(trace: Trace) -> Trace:
        first, second = trace.generations
        return trace.model_copy(update={"generations": (first, second.model_copy(update={"role": "judge"}))})

    trainer = make(max_steps=1, actors=["judge"], rollouts={"turns": 2, "length": 6, "change": named})
    trainer.train()
    assert settled(trainer, "tokens/trained") == [8 * 6]


def test_episodes_without_a_score_are_left_out_and_counted(make: Make) -> None:
    def sometimes(task: str, trace: Trace) -> float | None:
        return None if task == "a" and trace.replica else float(trace.replica or 0) / 10

    trainer = make(sometimes, max_steps=1)
    trainer.train()
    assert settled(trainer, "episodes/excluded") == [3]
    assert settled(trainer, "groups/excluded") == [1]
    assert settled(trainer, "rows/count") == [4]


def test_no_score_at_all_is_an_error(make: Make) -> None:
    with pytest.raises(RewardError, match="none of the 2 groups"):
        make(lambda task, trace: None).train()


def test_one_scored_episode_per_task_is_an_error(make: Make) -> None:
    with pytest.raises(GroupError, match="cannot be compared"):
        make(lambda task, trace: 1.0 if trace.replica == 0 else None).train()


def test_a_server_that_is_gone_is_named(make: Make) -> None:
    def gone(trace: Trace) -> Trace:
        return trace.model_copy(
            update={"status": TraceStatus.UNAVAILABLE, "score": None, "error": "connection refused"}
        )

    with pytest.raises(UnavailableError, match="connection refused"):
        make(rollouts={"change": gone}).train()


def test_episodes_without_a_model_call_are_an_error(make: Make) -> None:
    with pytest.raises(NoPolicyError, match="made no model call"):
        make(lambda task, trace: float(trace.replica or 0) / 10, rollouts={"turns": 0}).train()


def test_equal_rewards_change_nothing_and_are_counted(make: Make) -> None:
    trainer = make(lambda task, trace: 0.5, max_steps=1)
    trainer.train()
    assert settled(trainer, "frac_reward_zero_std") == [1.0]
    assert settled(trainer, "grad_norm") == [0.0]


def test_parts_of_the_score_are_logged(make: Make) -> None:
    trainer = make(lambda task, trace: Score(value=0.5, parts={"format": 0.25}), max_steps=1)
    trainer.train()
    assert settled(trainer, "rewards/format/mean") == [0.25]


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"num_generations": 1}, GroupError, "num_generations = 1"),
        ({"top_p": 0.9}, SettingsError, "top_p=0.9"),
        ({"top_k": 5}, SettingsError, "top_k=5"),
        ({"use_vllm": True}, SettingsError, "VLLMServer"),
        ({"scale_rewards": "none"}, SettingsError, "credit"),
        ({"eval_strategy": "steps"}, SettingsError, "eval_strategy"),
        ({"kl": "k4"}, SettingsError, "kl"),
        ({"loss_type": "cispo", "clip": False}, SettingsError, "clip"),
        ({"generation_batch_size": 6, "num_generations": 4}, SettingsError, "divisible"),
        ({"max_row_length": 0}, SettingsError, "max_row_length"),
        ({"logp_difference_action": "ignore"}, SettingsError, "raise or warn"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        config(tmp_path, **settings)


def test_defaults_are_accepted(tmp_path: Path) -> None:
    args = TraceGRPOConfig(output_dir=str(tmp_path))
    assert not args.gradient_checkpointing
    assert not args.activation_checkpointing
    assert not args.bf16


def test_too_few_tasks_are_refused(make: Make) -> None:
    with pytest.raises(SettingsError, match="1 tasks, but a generation batch of 8"):
        make(tasks="a")


def test_two_tasks_of_one_id_are_refused(make: Make) -> None:
    with pytest.raises(SettingsError, match="same id"):
        make(tasks="aa")


def test_every_pass_sees_every_task_in_another_order(make: Make) -> None:
    trainer = make(tasks="abcdefgh")
    laps = [[task.id for i in range(4) for task in trainer._tasks_of(4 * lap + i)] for lap in range(3)]
    assert all(sorted(lap) == list("abcdefgh") for lap in laps)
    assert laps[0] != laps[1]
    assert [t.id for t in trainer._tasks_of(2)] == laps[0][4:6]


# -- what is left behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [True, False])
def test_the_trained_policy_can_be_loaded(make: Make, base: Path, tmp_path: Path, adapter: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = make(max_steps=1, adapter=adapter)
    trainer.train()
    version = trainer.save_policy(tmp_path / "policy")
    assert trainer.publish().version == version
    loader: Any = AutoModelForCausalLM
    if adapter:
        from peft import PeftConfig

        assert PeftConfig.from_pretrained(str(tmp_path / "policy")).r == 4
    else:
        model = loader.from_pretrained(str(tmp_path / "policy"))
        for name, value in trainer.model.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name
    assert AutoTokenizer.from_pretrained(str(tmp_path / "policy")).chat_template
    info = __import__("json").loads((tmp_path / "policy/training.json").read_text())
    assert (info["run"], info["version"], info["step"]) == ("run", version, 1)
    assert info["settings"]["learning_rate"] == 1e-2


def test_curves_and_log_are_written(make: Make, tmp_path: Path) -> None:
    from memweave.trainers.curves import read_log

    make(max_steps=3, curves=True, beta=0.1).train()
    log = read_log(tmp_path / "out/log.jsonl")
    assert [entry["step"] for entry in log if "reward" in entry] == [1, 2, 3]
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_gets_the_metrics(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    make(max_steps=1, report_to="tensorboard").train()
    assert list((tmp_path / "board").rglob("events.out.tfevents.*"))


def test_nothing_is_written_to_standard_output(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make(max_steps=1, progress=True).train()
    assert capsys.readouterr().out == ""


def test_the_publisher_speaks_the_protocol(base: Path, tmp_path: Path) -> None:
    server = DirectServer(base, tmp_path / "served")
    assert isinstance(server, PolicyServer)
    assert server.current() is None or isinstance(server.current(), PublishedPolicy)
