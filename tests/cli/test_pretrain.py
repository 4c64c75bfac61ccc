"""`memweave pretrain` at toy size, and broken base policies given to `memweave train`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from memweave.recipes import pretraining as course  # noqa: E402 - after importorskip
from memweave.recipes.memory_r1 import measuring, pretraining  # noqa: E402
from memweave.recipes.memory_r1.measuring import measure, with_distractors  # noqa: E402
from memweave.recipes.memory_r1.pretraining import PretrainSettings, texts  # noqa: E402

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

SHORT = ("--clean-steps", "2", "--habit-steps", "1")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make everything small but what the options say, let nothing pass but perfection, and use one thread."""
    sizes = {
        "lessons": 2, "asked": 2, "manager_size": 2, "answerer_size": 2, "vocab_size": 420, "hidden": 64, "layers": 3,
        "heads": 2, "intermediate": 64, "context": 512,
    }  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(pretraining, "PretrainSettings", partial(PretrainSettings, **sizes))
    monkeypatch.setattr(pretraining, "texts", partial(texts, count=40))
    monkeypatch.setattr(pretraining, "measure", partial(measure, banks=3, asked=2, sizes=(2, 2)))
    monkeypatch.setattr(measuring, "with_distractors", partial(with_distractors, asked=4))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def easy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every policy pass the gate."""
    monkeypatch.setattr(course, "GATE", 0.0)


@pytest.mark.usefixtures("easy")
def test_a_policy_is_made_and_measured(cli: Cli, tmp_path: Path) -> None:
    result = cli("pretrain", "--out", "p", *SHORT, "--seed", "3")
    assert (result.code, result.err) == (0, "")
    first, second, *_ = result.out.splitlines()
    assert first.startswith("p: ")
    assert "parameters, 2 + 1 steps, loss " in first
    assert second.startswith("gate passed: 0.000 of lookups, needed 0.00 (6 replies of each role)")
    assert "lookups" in result.out
    report = json.loads((tmp_path / "p" / "pretraining.json").read_text())
    assert [report["settings"][name] for name in ("clean_steps", "habit_steps", "seed")] == [2, 1, 3]

    again = cli("pretrain", "--out", "p", *SHORT)
    assert (again.code, again.error) == (2, "error: p exists already. Choose another --out, or remove it")

    measured = cli("pretrain", "--measure", "p", "--json")
    assert (measured.code, measured.err) == (0, "")
    assert (measured.json["policy"], measured.json["passed"], measured.json["asked"]) == ("p", True, 6)
    assert all(0 <= share <= 1 for share in measured.json["by_kind"].values())


@pytest.mark.usefixtures("easy")
def test_json_is_one_object_and_nothing_else_is_said(cli: Cli) -> None:
    result = cli("pretrain", "--out", "p", *SHORT, "--json")
    assert (result.code, result.err) == (0, "")
    assert (result.json["policy"], result.json["passed"]) == ("p", True)
    assert (result.json["gate"]["lookups"], result.json["settings"]["clean_steps"]) == (0.0, 2)
    assert "error" not in result.json


@pytest.mark.usefixtures("easy")
def test_a_form_is_measured_among_distractors(cli: Cli, tmp_path: Path) -> None:
    made = cli("pretrain", "--out", "p", *SHORT, "--distill", "direct", "--json")
    assert (made.code, made.json["settings"]["distill"], made.json["device"]) == (0, "direct", "cpu")
    found = cli("pretrain", "--measure", "p", "--distractors", "0", "--distractors", "7", "--json")
    assert (found.code, found.err) == (0, "")
    assert {count: each["asked"] for count, each in found.json["distractors"].items()} == {"0": 4, "7": 4}
    shown = cli("pretrain", "--measure", "p", "--distractors", "7")
    assert [line.split() for line in shown.out.splitlines()][0] == ["distractors", "right"]
    assert shown.out.splitlines()[-1].split() == ["7", f"{found.json['distractors']['7']['right']:.3f}"]
    too_many = cli("pretrain", "--measure", "p", "--distractors", "55")
    assert (too_many.code, too_many.out) == (2, "")
    assert "55 distractors: give 0 to 54" in too_many.error


def test_a_missed_gate_is_an_error_and_the_policy_is_kept(cli: Cli, tmp_path: Path) -> None:
    result = cli("pretrain", "--out", "p", *SHORT)
    assert result.code == 1
    assert result.error == (
        "error: p answers 0.000 of lookups after its clean lessons, and 0.90 are needed to train on top of it. It is "
        "kept; try more --clean-steps (2 now) or another --seed"
    )
    assert "gate missed: 0.000 of lookups, needed 0.90" in result.out
    assert (tmp_path / "p" / "model.safetensors").exists()

    other = cli("pretrain", "--out", "q", *SHORT, "--json")
    assert (other.code, other.json["exit_code"], other.json["passed"]) == (1, 1, False)
    assert other.json["error"] == other.error.removeprefix("error: ")
    assert other.json["gate"]["lookups"] == 0.0

    measured = cli("pretrain", "--measure", "p")  # says what it finds; that is no failure
    assert (measured.code, measured.err) == (0, "")
    assert "gate missed: 0.000 of lookups" in measured.out
    assert "misses it on purpose" in measured.out


@pytest.mark.usefixtures("easy")
def test_ctrl_c_says_how_to_go_on_and_resume_does(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = course.Run.advance

    def interrupted(run: Any, report: Any) -> None:
        if run.step == 2:
            raise KeyboardInterrupt
        advance(run, report)

    with monkeypatch.context() as patch:
        patch.setattr(course.Run, "advance", interrupted)
        result = cli("pretrain", "--out", "p", *SHORT)
    assert (result.code, result.out) == (130, "")
    assert result.err.splitlines() == [
        f"what was saved is in {tmp_path / 'p.part'}; the same command with --resume goes on with it",
        "interrupted",
    ]
    fresh = cli("pretrain", "--out", "p", *SHORT)
    assert fresh.code == 2
    assert fresh.error.endswith("p.part holds a run that was cut off. Go on with it (--resume), or remove it")
    other = cli("pretrain", "--out", "p", "--clean-steps", "2", "--habit-steps", "9", "--resume", "--json")
    assert (other.code, other.json["exit_code"]) == (2, 2)
    assert "habit_steps: 1 then, 9 now" in other.json["error"]
    assert cli("pretrain", "--out", "p", *SHORT, "--resume").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name a new folder for the policy: --out FOLDER. To look at one: --measure FOLDER"),
        (("--out", "file"), "file exists already. Choose another --out"),
        (
            ("--out", "new", "--resume"),
            "new has no run to go on with (new.part is not there). Start it without --resume",
        ),
        (("--out", "new", "--clean-steps", "0"), "'--clean-steps'"),
        (("--out", "new", "--habit-steps", "-1"), "'--habit-steps'"),
        (("--measure", "nowhere"), "nowhere is no folder. A policy is a folder with config.json"),
        (("--measure", "file", "--out", "new"), "--measure only takes --distractors, --seed and --json"),
        (("--measure", "file", "--habit-steps", "0"), "--measure only takes --distractors, --seed and --json"),
        (("--measure", "file", "--distill", "direct"), "--measure only takes --distractors, --seed and --json"),
        (("--out", "new", "--distractors", "5"), "--distractors asks a policy that exists: give it with --measure"),
        (("--out", "new", "--distill", "none"), "distill = 'none': an answerer writes in one of select_then_answer"),
        (("--out", "new", "--device", "abacus"), "The device 'abacus' cannot be used here"),
    ],
)
def test_bad_calls_are_one_line_and_make_nothing(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "file").touch()
    result = cli("pretrain", *arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_package_is_named_with_the_command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else found(name))
    for arguments in (("--out", "p"), ("--measure", "p")):
        result = cli("pretrain", *arguments)
        assert result.code == 1
        assert "training needs trl. Install memweave with the extra: pip install 'memweave[train]'" in result.error


# broken policies


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from memweave.serving.policy_folder import create_policy

    return create_policy(tmp_path_factory.mktemp("policy") / "base", ["Anna lives in Rome"], vocab_size=280).path


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def newer(folder: Path) -> None:
    (folder / "memweave_policy.json").write_text(json.dumps({"format": 2}))


def not_a_number(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors")


DAMAGES: list[tuple[Callable[[Path], None], int, str]] = [
    (no_tokenizer, 2, "holds no tokenizer: expected tokenizer.json"),
    (no_template, 2, "holds no chat template: expected chat_template.jinja"),
    (newer, 1, "has policy format 2; this memweave knows 1. Update memweave"),
    (not_a_number, 2, "weights of model.norm.weight are not finite numbers (NaN)"),
]


@pytest.mark.parametrize(("damage", "code", "says"), DAMAGES)
@pytest.mark.parametrize("command", ["train memory-r1-manager --base", "train memory-r1-answerer --base"])
def test_a_broken_base_policy_is_refused_before_anything_is_made(
    cli: Cli, tmp_path: Path, policy: Path, command: str, damage: Callable[[Path], None], code: int, says: str
) -> None:
    shutil.copytree(policy, tmp_path / "bad")
    damage(tmp_path / "bad")
    result = cli(*command.split(), "bad", "--out", "run")
    assert (result.code, result.out) == (code, "")
    assert str(tmp_path / "bad") in result.error
    assert says in result.error
    assert not (tmp_path / "run").exists()
    as_json = cli(*command.split(), "bad", "--out", "run", "--json")
    assert (as_json.code, as_json.json) == (code, {"error": result.error.removeprefix("error: "), "exit_code": code})


@pytest.mark.parametrize(("damage", "code", "says"), DAMAGES)
def test_a_broken_policy_is_not_measured(
    cli: Cli, tmp_path: Path, policy: Path, damage: Callable[[Path], None], code: int, says: str
) -> None:
    shutil.copytree(policy, tmp_path / "bad")
    damage(tmp_path / "bad")
    result = cli("pretrain", "--measure", "bad")
    assert (result.code, result.out) == (code, "")
    assert says in result.error
