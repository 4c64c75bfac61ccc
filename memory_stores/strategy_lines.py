"""A graph of strategies as JSON lines, and back: history, paths, edges, steps and kept versions of the weights.

    {"memweave": "strategies", "format": 1, "encoder": ..., "queries": 9, "strategies": 5, "paths": 3, ...}    header, lines of each kind
    {"query": {...}}, {"strategy": {...}}      the lines of the two collections' own exports (see `transfer`)
    {"path": ...}, {"edge": ...}, {"step": ...}, {"snapshot": ...}

Vectors are made anew on import, so by the same encoder: weights belong to its similarities.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated, Final, Literal, Self
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from sqlalchemy.engine import Connection

from memweave.errors import ConflictError, EmbeddingMismatchError, FormatError, InputError, UnavailableError
from memweave.graph_records import EdgeKind, States, WeightUpdate
from memweave.memory_stores.ledger import LedgerTransaction
from memweave.memory_stores.schema import graph_edges, graph_moves, graph_paths, graph_snapshots, graph_steps
from memweave.memory_stores.store import Vector
from memweave.memory_stores.strategy_check import problems
from memweave.memory_stores.strategy_loading import state_of
from memweave.memory_stores.strategy_store import GraphStore
from memweave.memory_stores.strategy_weights import SAVED, STEP, present, saved
from memweave.memory_stores.transfer import import_lines
from memweave.records import RECORD_FORMAT, Name, Scope, utc_now

_KINDS: Final = ("query", "strategy", "path", "edge", "step", "snapshot")
_ATTEMPTS: Final = 5


_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Header(_Line):
    """What the file is. The counts tell a file that lost its end."""

    memweave: Literal["strategies"]
    format: int
    encoder: str
    exported_at: str
    lines: dict[str, int]


class _Path(_Line):
    id: UUID
    machine: Name
    states: States


class _Edge(_Line):
    kind: EdgeKind
    source: UUID
    target: UUID
    initial: _Weight
    weight: _Weight
    updates: _Count
    gap_sum: FiniteFloat
    active: bool
    op_id: UUID


class _Step(_Line):
    version: _Count
    kind: Annotated[str, Field(max_length=8)]
    touches: _Count
    recorded_at: _Count
    row: str

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.kind == STEP:
            WeightUpdate.model_validate_json(self.row)
        elif not isinstance(json.loads(self.row), dict):
            raise ValueError("row is no object")
        return self


class _Snapshot(_Line):
    version: _Count
    recorded_at: _Count
    kept: bool
    touches: _Count
    weights: list[tuple[_Count, _Weight, _Count, FiniteFloat]]
    """Of each edge that had been trained: its place among the edges of this file, weight, updates and sum of gaps."""


class _Read:
    """An export by kinds of lines."""

    def __init__(self) -> None:
        self.header: _Header | None = None
        self.nested: dict[str, list[str]] = {"query": [], "strategy": []}
        """Lines of the collections' own exports, blank where a line is of another kind: so the numbers of lines stay right."""
        self.paths: list[_Path] = []
        self.edges: list[_Edge] = []
        self.steps: list[_Step] = []
        self.snapshots: list[_Snapshot] = []


def export_graph(queries: GraphStore, strategies: GraphStore, scope: Scope) -> Iterator[str]:
    """Yield the lines of an export, from one consistent state. Raises `UnavailableError` when others write all the time."""
    both = scope.partition(queries.collection), scope.partition(strategies.collection)
    for _ in range(_ATTEMPTS):
        before = state_of(strategies.ledger, both)
        with strategies.ledger.database.read() as connection:
            own = list(_own_lines(connection, both[1]))
        nested = [
            *(("query", json.loads(line)) for line in queries.export(scope=scope)),
            *(("strategy", json.loads(line)) for line in strategies.export(scope=scope)),
        ]
        if state_of(strategies.ledger, both) == before:
            break
    else:
        raise UnavailableError(
            f"the graph of {scope} changes all the time, so it cannot be exported. Stop what writes to it, and repeat."
        )
    lines = [*nested, *own]
    counts = Counter(kind for kind, _ in lines)
    yield _Header(
        memweave="strategies",
        format=RECORD_FORMAT,
        encoder=queries.embedder.model_id,
        exported_at=utc_now().isoformat(),
        lines={kind: counts[kind] for kind in _KINDS},
    ).model_dump_json()
    for kind, line in lines:
        yield json.dumps({kind: line}, ensure_ascii=False)


