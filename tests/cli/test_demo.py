"""`memweave demo` on hashing embeddings: the whole loop, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from memweave.demo import conversation, questions
from memweave.memory_stores import open_bank
from memweave.records import Scope

if TYPE_CHECKING:
    from tests.cli.conftest import Cli


def test_the_whole_loop_as_json(cli: Cli, tmp_path: Path) -> None:
    result = cli("demo", "--json")
    assert result.code == 0
    assert result.err == ""
    found = result.json
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
    result = cli("demo")
    assert result.code == 0
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
    first, again = (cli("demo", "--json").json for _ in range(2))
    for key in ("turns", "operations", "memories"):
        assert first[key] == again[key]


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
