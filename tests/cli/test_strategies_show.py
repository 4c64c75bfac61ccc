"""`memweave strategies show`: the graph in a terminal, as JSON, and as a page; the page in a browser is in tests/integration."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from memweave.graph_records import NewQuery, NewStrategy, Principle, RolloutOutcome, StrategyKind
from memweave.memory_stores import StrategySettings, open_strategies
from memweave.records import Scope
from memweave.tracing import Trace, TraceStore
from memweave.trainers.edge_weights import Reinforce
from tests.cli import strategy_graphs

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

ANNA = Scope(user="anna")
HOSTILE = "</script><script>alert(1)</script> & \x1b[31mred\x07 \u202eleft \u2028 <img src=x onerror=alert(2)> ]]>"
SEARCHED, GUESSED, UNUSED = ("Start", "Search", "End"), ("Start", "Guess", "End"), ("Start", "Plan", "End")


@pytest.fixture
def traces(tmp_path: Path) -> list[Trace]:
    """Two runs in a trace store."""
    made = [strategy_graphs.trace("Who wrote it?", answer, 1.0) for answer in (HOSTILE, "the second run")]
    with TraceStore(tmp_path / "my traces.db") as store:
        store.add_many(made)
    return made


@pytest.fixture
def home(tmp_path: Path, cli: Cli, traces: list[Trace], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph of two queries, three paths and two strategies, one of them trained; texts and ids are hostile."""
    monkeypatch.setenv("MEMWEAVE_USER", "anna")
    ids = [str(each.id) for each in traces]
    with open_strategies(tmp_path / ".memweave", embedding="hashing") as graph:
        first = [
            RolloutOutcome(states=SEARCHED, reward=1.0, trace_id=ids[0]),
            RolloutOutcome(states=GUESSED, reward=0.0, trace_id="no-such: <trace>"),
        ]
        graph.add(NewQuery(text=f"Who wrote the red book? {HOSTILE}", query_id="q1"), first, scope=ANNA)
        graph.add(
            NewQuery(text="Who wrote the blue book?", query_id="q2"),
            [RolloutOutcome(states=UNUSED, reward=0.25)],
            scope=ANNA,
        )
        paths = {path.states: path.id for path in graph.paths(scope=ANNA)}
        new = NewStrategy(
            summary=f"consider searching {HOSTILE}",
            principles=(Principle(text=f"search first {HOSTILE}", score=70),),
            kind=StrategyKind.CONTRAST,
            score=60,
            uncertainty="few questions",
        )
        graph.write(new, [paths[SEARCHED], paths[GUESSED]], scope=ANNA, reason=f"contrast {HOSTILE}")
        other = NewStrategy(summary="answer briefly", kind=StrategyKind.SPECULATIVE, score=40)
        graph.write(other, [paths[GUESSED]], scope=ANNA, reason="speculative")
        active = graph.activate("Who wrote the blue book?", scope=ANNA)
        step = Reinforce(0.5).step(active, 0, 1.0, 0.0)
        graph.apply(step.model_copy(update={"trace_with": ids[1]}), scope=ANNA)
    return tmp_path / ".memweave"


def embedded(page: str) -> Any:
    root = ElementTree.fromstring(page)
    (data,) = [each for each in root.iter("script") if each.get("id") == "graph"]
    return json.loads(data.text or "")


def test_strategies_stand_above_the_paths_that_lead_to_them_heaviest_first(cli: Cli, home: Path) -> None:
    shown = cli("strategies", "show")
    lines = shown.out.splitlines()
    first = next(i for i, line in enumerate(lines) if "contrast" in line)
    assert "medium 60, evidence 1, weight 1." in lines[first]
    assert lines[first + 1].startswith("  consider searching </script>")
    assert any("1 query, 1 right, 0 wrong, 1 update  Start > Search > End" in line for line in lines)
    assert "2 queries, 3 paths, 2 strategies; version 1 of the weights." in " ".join(shown.err.split())
    assert not set(shown.out) & {"\x1b", "\x07", "\u202e"}
    assert cli("strategies", "show", "--limit", "1").out.count("evidence") == 1
    assert "no strategies of default/boris" in cli("strategies", "show", "--user", "boris").err


def test_one_strategy_shows_its_principles_runs_updates_and_history(cli: Cli, home: Path, traces: list[Trace]) -> None:
    found = cli("strategies", "list", "--json").json["strategies"]
    mine = next(each for each in found if each["kind"] == "contrast")["id"]
    shown = cli("strategies", "show", mine[-8:]).out
    for part in ("search first", "high 70", "may be wrong: few questions", "ADD by graph-memory: contrast"):
        assert part in shown
    assert f"memweave traces show {traces[0].id}" in shown
    assert "trace no-such: <trace>" in shown
    assert "gap +1.00" in shown
    assert str(traces[1].id) in shown
    assert "blue book" not in shown.partition("weight updates")[0]  # its paths do not lead here
    refused = cli("strategies", "show", "ffffffff")
    assert (refused.code, "there is no strategy 'ffffffff'" in refused.error) == (2, True)
    assert "is not an id" in cli("strategies", "show", "xyz").error