def _own_lines(connection: Connection, partition: str) -> Iterator[tuple[str, object]]:
    p, e, s, k = graph_paths, graph_edges, graph_steps, graph_snapshots

    def rows(table: sa.Table, order: sa.Column[int]) -> sa.MappingResult:
        return connection.execute(sa.select(table).where(table.c.partition == partition).order_by(order)).mappings()

    for row in rows(p, p.c.position):
        path = _Path(id=UUID(hex=row["path_id"]), machine=row["machine"], states=json.loads(row["states"]))
        yield "path", path.model_dump(mode="json")
    places = {}
    now = present(connection, partition).tolist()
    for place, (row, (position, weight, updates, gap_sum)) in enumerate(zip(rows(e, e.c.position), now, strict=True)):
        places[position] = place
        trained = {"weight": weight, "updates": updates, "gap_sum": gap_sum}
        edge = _Edge.model_validate({**{name: row[name] for name in _Edge.model_fields}, **trained})
        yield "edge", edge.model_dump(mode="json")
    for row in rows(s, s.c.position):
        yield "step", _Step.model_validate({name: row[name] for name in _Step.model_fields}).model_dump(mode="json")
    for row in rows(k, k.c.version):
        weights = [(places[at], weight, updates, gap) for at, weight, updates, gap in saved(row["weights"]).tolist()]
        given = {name: row[name] for name in ("version", "recorded_at", "kept", "touches")}
        yield "snapshot", _Snapshot.model_validate({**given, "weights": weights}).model_dump(mode="json")


def import_graph(queries: GraphStore, strategies: GraphStore, lines: Iterable[str], scope: Scope) -> int:
    """Write an export into a scope without a graph, in one transaction; see `StrategyGraph.import_`."""
    content = _parse(lines)
    assert content.header is not None  # `_parse` refuses a file without one
    _same_encoder(content.header.encoder, queries.embedder.model_id)
    known = queries.embedded(_texts(content))

    def embed(texts: Sequence[str]) -> Mapping[str, Vector]:
        try:
            return {text: known[text] for text in texts}
        except KeyError as error:
            raise InputError(
                f"the export has a node with another text than its own: {error}. Nothing was imported."
            ) from None

    both = scope.partition(queries.collection), scope.partition(strategies.collection)
    with strategies.writing(scope) as tx:
        added = 0
        for store, partition, kind in ((queries, both[0], "query"), (strategies, both[1], "strategy")):
            given = content.nested[kind]
            receipt = import_lines(nullcontext(tx), partition, scope, given, embed=embed, collection=store.collection)
            added += receipt.memories
        if not added:
            _same_weights(tx.connection, both[1], content, scope)
            return 0
        _insert(tx, both[1], content, scope)
        if found := problems(tx.connection, *both, scope):
            raise InputError(f"the export contradicts itself: {found[0]} (changed by hand?). Nothing was imported.")
        return sum(len(store.in_transaction(tx, scope)) for store in (queries, strategies))


def _same_weights(connection: Connection, partition: str, content: _Read, scope: Scope) -> None:
    """Raise `ConflictError` when the nodes of an export are there already, but its weights are others."""
    s = graph_steps.c
    query = sa.select(s.version, s.row).where(s.partition == partition).order_by(s.position)
    here = [(row.version, row.row) for row in connection.execute(query)]
    if here != [(step.version, step.row) for step in content.steps]:
        raise ConflictError(
            f"{scope} holds this graph already, with other weights ({len(here)} steps; the export has {len(content.steps)}). "
            "Import into a new user, or purge this one first. Nothing was imported."
        )


def _same_encoder(made_with: str, here: str) -> None:
    if made_with != here:
        raise EmbeddingMismatchError(
            f"the graph was built with encoder {made_with!r}, this folder uses {here!r}, and weights belong to one encoder's similarities. "
            f"Nothing was imported. Convert this folder (memweave memory rebuild --embedding {made_with}, with its --home), or make a new "
            f"one (--home NEW --embedding {made_with})"
        )


