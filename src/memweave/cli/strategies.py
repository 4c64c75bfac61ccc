"""`memweave strategies ...`: look at a graph of strategies, check it, move it, and go back to earlier weights."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from memweave.cli import render
from memweave.cli.common import AsJson, Embedding, Home, Tenant, User, hand_out, session
from memweave.cli.traces import open_traces
from memweave.errors import InputError, OperationError

if TYPE_CHECKING:
    from uuid import UUID

    from memweave.cli.strategy_view import GraphView

SHOWN: Final = 50
WIDE: Final = 60
"""Characters of a summary that a list shows."""
PROBLEMS: Final = 20
"""Problems that a check names one by one."""

QUERIES: Final = 1_000
"""Queries that are shown."""
SHORTEST: Final = 4
"""Fewest digits of an id that are accepted."""

Id = Annotated[str | None, typer.Argument(metavar="[ID]", help="Only this strategy: first or last digits of its id.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Draw it on a page for a browser.")]
Store = Annotated[
    Path | None, typer.Option("--store", metavar="FILE", help="Trace store whose runs the page can open.")
]
Queries = Annotated[int, typer.Option("--queries", min=0, help="Most queries to show, the newest.")]

strategies_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Strategies: what was learned from successes and failures."
)


@strategies_app.command("list")
def list_(
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most rows to show.")] = SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show the strategies, oldest first: kind, confidence, evidence, and the mean weight of the paths that lead to each."""
    from memweave.graph_records import EdgeKind
    from memweave.memory_stores import StrategyGraph

    with session(user=user, tenant=tenant, home=home) as here:
        graph = StrategyGraph(here.bank)
        found = graph.strategies(scope=here.scope)
        weights: dict[str, list[float]] = {}
        for edge in graph.edges(scope=here.scope, kind=EdgeKind.PATH_STRATEGY):
            weights.setdefault(edge.target.hex, []).append(edge.weight)
    shown = found[:limit]
    means = {name: sum(every) / len(every) for name, every in weights.items()}
    if as_json:
        rows = [{**each.model_dump(mode="json"), "mean_weight": means.get(each.id.hex)} for each in shown]
        render.emit({"strategies": rows, "total": len(found)})
    elif not found:
        render.note(f"There are no strategies of {here.scope}.")
    else:
        table = render.table(
            "id", "kind", "confidence", "evidence", "paths", "weight", "summary", right=("evidence", "paths", "weight")
        )
        for each in shown:
            paths = weights.get(each.id.hex, [])
            weight = f"{means[each.id.hex]:.2f}" if paths else "-"
            said = f"{each.confidence} {each.score}"
            row = (each.id.hex[-8:], each.kind.value, said, str(each.evidence), str(len(paths)), weight)
            render.row(table, *row, _head(each.summary))
        render.out().print(table)
        more = f"; --limit {len(found)} shows all" if len(found) > len(shown) else ""
        render.note(f"{len(shown)} of {len(found)} strategies{more}.")


