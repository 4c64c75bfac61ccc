"""A memory bank over an engine of your choice: a fake, a wrapper that fails, qdrant-client's in-memory engine."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL

from memweave.embeddings import Embedder, HashingEmbedder
from memweave.memory_stores import MemoryBank, SearchConfig
from memweave.memory_stores.core import Core
from memweave.memory_stores.engine import VectorEngine
from memweave.memory_stores.ledger import Ledger


def bank_over(
    home: Path,
    engine: VectorEngine,
    *,
    embedder: Embedder | None = None,
    search: SearchConfig | None = None,
    shared: bool = False,
) -> MemoryBank:
    """Open the ledger in `home` with `engine` as its index. Unlike `open_bank`, every call opens it anew.

    embedder: `None` hashes into 64 numbers.  shared: other banks project into the same engine, as on a Qdrant server.
    """
    home.mkdir(parents=True, exist_ok=True)
    model = embedder or HashingEmbedder(64)
    ledger = Ledger(URL.create("sqlite", database=str(home / "ledger.sqlite")))
    with ledger.write() as tx:
        tx.set_meta("embedding", model.model_id)
        tx.set_meta("dimension", str(model.dimension))
    core = Core(ledger, model, search or SearchConfig(), lambda: (engine, shared))
    return MemoryBank(core, core.close)
