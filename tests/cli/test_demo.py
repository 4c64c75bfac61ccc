"""`memweave demo` on hashing embeddings: the whole loop, offline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from memweave.cli import learning
from memweave.demo import conversation, questions
from memweave.memory_stores import open_bank
from memweave.recipes import find_recipe
from memweave.records import Scope
from memweave.worlds.dialog_world import DialogWorld

if TYPE_CHECKING:
    from tests.cli.conftest import Cli


def test_the_whole_loop_as_json(cli: Cli, tmp_path: Path) -> None:
    result = cli("demo", "--no-train", "--json")
    assert result.code == 0
    assert result.err == ""
    found = result.json
    assert found["learning"] is None
    assert found["turns"] == len(conversation())
    assert {"ADD", "UPDATE", "DELETE"} <= found["operations"].keys()
    assert "FAILED" not in found["operations"]
    assert len(found["questions"]) == len(questions())
    assert 0 < found["exact_match"] <= found["f1"] + 1e-9
    shares = list(found["recall"]["all"].values())
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1

    undo = found["undo"]
    question = next(q for q in questions() if q.question == undo["question"])
    assert undo["answer_before"] != undo["answer_after"]
    assert question.answer in undo["answer_before"]
    assert question.answer_after_undo in undo["answer_after"]

    with open_bank(found["home"]) as bank:
        restored = bank.log(scope=Scope(user="demo"))[-1]
    assert str(restored.undoes) != undo["operation"]  # the last operation takes the undo back
    page = ElementTree.fromstring((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert sum("memory" in (node.get("class") or "") for node in page.iter("details")) >= found["memories"]


def test_what_a_person_sees(cli: Cli) -> None:
    result = cli("demo", "--no-train")
    assert result.code == 0
    assert "Learning" not in result.out
    for part in (
        "+ ADD",
        "~ UPDATE",
        "- DELETE",
        "Remembering",
        "Answering",
        "right",
        "before the undo",
        "R@5",
        "report.html",
    ):
        assert part in result.out
    assert "Hashing finds shared words" in result.out
    longest = max(len(line) for line in result.out.splitlines())
    assert longest <= 120


def test_it_can_be_run_again(cli: Cli) -> None:
    first, again = (cli("demo", "--no-train", "--json").json for _ in range(2))
    for key in ("turns", "operations", "memories"):
        assert first[key] == again[key]


def test_without_the_packages_for_training_the_rest_is_shown(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "missing", lambda: ["trl", "peft"])
    result = cli("demo")
    assert result.code == 0
    assert "Left out: trl, peft missing. pip install 'memweave[local,train]'" in result.out
    assert result.out.index("Retrieval") < result.out.index("Learning") < result.out.index("report.html")
    titles = [node.text for node in ElementTree.fromstring((tmp_path / "report.html").read_text()).iter("h2")]
    assert "Retrieval" in titles
    assert "Learning" not in titles


def test_what_is_missing_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "NEEDED", ("json", "memweave_has_no_such_package"))
    assert learning.missing() == ["memweave_has_no_such_package"]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let a policy that knows nothing learn for one step, in a DialogWorld of two short dialogues."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl")
    from memweave.recipes.memory_r1 import evaluation, training
    from memweave.serving import create_policy

    small = DialogWorld(sessions=1, session_turns=14, keys=2, friend_keys=1, follow_ups=2)
    for module in (training, evaluation):
        monkeypatch.setattr(module, "DialogWorld", lambda: small)
        monkeypatch.setattr(module, "MAX_TOKENS", {"manager": 4, "answerer": 4})
    recipe = find_recipe("memory-r1-manager")
    few = replace(recipe.settings, tasks_per_step=2, group_size=2, lora_rank=4)
    recipe = replace(recipe, settings=few, max_tokens={"manager": 4, "answerer": 4})
    monkeypatch.setattr("memweave.recipes.find_recipe", lambda name: recipe)
    monkeypatch.setattr("memweave.worlds.dialog_world.SIZES", {"train": 2, "val": 1})
    monkeypatch.setattr(learning, "STEPS", 1)
    monkeypatch.setattr(learning, "DIALOGUES", 1)
    policy = create_policy(tmp_path / "tiny", ["who lives where"], vocab_size=300, layers=1).path
    monkeypatch.setattr("memweave.recipes.running.DIALOG_BASE", policy)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield policy
    torch.set_num_threads(before)


def test_a_policy_learns_at_the_end(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    result = cli("demo")
    assert result.code == 0, result.err
    shown = result.out.partition("Learning")[2]
    for part in ("base policy", "after 1 steps", "rules, exact key", "adds everything", "perfect", "1 unseen dialogue"):
        assert part in shown
    page = ElementTree.fromstring((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Learning" in [node.text for node in page.iter("h2")]
    assert "after 1 steps" in "".join(page.itertext())
    assert not [path for path in tmp_path.iterdir() if path.name not in ("tiny", "report.html", ".memweave")]


def test_what_it_learned_is_in_the_json_and_nothing_else_is_said(cli: Cli, tiny: Path) -> None:
    result = cli("demo", "--json")
    assert (result.code, result.err) == (0, "")
    found = result.json["learning"]
    assert (len(found["rewards"]), found["episodes"], found["dialogues"]) == (1, 4, 1)
    assert found["questions"] > 0
    assert found["seconds"] > 0
    by_name = {manager["name"]: manager for manager in found["managers"]}
    assert all(0 <= manager["exact_match"] <= 1 for manager in by_name.values())
    assert by_name["base policy"]["memories"] == 0  # four tokens are no operation
    assert by_name["adds everything"]["memories"] > by_name["perfect"]["memories"] > 0


@pytest.mark.parametrize("arguments", [("--home", "mine"), ()])
def test_a_folder_with_something_else_in_it_is_left_alone(cli: Cli, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    folder = tmp_path / (arguments[1] if arguments else ".memweave/demo")
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("precious")
    result = cli("demo", *arguments)
    assert result.code == 2
    assert "--home" in result.error or "Name another folder" in result.error
    assert (folder / "thesis.txt").read_text() == "precious"


def test_a_report_that_cannot_be_written_is_an_error_before_any_work(cli: Cli, tmp_path: Path) -> None:
    result = cli("demo", "--report", "nowhere/report.html")
    assert result.code == 2
    assert "nowhere" in result.error
    assert not (tmp_path / ".memweave").exists()