@strategies_app.command()
def show(
    id: Id = None,
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    html: Html = None,
    store: Store = None,
    queries: Queries = QUERIES,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most strategies in the terminal.")] = SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show the graph: strategies, heaviest first, with the paths that lead to them; of one strategy, the traces behind it too."""
    from memweave.cli.strategy_page import told, write_page
    from memweave.cli.strategy_view import show_graph, show_strategy, view_of
    from memweave.memory_stores import StrategyGraph

    with session(user=user, tenant=tenant, home=home) as here:
        view = view_of(StrategyGraph(here.bank), here.scope, most_queries=queries)
    if id is not None:
        view = view.about(_found(view, id))
    if store is not None:
        with open_traces(store, home) as runs:
            options = f" --store {shlex.quote(str(store))}"
            view = view.model_copy(update={"traces": tuple(told(view, runs)), "trace_options": options})
    if html is not None:
        write_page(view, html)
        if as_json:
            render.emit({"file": str(html), "strategies": len(view.strategies), "traces": len(view.traces)})
        else:
            render.note(f"Wrote {html}; open it in a browser.")
    elif as_json:
        render.emit(view.model_dump(mode="json"))
    elif id is not None:
        show_strategy(view)
    elif not view.strategies:
        render.note(f"There are no strategies of {here.scope}.")
    else:
        show_graph(view, limit)
        counts = ((view.total_queries, "query"), (len(view.paths), "path"), (len(view.strategies), "strategy"))
        said = ", ".join(render.count(number, noun) for number, noun in counts)
        render.note(f"{said}; version {view.version} of the weights. `show ID` shows one strategy, --html draws all.")


@strategies_app.command()
def check(user: User = None, tenant: Tenant = None, home: Home = None, as_json: AsJson = False) -> None:
    """Look for orphan edges, weights that the log does not explain, nodes that cannot be read. Exit code 1 when it is not sound."""
    from memweave.memory_stores import StrategyGraph

    with session(user=user, tenant=tenant, home=home) as here:
        found = StrategyGraph(here.bank).check(scope=here.scope)
    if as_json:
        render.emit({"problems": [each.model_dump(mode="json") for each in found]})
        if found:
            raise typer.Exit(1)
    elif found:
        for each in found[:PROBLEMS]:
            render.out().print(render.safe(str(each)), soft_wrap=True)
        raise OperationError(
            f"the graph of {here.scope} is not sound: {render.count(len(found), 'problem')}. Import an export of it into a new user, "
            "or restore the data folder from a backup."
        )
    else:
        render.note(f"The graph of {here.scope} is sound.")


@strategies_app.command()
def versions(user: User = None, tenant: Tenant = None, home: Home = None, as_json: AsJson = False) -> None:
    """Show the versions of the weights that can be gone back to."""
    from memweave.memory_stores import StrategyGraph

    with session(user=user, tenant=tenant, home=home) as here:
        found = StrategyGraph(here.bank).versions(scope=here.scope)
    if as_json:
        render.emit({"versions": [each.model_dump(mode="json") for each in found]})
        return
    table = render.table("version", "when", "trained edges", "", right=("version", "trained edges"))
    for each in found:
        when = each.recorded_at.isoformat(sep=" ", timespec="seconds") if each.recorded_at else "as made"
        render.row(table, str(each.version), when, str(each.edges), "now" if each.current else "")
    render.out().print(table)


@strategies_app.command()
def rollback(
    version: Annotated[int, typer.Argument(min=0, help="Version of the weights; 0: all as they were made.")],
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Go back to the weights of a version; the present ones stay as a version too."""
    from memweave.memory_stores import StrategyGraph

    with session(user=user, tenant=tenant, home=home) as here:
        now = StrategyGraph(here.bank).rollback(version, scope=here.scope)
    if as_json:
        render.emit({"version": now.model_dump(mode="json")})
    else:
        render.note(f"The weights are those of version {version} again; this is version {now.version}.")


@strategies_app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="File to write; standard output without one.")] = None,
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Write the graph as JSON lines, with its history, its weights and their kept versions."""
    from memweave.memory_stores import StrategyGraph

    with session(user=user, tenant=tenant, home=home) as here:
        lines = list(StrategyGraph(here.bank).export(scope=here.scope))

    def content() -> Mapping[str, object]:
        return {"lines": [json.loads(line) for line in lines]}

    told, counts = render.count(len(lines), "line"), {"lines": len(lines)}
    hand_out(lines, file, told=told, counts=counts, content=content, as_json=as_json)


@strategies_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An export.")],
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    embedding: Embedding = None,
    as_json: AsJson = False,
) -> None:
    """Add an export to a user without a graph; one that is there already is left alone."""
    from memweave.memory_stores import StrategyGraph
    from memweave.worlds.files import read_text

    lines = read_text(file).split("\n")
    with session(create=True, user=user, tenant=tenant, home=home, embedding=embedding) as here:
        new = StrategyGraph(here.bank).import_(lines, scope=here.scope)
    if as_json:
        render.emit({"nodes": new})
    else:
        render.note(f"Imported {render.count(new, 'node')}." if new else "Nothing to import: it is there already.")


def _head(text: str) -> str:
    line = " ".join(text.split())
    return render.safe(line if len(line) <= WIDE else f"{line[:WIDE]} ...")


def _found(view: GraphView, digits: str) -> UUID:
    """Return the id of the strategy with these digits. Raises: InputError when there is none, or more than one."""
    wanted = digits.replace("-", "").lower()
    if len(wanted) < SHORTEST or set(wanted) - set("0123456789abcdef"):
        raise InputError(
            f"{digits!r} is not an id; give at least {SHORTEST} of its hexadecimal digits, as the lists show them."
        )
    ids = [each.strategy.id for each in view.strategies]
    fitting = [each for each in ids if each.hex.startswith(wanted) or each.hex.endswith(wanted)]
    if not fitting:
        raise InputError(
            f"there is no strategy {digits!r} of {view.scope}. `memweave strategies list --user NAME` shows them."
        )
    if len(fitting) > 1:
        raise InputError(f"{digits!r} fits {len(fitting)} strategies; give more digits.")
    return fitting[0]
