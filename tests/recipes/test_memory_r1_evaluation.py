"""`evaluate_world`: what it returns, whom it knows, and that it gives the same twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from memweave.errors import ContextLengthError, InputError, SettingsError
from memweave.recipes.memory_r1 import dialogs, evaluation, players
from memweave.recipes.memory_r1.evaluation import evaluate_world
from memweave.worlds.dialog_world import DialogWorld, QuestionKind

QUIET = DialogWorld(miss=0, leak=0, repeat=0)
"""The world with an extractor that makes no mistake."""
ANSWERS = players.ANSWERERS["oracle"]


def test_raw_turns_are_found_by_bm25() -> None:
    val = DialogWorld().dialogues("val", 3)
    right = []
    for config in (dialogs.BM25, None):
        with dialogs.scratch_bank(config) as bank:
            dialogs.raw_turns(val).fill(bank)
            right.append(dialogs.ask(bank, DialogWorld(), val, ANSWERS, budget=6).right)
    assert evaluate_world("raw-turns", "oracle", budgets=[6], split="val", number=3).budgets[6].right == right[0]
    assert right[0] != right[1]


@pytest.mark.parametrize("budget", [0, 1, 2_001])
def test_an_impossible_budget_is_refused(budget: int) -> None:
    with pytest.raises(InputError, match=f"budget {budget}: .* give 2 to 2,000"):
        evaluate_world("oracle", "oracle", budgets=[6, budget], number=1)


def test_the_same_evaluation_gives_the_same_answers() -> None:
    """Without an order of their own, memories of equal score are shown or not by chance."""
    first, second = (evaluate_world("raw-turns", "oracle", budgets=[6, 12], split="val", number=8) for _ in range(2))
    assert {n: at.right for n, at in first.budgets.items()} == {n: at.right for n, at in second.budgets.items()}
    assert 0 < first.budgets[6].score < first.budgets[12].score < 1


def test_what_an_evaluation_returns() -> None:
    told: list[tuple[str, int, int]] = []
    found = evaluate_world(
        "always-add", "oracle", budgets=[12, 6, 12], split="val", number=3, report=lambda *told_: told.append(told_)
    )
    val = DialogWorld().dialogues("val", 3)
    assert (found.dialogues, found.questions) == (3, sum(len(d.questions) for d in val))
    assert list(found.budgets) == [12, 6]
    assert found.policy_versions == {"manager": None, "answerer": None}
    at = found.budgets[6]
    shares = [sum(map(int, at.right[d.id])) / len(d.questions) for d in val]
    assert at.score == pytest.approx(sum(shares) / 3)
    assert at.low <= at.score <= at.high
    lookups = [
        int(mark)
        for d in val
        for question, mark in zip(d.questions, at.right[d.id], strict=True)
        if question.kind is QuestionKind.LOOKUP
    ]
    assert at.kinds["lookup"] == pytest.approx(sum(lookups) / len(lookups))
    assert found.questions_by_kind["lookup"] == len(lookups)
    assert at.bank_size == pytest.approx(
        sum(len({*f}) for d in val for t in d.turns if (f := DialogWorld().extract(t))) / 3
    )
    assert told[0] == ("always-add remembers", 0, 3)
    assert ("always-add remembers", 3, 3) in told
    assert told[-1] == ("oracle answers, budget 6", 3, 3)


def test_names_that_nobody_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no manager is called 'orcle'. There are: oracle, .*raw-turns"):
        evaluate_world("orcle", "oracle", number=1)
    with pytest.raises(SettingsError, match=r"no answerer is called 'exact-key'. There are: oracle, rule"):
        evaluate_world("oracle", "exact-key", number=1)
    with pytest.raises(InputError, match="holds neither an adapter nor a policy"):
        evaluate_world(str(tmp_path), "oracle", number=1)
    with pytest.raises(InputError, match=r"none does not exist. Name one with --base"):
        evaluate_world("oracle", "base", number=1, base=tmp_path / "none")


# policies that sample


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a policy with random weights, whose replies are noise."""
    pytest.importorskip("torch")
    from memweave.serving import create_policy

    said = [turn.text for turn in QUIET.dialogues("train", 1)[0].turns]
    folder: Path = tmp_path_factory.mktemp("policies") / "tiny"
    return create_policy(folder, said, vocab_size=400, hidden=32, layers=1, heads=1, initializer_range=0.5).path


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let replies be short: those of random weights do not end by themselves."""
    monkeypatch.setattr(evaluation, "MAX_TOKENS", {"manager": 4, "answerer": 6})


@pytest.mark.usefixtures("brief")
def test_policies_that_sample_give_the_same_for_the_same_seed(tiny: Path) -> None:
    runs = [evaluate_world("base", "base", split="val", number=2, temperature=1.0, seed=1, base=tiny) for _ in range(2)]
    one, again = (run.budgets[6] for run in runs)
    assert (one.right, one.failed_turns, one.unanswered) == (again.right, again.failed_turns, again.unanswered)
    assert one.failed_turns > 0  # noise is no operation
    assert one.unanswered < sum(map(len, one.right.values()))  # but it is an answer
    version = runs[0].policy_versions["manager"]
    assert version is not None
    assert runs[0].policy_versions == {"manager": version, "answerer": version}


@pytest.mark.usefixtures("brief")
def test_an_adapter_plays_its_role_on_the_server_of_its_base(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from memweave.serving import weights_version

    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config).save_pretrained(tmp_path / "policy")
    found = evaluate_world("oracle", str(tmp_path / "policy"), split="val", number=1, base=tiny)
    assert found.policy_versions == {"manager": None, "answerer": weights_version(tmp_path / "policy")}
    same = evaluate_world("oracle", f"local:{tiny}?adapter={tmp_path / 'policy'}", split="val", number=1)
    assert same.policy_versions == found.policy_versions
    assert same.budgets[6].right == found.budgets[6].right
    whole = evaluate_world("oracle", str(tiny), split="val", number=1)
    assert whole.policy_versions["answerer"] == weights_version(tiny)


@pytest.mark.usefixtures("brief")
def test_a_budget_too_large_for_the_context_is_named(tiny: Path) -> None:
    says = (
        r"with a budget of 1000, val-000\d: The prompt has \d+ tokens; the context of tiny holds 1024, .*smaller budget"
    )
    with pytest.raises(ContextLengthError, match=says):
        evaluate_world("raw-turns", "base", budgets=[1_000], split="val", number=2, base=tiny)
