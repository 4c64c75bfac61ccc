"""`memweave cases`: pools in and out, and what is in the bank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memweave.cli.app import run
from memweave.memory_stores import open_cases
from memweave.records import ReplayRow, Scope

POOL = [
    {"question": "Who?", "plan": json.dumps({"plan": [{"id": 1, "description": "look [it] up"}]}), "reward": 1},
    {"case": "Where?", "plan": "ask", "case_label": "negative"},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMWEAVE_EMBEDDING", "hashing")
    monkeypatch.setenv("MEMWEAVE_USER", "anna")
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, POOL)))
    return tmp_path


def test_a_pool_comes_in_is_listed_and_goes_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cases", "import", "pool.jsonl"]) == 0
    assert "Imported 2 cases." in capsys.readouterr().err
    assert run(["cases", "import", "pool.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cases": 0, "replay": 0}
    assert run(["cases", "list"]) == 0
    listed = capsys.readouterr()
    assert "look [it] up" in listed.out
    assert "2 of 2 cases." in listed.err
    assert run(["cases", "list", "--json", "--limit", "1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["total"], [c["task"] for c in shown["cases"]]) == (2, ["Who?"])
    assert run(["cases", "export", "out.jsonl"]) == 0
    out = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [(line["question"], line["reward"]) for line in out] == [("Who?", 1.0), ("Where?", 0.0)]
    capsys.readouterr()
    assert run(["cases", "export", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cases": out, "replay": []}
    assert run(["cases", "export"]) == 0
    assert capsys.readouterr().out == (here / "out.jsonl").read_text()
    assert run(["cases", "import", "out.jsonl", "--user", "boris"]) == 0
    assert "Imported 2 cases." in capsys.readouterr().err


def test_experience_goes_out_when_it_is_asked_for_and_comes_in(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cases", "import", "pool.jsonl"]) == 0
    with open_cases(here / ".memweave") as bank:
        anna = Scope(user="anna")
        bank.add_replay(
            [ReplayRow(query="Who?", case_id=case.id, reward=1.0) for case in bank.cases(scope=anna)], scope=anna
        )
    assert run(["cases", "export", "out.jsonl", "--replay"]) == 0
    assert "Wrote 2 cases and 2 rows of experience to out.jsonl." in capsys.readouterr().err
    assert run(["cases", "export", "--replay", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["replay"]) == 2
    assert run(["cases", "import", "out.jsonl", "--user", "boris"]) == 0
    assert "Imported 2 cases and 2 rows of experience." in capsys.readouterr().err


def test_wrong_use_says_what_to_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cases", "list"]) == 2
    assert "there is no data folder" in capsys.readouterr().err
    (here / "bad.jsonl").write_text('{"question": "q", "plan": "p", "reward": 1}\n{"question": "q"}\n')
    assert run(["cases", "import", "bad.jsonl"]) == 2
    assert "bad.jsonl line 2 is no case: it has no plan" in capsys.readouterr().err
    assert run(["cases", "list"]) == 0
    assert "There are no cases of default/anna." in capsys.readouterr().err
    assert run(["cases", "import", "none.jsonl"]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert run(["cases", "export", "bad.jsonl"]) == 2
    assert "exists already" in capsys.readouterr().err
