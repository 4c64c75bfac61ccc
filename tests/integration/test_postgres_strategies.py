"""A graph of strategies whose ledger is in a real PostgreSQL: the same as on SQLite."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memweave.memory_stores import StrategyGraph, StrategySettings, open_bank, open_strategies
from memweave.records import Scope, new_id

if TYPE_CHECKING:
    from conftest import Postgres

pytestmark = pytest.mark.integration

UNIT = Path(__file__).resolve().parents[1] / "memory_stores"


def _module(name: str) -> ModuleType:
    """Import a module of the unit tests, for what it does to a graph."""
    spec = importlib.util.spec_from_file_location(f"unit_{name}", UNIT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


model, weights = _module("test_strategy_model"), _module("test_strategy_weights")


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> str:
    """Return the URL of an empty database."""
    return postgres.database()


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[StrategyGraph]:
    """Return a graph whose ledger is in PostgreSQL."""
    given = StrategySettings(neighbours=2, snapshot_every=3)
    with open_strategies(
        tmp_path_factory.mktemp("graph"), embedding="hashing", ledger_url=url, settings=given
    ) as opened:
        yield opened


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(model.DEEDS, min_size=3, max_size=14))
def test_the_graph_does_what_the_model_does(graph: StrategyGraph, deeds: list[tuple[str, int, list[int]]]) -> None:
    scope, expected = Scope(tenant=str(new_id()), user="anna"), model.Model()
    for deed in [("add", 0, [0, 1]), ("write", 0, [0, 1]), *deeds]:
        model.do(graph, expected, scope, *deed)
        model.compare(graph, expected, scope)
    assert graph.check(scope=scope) == []


def test_versions_and_moving(graph: StrategyGraph, tmp_path: Path) -> None:
    scope = Scope(tenant=str(new_id()), user="anna")
    weights.build(graph, scope)
    for _ in range(7):
        graph.apply(weights.step(graph, scope), scope=scope)
    graph.rollback(3, scope=scope)
    assert [each.version for each in graph.versions(scope=scope)] == [0, 3, 6, 7, 8]
    with open_strategies(tmp_path, embedding="hashing") as other:  # from PostgreSQL to SQLite, and back
        other.import_(graph.export(scope=scope), scope=scope)
        assert weights.everything(other, scope) == weights.everything(graph, scope)
        back = Scope(tenant=scope.tenant, user="boris")
        graph.import_(other.export(scope=scope), scope=back)
    assert weights.everything(graph, back) == weights.everything(graph, scope)
    graph.rollback(6, scope=back)
    assert graph.check(scope=back) == []


def test_a_purge_leaves_nothing(graph: StrategyGraph, url: str) -> None:
    scope = Scope(tenant=str(new_id()), user="anna")
    weights.build(graph, scope)
    for _ in range(3):
        graph.apply(weights.step(graph, scope), scope=scope)
    graph._bank.purge(scope=scope)
    assert graph.queries(scope=scope) == graph.edges(scope=scope) == graph.updates(scope=scope) == []
    assert graph.check(scope=scope) == []
    weights.build(graph, scope)
    assert graph.check(scope=scope) == []


def test_a_database_of_before_there_were_graphs_opens(postgres: Postgres, tmp_path: Path) -> None:
    url, scope = postgres.database(), Scope(user="anna")
    with (
        open_bank(tmp_path, embedding="hashing", ledger_url=url) as bank,
        bank._core.ledger.database.write() as connection,
    ):
        for name in ("paths", "edges", "steps", "snapshots"):
            connection.execute(sa.text(f"DROP TABLE memweave_graph_{name}"))
    with open_strategies(tmp_path, ledger_url=url) as graph:
        weights.build(graph, scope)
        assert graph.check(scope=scope) == []