def _texts(content: _Read) -> list[str]:
    found = []
    for kind in content.nested.values():
        for line in kind:
            version = json.loads(line).get("version") if line else None
            if isinstance(version, dict) and isinstance(version.get("text"), str):
                found.append(version["text"])
    return found


def _insert(tx: LedgerTransaction, partition: str, content: _Read, scope: Scope) -> None:
    connection = tx.connection
    for table in (graph_paths, graph_edges, graph_steps, graph_snapshots, graph_moves):
        if connection.execute(sa.select(table.c.partition).where(table.c.partition == partition).limit(1)).first():
            raise ConflictError(
                f"{scope} already holds another graph. Import into a new user, or purge this one first."
            )
    for path in content.paths:
        states = json.dumps(path.states, ensure_ascii=False)
        new = {"partition": partition, "path_id": path.id.hex, "machine": path.machine, "states": states}
        connection.execute(sa.insert(graph_paths), new)
    edges = [
        {
            **edge.model_dump(), "source": edge.source.hex, "target": edge.target.hex, "op_id": edge.op_id.hex,
            "kind": edge.kind.value, "active": int(edge.active), "partition": partition,
        }
        for edge in content.edges
    ]  # fmt: skip
    if edges:
        connection.execute(sa.insert(graph_edges), edges)
    query = sa.select(graph_edges.c.position).where(graph_edges.c.partition == partition)
    positions = list(connection.execute(query.order_by(graph_edges.c.position)).scalars())
    if content.steps:
        rows = [{**step.model_dump(), "partition": partition} for step in content.steps]
        connection.execute(sa.insert(graph_steps), rows)
    for shot in content.snapshots:
        places = [place for place, *_ in shot.weights]
        if any(place >= len(positions) for place in places) or len(set(places)) < len(places):
            raise InputError(
                f"the export contradicts itself: version {shot.version} has weights of edges that are not in it, or twice. "
                "Nothing was imported."
            )
        weights = np.array([(positions[place], *rest) for place, *rest in shot.weights], dtype=SAVED)
        row = {
            "partition": partition, "version": shot.version, "recorded_at": shot.recorded_at, "kept": int(shot.kept),
            "edges": len(weights), "touches": shot.touches, "weights": zlib.compress(weights.tobytes(), 1),
        }  # fmt: skip
        connection.execute(sa.insert(graph_snapshots), row)


def _parse(lines: Iterable[str]) -> _Read:
    content = _Read()
    counts = Counter[str]()
    take: dict[str, Callable[[object], None]] = {
        "path": lambda line: content.paths.append(_Path.model_validate(line)),
        "edge": lambda line: content.edges.append(_Edge.model_validate(line)),
        "step": lambda line: content.steps.append(_Step.model_validate(line)),
        "snapshot": lambda line: content.snapshots.append(_Snapshot.model_validate(line)),
    }
    for number, line in enumerate(lines, start=1):
        for nested in content.nested.values():
            nested.append("")
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if content.header is None:
                content.header = _checked_header(data)
                continue
            ((kind, inner),) = data.items()
            if kind in content.nested:
                content.nested[kind][-1] = json.dumps(inner)
            else:
                take[kind](inner)
            counts[kind] += 1
        except (
            json.JSONDecodeError,
            ValidationError,
            TypeError,
            KeyError,
            ValueError,
            AttributeError,
            RecursionError,
        ) as error:
            if isinstance(error, InputError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"line {number} of the export cannot be read ({reason}); nothing was imported.") from error
    if content.header is None:
        raise InputError("the export is empty: not even a header. Nothing was imported.")
    if content.header.lines != {kind: counts[kind] for kind in _KINDS}:
        raise InputError(
            f"the export is incomplete: its header announces {content.header.lines}, the file has {dict(counts)} (truncated?). "
            "Nothing was imported."
        )
    return content


def _checked_header(data: object) -> _Header:
    if not isinstance(data, dict) or data.get("memweave") != "strategies":
        raise InputError("this is not an export of strategies: the first line is no header. Nothing was imported.")
    if data.get("format") != RECORD_FORMAT:
        raise FormatError(
            f"the export has format {data.get('format')}, this memweave reads format {RECORD_FORMAT}. "
            "Import it with the version that wrote it."
        )
    return _Header.model_validate(data)