def test_json_says_the_same_and_can_be_narrowed(cli: Cli, home: Path) -> None:
    found = cli("strategies", "show", "--json").json
    assert [len(found[name]) for name in ("queries", "paths", "strategies", "edges")] == [2, 3, 2, 6]
    assert found["version"] == 1
    assert found["initial_weight"] == 1.0
    assert found["queries"][0]["right"] == 1
    assert sorted(visit["reward"] for visit in found["queries"][0]["visits"]) == [0.0, 1.0]
    paths = {path["id"] for path in found["paths"]}
    assert {visit["path"] for query in found["queries"] for visit in query["visits"]} == paths
    mine = next(each for each in found["strategies"] if each["strategy"]["kind"] == "speculative")
    assert (mine["weight"], mine["updates"]) != (None, None)
    part = cli("strategies", "show", mine["strategy"]["id"], "--json").json
    assert [len(part[name]) for name in ("queries", "paths", "strategies", "edges")] == [1, 1, 1, 2]


def test_old_queries_are_left_out_and_it_says_so(cli: Cli, home: Path, tmp_path: Path) -> None:
    found = cli("strategies", "show", "--queries", "1", "--json").json
    assert [query["query_id"] for query in found["queries"]] == ["q2"]
    assert found["total_queries"] == 2
    assert len(found["paths"]) == 3  # those that lead to strategies stay
    cli("strategies", "show", "--queries", "1", "--html", "page.html")
    assert "the newest 1 of 2 queries" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert cli("strategies", "show", "--queries", "0", "--json").json["queries"] == []


def test_the_page_is_one_file_that_loads_nothing_and_runs_one_script(cli: Cli, home: Path, tmp_path: Path) -> None:
    assert "Wrote page.html" in cli("strategies", "show", "--html", "page.html").err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    root = ElementTree.fromstring(page)  # well-formed, whatever the texts say
    kept = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert (
        re.findall(r"https?:|url\(|@import|src=|href=|innerHTML|eval\(", kept.replace("http://www.w3.org/2000/svg", ""))
        == []
    )
    policy = next(each.get("content", "") for each in root.iter("meta") if each.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    for content in (script, style):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    assert page.count("<script") == 2
    assert not set(page) & {"\x1b", "\x07", "\u202e", "\u2028"}


def test_the_page_holds_what_json_says_and_the_traces_of_a_store(
    cli: Cli, home: Path, tmp_path: Path, traces: list[Trace]
) -> None:
    done = cli("strategies", "show", "--html", "page.html", "--store", "my traces.db", "--json").json
    assert done == {"file": "page.html", "strategies": 2, "traces": 2}
    data = embedded((tmp_path / "page.html").read_text(encoding="utf-8"))
    said = cli("strategies", "show", "--json").json
    assert {edge["source"] for edge in data["edges"]} == {edge["source"] for edge in said["edges"]}
    assert [trace["id"] for trace in data["traces"]] == [str(traces[1].id), str(traces[0].id)]  # of updates first
    assert "    -> the second run" in data["traces"][0]["lines"]
    assert data["trace_options"] == " --store 'my traces.db'"
    assert embedded_without_store(cli, tmp_path)["traces"] == []
    assert "no trace store at nowhere.db" in cli("strategies", "show", "--store", "nowhere.db").error


def embedded_without_store(cli: Cli, folder: Path) -> Any:
    cli("strategies", "show", "--html", "other.html")
    return embedded((folder / "other.html").read_text(encoding="utf-8"))


def test_a_page_is_replaced_but_no_other_file(cli: Cli, home: Path, tmp_path: Path) -> None:
    assert cli("strategies", "show", "--html", "page.html").code == 0
    before = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert cli("strategies", "show", "--html", "page.html").code == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == before
    (tmp_path / "notes.md").write_bytes(b"mine \xff")
    refused = cli("strategies", "show", "--html", "notes.md")
    assert (refused.code, "is no page of ours" in refused.error) == (2, True)
    assert (tmp_path / "notes.md").read_bytes() == b"mine \xff"


def test_a_user_without_a_graph_gets_an_empty_page(cli: Cli, home: Path, tmp_path: Path) -> None:
    assert cli("strategies", "show", "--user", "boris", "--html", "page.html").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert embedded(page)["strategies"] == []
    assert "red book" not in page


def test_updates_and_changes_that_a_page_holds_are_bounded(tmp_path: Path, cli: Cli) -> None:
    from memweave.cli.strategy_view import UPDATES

    with open_strategies(
        tmp_path / ".memweave", embedding="hashing", settings=StrategySettings(match_threshold=1)
    ) as graph:
        strategy_graphs.build(graph, ANNA, queries=2, paths=2, strategies=1, steps=UPDATES + 3)
    (shown,) = cli("strategies", "show", "--json", "--user", "anna").json["strategies"]
    assert [step["version"] for step in shown["updates"]] == list(range(4, UPDATES + 4))
