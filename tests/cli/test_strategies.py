"""`memweave strategies`: what is there, whether it is sound, earlier weights, and moving."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memweave.graph_records import NewQuery, NewStrategy, RolloutOutcome, StrategyKind
from memweave.memory_stores import StrategyGraph, StrategySettings, open_strategies
from memweave.records import Scope
from memweave.trainers.edge_weights import Reinforce

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

ANNA = Scope(user="anna")


def build(graph: StrategyGraph) -> None:
    outcomes = [
        RolloutOutcome(states=("Start", "Search", "End"), reward=1.0),
        RolloutOutcome(states=("Start", "End"), reward=0.0),
    ]
    graph.add(NewQuery(text="Who wrote the [red] book?", query_id="q1"), outcomes, scope=ANNA)
    right, wrong = (path.id for path in graph.paths(scope=ANNA))
    new = NewStrategy(summary="consider [bold] searching first", kind=StrategyKind.CONTRAST, score=60)
    graph.write(new, [right, wrong], scope=ANNA, reason="contrast")
    other = NewStrategy(summary="answer from what you know", kind=StrategyKind.SPECULATIVE, score=40)
    graph.write(other, [wrong], scope=ANNA, reason="speculative")


@pytest.fixture
def home(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with two strategies and four versions of their weights; version 2 and 4 were kept."""
    monkeypatch.setenv("MEMWEAVE_USER", "anna")
    settings = StrategySettings(snapshot_every=2)
    with open_strategies(tmp_path / ".memweave", embedding="hashing", settings=settings) as graph:
        build(graph)
        for _ in range(4):
            active = graph.activate("Who wrote the blue book?", scope=ANNA)
            graph.apply(Reinforce(0.5).step(active, 0, 1.0, 0.0), scope=ANNA)
    return tmp_path / ".memweave"


def test_strategies_are_listed_with_the_weight_of_their_paths(cli: Cli, home: Path) -> None:
    listed = cli("strategies", "list")
    assert "consider [bold] searching first" in listed.out
    assert "medium 60" in listed.out
    assert "2 of 2 strategies." in listed.err
    found = cli("strategies", "list", "--limit", "1", "--json").json
    assert (found["total"], found["strategies"][0]["summary"]) == (2, "consider [bold] searching first")
    assert found["strategies"][0]["mean_weight"] > 1
    assert "no strategies of default/boris" in cli("strategies", "list", "--user", "boris").err


def test_an_id_is_shown_whole_beside_a_long_summary(cli: Cli, home: Path) -> None:
    long = "when several things can be looked up independently, consider " + "searching for each of them " * 3
    with open_strategies(home) as graph:
        (path, *_) = (path.id for path in graph.paths(scope=ANNA))
        graph.write(NewStrategy(summary=long, kind=StrategyKind.CONTRAST, score=50), [path], scope=ANNA, reason="c")
        ids = [each.id.hex for each in graph.strategies(scope=ANNA)]
    listed = cli("strategies", "list").out
    assert all(known[-8:] in listed for known in ids)
    for column in ("confidence", "evidence", "paths", "weight"):
        assert column in listed.splitlines()[0]


def test_versions_are_listed_and_gone_back_to(cli: Cli, home: Path) -> None:
    found = cli("strategies", "versions", "--json").json["versions"]
    assert [(each["version"], each["current"]) for each in found] == [(0, False), (2, False), (4, True)]
    assert "as made" in cli("strategies", "versions").out
    assert "this is version 5" in cli("strategies", "rollback", "2").err
    assert cli("strategies", "rollback", "0", "--json").json["version"]["version"] == 6
    refused = cli("strategies", "rollback", "3")
    assert refused.code == 2
    assert "version 3 of the weights was not kept" in refused.error


def test_a_sound_graph_passes_and_one_that_is_not_is_named(cli: Cli, home: Path) -> None:
    assert "is sound" in cli("strategies", "check").err
    assert cli("strategies", "check", "--json").json == {"problems": []}
    with sqlite3.connect(home / "ledger.sqlite") as raw:
        raw.execute(
            "UPDATE memweave_graph_edges SET target = ? WHERE kind = 'path_strategy' AND position = 3", ("f" * 32,)
        )
    raw.close()
    spoiled = cli("strategies", "check")
    assert spoiled.code == 1
    assert "an orphan: its strategy never existed" in spoiled.out
    assert "is not sound" in spoiled.error
    found = cli("strategies", "check", "--json")
    assert found.code == 1
    assert any("orphan" in each["what"] for each in found.json["problems"])


def test_an_export_comes_in_once_and_only_for_a_user_without_a_graph(cli: Cli, home: Path, tmp_path: Path) -> None:
    assert "Wrote" in cli("strategies", "export", "out.jsonl").err
    assert "exists already" in cli("strategies", "export", "out.jsonl").error
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(cli("strategies", "export", "--json").json["lines"]) == len(lines)
    written = cli("strategies", "export").out.splitlines()
    assert [each for each in written if "exported_at" not in each] == [
        each for each in lines if "exported_at" not in each
    ]
    assert "Imported 3 nodes." in cli("strategies", "import", "out.jsonl", "--user", "boris").err
    assert "it is there already" in cli("strategies", "import", "out.jsonl", "--user", "boris").err
    assert cli("strategies", "list", "--user", "boris").out == cli("strategies", "list").out
    (tmp_path / "short.jsonl").write_text("\n".join(lines[:-1]))
    refused = cli("strategies", "import", "short.jsonl", "--user", "carl")
    assert (refused.code, "incomplete" in refused.error) == (2, True)
    assert json.loads(lines[0])["memweave"] == "strategies"


def test_a_graph_of_another_encoder_is_refused_with_what_to_do(cli: Cli, home: Path, tmp_path: Path) -> None:
    cli("strategies", "export", "out.jsonl")
    refused = cli("strategies", "import", "out.jsonl", "--home", "other", "--embedding", "hashing:64")
    assert refused.code == 1
    assert "memweave memory rebuild --embedding hashing:256" in refused.error
    refused = cli("strategies", "import", "out.jsonl", "--embedding", "hashing:64")
    assert "memweave memory rebuild --embedding hashing:64" in refused.error
