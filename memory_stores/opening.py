"""Opening a memory bank on a data folder: one shared core per process, one owner of the embedded index over all processes.

    <home>/ledger.sqlite      the truth (unless `ledger_url` names PostgreSQL)
    <home>/index/             Qdrant Edge (unless `qdrant_url` names a server)
    <home>/index.lock         held by the process that owns the index
    <home>/followers/         temporary indexes of the other processes, each locked by its process

A process that comes second builds a temporary index from the ledger (vectors are stored there, nothing is embedded again) and follows
the ledger before each read. So a LangGraph server, the command line and a notebook work on one folder at once.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import URL

from memweave.embeddings import Embedder, embedder, minilm_installed, unit_rows
from memweave.errors import ConflictError, DataFolderError, EmbeddingMismatchError, StorageFullError
from memweave.memory_stores import schema
from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.core import Core
from memweave.memory_stores.database import file_lock, parsed_url
from memweave.memory_stores.edge import EdgeEngine
from memweave.memory_stores.engine import SearchConfig, VectorEngine
from memweave.memory_stores.ledger import Ledger
from memweave.memory_stores.server import ServerEngine
from memweave.memory_stores.text import embedded_text

LEDGER: Final = "ledger.sqlite"
"""File that makes a folder a data folder, where the ledger is not on a server."""
_EMBED_BATCH: Final = 64


@dataclass
class _Entry:
    core: Core
    users: int = 0


_registry: dict[tuple[str, str, str], _Entry] = {}
_registry_lock = threading.Lock()


def open_bank(
    home: Path | str,
    *,
    embedding: str | Embedder | None = None,
    embedding_api_key: str | None = None,
    ledger_url: str | None = None,
    qdrant_url: str | None = None,
    qdrant_api_key: str | None = None,
    search: SearchConfig | None = None,
    timeout: float = 30.0,
) -> MemoryBank:
    """Open the memory bank in the folder `home`, and create it if it is new. Use as a context manager, or call `close()`.

    embedding: see `memweave.embeddings`; `None` takes what the folder was made with, and for a new one MiniLM if it is installed,
    otherwise hashing.  timeout: seconds per request to a Qdrant server or an embedding endpoint.
    Opening the same folder twice in one process shares everything; the settings of the first opening hold.
    Raises: EmbeddingMismatchError, FormatError, DataFolderError, UnavailableError, SettingsError.
    """
    folder = _folder(home)
    key = (str(folder), ledger_url or "", qdrant_url or "")
    with _registry_lock:
        entry = _registry.get(key)
        if entry is None:
            ledger = _ledger(folder, ledger_url)
            try:
                model = _embedder(ledger, embedding, api_key=embedding_api_key, timeout=timeout)
            except BaseException:
                ledger.close()
                raise

            def make_engine() -> tuple[VectorEngine, bool]:
                if qdrant_url is not None:
                    collection = f"memweave_{ledger.id}"
                    server = ServerEngine.connect(
                        qdrant_url, collection, model.dimension, api_key=qdrant_api_key, timeout=timeout
                    )
                    return server, True
                return _OwnedEdge.open(folder, model.dimension), False

            entry = _registry[key] = _Entry(Core(ledger, model, search or SearchConfig(), make_engine))
        elif embedding is not None:
            _check_same(entry.core.embedder, embedding)
        entry.users += 1
    return MemoryBank(entry.core, lambda: _release(key))


def _release(key: tuple[str, str, str]) -> None:
    with _registry_lock:
        entry = _registry[key]
        entry.users -= 1
        if entry.users:
            return
        del _registry[key]
        # Under the lock: whoever opens the folder next must find it released.
        entry.core.close()


def _folder(home: Path | str) -> Path:
    folder = Path(home).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataFolderError(
            f"cannot create data folder {folder} ({error.strerror}). Choose another with --home or MEMWEAVE_HOME."
        ) from error
    return folder.resolve()


def _ledger_url(folder: Path, url: str | None) -> URL:
    return parsed_url(url or URL.create("sqlite", database=str(folder / LEDGER)))


def _ledger(folder: Path, url: str | None) -> Ledger:
    return Ledger(_ledger_url(folder, url))


def _embedder(ledger: Ledger, wanted: str | Embedder | None, *, api_key: str | None, timeout: float) -> Embedder:
    """Return the embedder of a ledger; a new ledger records it."""
    recorded = ledger.meta("embedding")
    if wanted is None:
        wanted = recorded or ("minilm" if minilm_installed() else "hashing")
    if isinstance(wanted, str):
        # An endpoint is asked for its dimension only where nobody knows it: reading needs no endpoint.
        known = int(ledger.meta("dimension") or 0) if wanted == recorded else None
        wanted = embedder(wanted, api_key=api_key, timeout=timeout, dimension=known)
    model = wanted
    if recorded is None:
        length = str(model.dimension)
        with ledger.write() as tx:
            if tx.meta("embedding") is None:  # no other process was faster
                tx.set_meta("embedding", model.model_id)
                tx.set_meta("dimension", length)
        recorded = ledger.meta("embedding")
    dimension = int(ledger.meta("dimension") or 0)
    if (recorded, dimension) != (model.model_id, model.dimension):
        raise EmbeddingMismatchError(
            f"{ledger.database.where} was made with embedding {recorded!r} ({dimension} dimensions), not {model.model_id!r} "
            f"({model.dimension}). Drop the setting to use it as it is, or convert it: memweave memory rebuild --embedding {model.model_id}"
        )
    return model


def _check_same(open_model: Embedder, wanted: str | Embedder) -> None:
    name = embedder(wanted).model_id if isinstance(wanted, str) else wanted.model_id
    if name != open_model.model_id:
        raise EmbeddingMismatchError(
            f"this data folder is already open in this process with embedding {open_model.model_id!r}, not {name!r}. "
            "Drop the setting, or convert the folder with `memweave memory rebuild --embedding`."
        )


def reembed(
    home: Path | str, embedding: str | Embedder, *, ledger_url: str | None = None, api_key: str | None = None
) -> int:
    """Give a data folder another embedding model: embed every version again, in one transaction. Returns how many.

    The index is rebuilt at the next opening. A process that has the folder open can still read, but not write until it opens it anew.
    Interrupted, it changes nothing.  Raises: ConflictError when this process has the folder open.
    """
    folder = _folder(home)
    model = embedder(embedding, api_key=api_key) if isinstance(embedding, str) else embedding
    if any(entry.core.ledger.database.url == _ledger_url(folder, ledger_url) for entry in _registry.values()):
        raise ConflictError(
            f"{folder} is open in this process. Close its memory banks before you change the embedding."
        )
    ledger = _ledger(folder, ledger_url)
    v = schema.versions.c
    key = (v.partition, v.memory_id, v.version)
    try:
        with ledger.write() as tx:
            rows = tx.connection.execute(sa.select(*key, v.text, v.speaker).order_by(*key)).all()
            for start in range(0, len(rows), _EMBED_BATCH):
                batch = rows[start : start + _EMBED_BATCH]
                vectors = _vectors(model, [embedded_text(row.text, row.speaker) for row in batch])
                for row, vector in zip(batch, vectors, strict=True):
                    here = sa.and_(v.partition == row.partition, v.memory_id == row.memory_id, v.version == row.version)
                    blob = vector.astype("<f4").tobytes()
                    tx.connection.execute(sa.update(schema.versions).where(here).values(vector=blob))
            tx.set_meta("embedding", model.model_id)
            tx.set_meta("dimension", str(model.dimension))
        return len(rows)
    finally:
        ledger.close()


def _vectors(model: Embedder, texts: Sequence[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return unit_rows(model.embed(texts), count=len(texts), dimension=model.dimension, model_id=model.model_id)


class _OwnedEdge(EdgeEngine):
    """An Edge index with its claim on the folder, or a temporary one when another process holds the claim."""

    _followers: Path | None = None
    _lock_file: IO[str] | None = None
    _temporary: Path | None = None

    @classmethod
    def open(cls, folder: Path, dimension: int) -> _OwnedEdge:
        """Open the folder's index if no other process has it, otherwise an empty temporary one."""
        followers = folder / "followers"
        try:
            lock_file = _claim(folder / "index.lock")
            _tidy(followers)
            if lock_file is None:
                return cls._beside(*_temporary(followers), dimension)
        except OSError as error:
            kind = StorageFullError if error.errno == errno.ENOSPC else DataFolderError
            raise kind(
                f"cannot open an index for {folder} ({error}). Free space, or make the folder writable."
            ) from error
        try:
            engine = cls._in(folder, dimension)
        except BaseException:
            lock_file.close()
            raise
        engine._lock_file, engine._followers = lock_file, followers
        return engine

    @classmethod
    def _in(cls, folder: Path, dimension: int) -> _OwnedEdge:
        try:
            return cls(folder / "index", dimension)
        except DataFolderError:
            # Damaged, or no folder at all: the ledger has everything, so it is written anew.
            if (folder / "index").is_file():
                (folder / "index").unlink()
            shutil.rmtree(folder / "index", ignore_errors=True)
            return cls(folder / "index", dimension)

    @classmethod
    def _beside(cls, temporary: Path, lock_file: IO[str], dimension: int) -> _OwnedEdge:
        try:
            engine = cls(temporary / "index", dimension, wal=False)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            lock_file.close()
            raise
        engine._temporary, engine._lock_file, engine._followers = temporary, lock_file, temporary.parent
        return engine

    @property
    def owns_folder(self) -> bool:
        """Return whether this is the folder's own index."""
        return self._temporary is None

    def clear(self) -> None:
        """Remove everything, what killed processes left included: a purge must leave nothing behind."""
        super().clear()
        if self._followers is not None:
            _tidy(self._followers)

    def close(self) -> None:
        """Flush, and give up the claim."""
        try:
            super().close()
        finally:
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)
            if self._lock_file is not None:
                self._lock_file.close()


def _temporary(followers: Path) -> tuple[Path, IO[str]]:
    """Return a new folder for a temporary index, and the lock by which others see that its process lives."""
    followers.mkdir(exist_ok=True)
    with file_lock(followers / "lock"):  # or another process might tidy it up before it is claimed
        temporary = Path(tempfile.mkdtemp(dir=followers))
        lock_file = _claim(temporary / "lock")
    assert lock_file is not None  # nobody else knows of it yet
    return temporary, lock_file


def _tidy(followers: Path) -> None:
    """Remove the temporary indexes of processes that were killed."""
    if not followers.exists():
        return
    with file_lock(followers / "lock"):
        for temporary in [path for path in followers.iterdir() if path.is_dir()]:
            lock_file = _claim(temporary / "lock")
            if lock_file is not None:
                shutil.rmtree(temporary, ignore_errors=True)
                lock_file.close()


def _claim(path: Path) -> IO[str] | None:
    """Return the open lock file if no other process holds it; the kernel releases it when this process ends."""
    import fcntl

    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
