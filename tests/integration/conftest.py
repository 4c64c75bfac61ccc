"""Servers for integration tests. A real PostgreSQL: made in a temporary folder, reached by a Unix socket, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.integration.served import vllm

__all__ = ["vllm"]  # here, so that the modules of tests share one server
READY_IN = 60.0  # seconds


class Postgres:
    """A PostgreSQL server of our own. Raises: RuntimeError with its log when it does not start."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        # Not pytest's temporary folder: the server runs as another user, and a socket's path must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="memweave-pg-", dir="/tmp"))
        self.data = self.folder / "data"
        self._numbers = count()
        # PostgreSQL refuses to run as root; its package comes with a user for it.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        self._server: subprocess.Popen[bytes] | None = None
        try:
            command = [binaries / "initdb", "-D", self.data, "-U", "memweave", "-A", "trust", "-E", "UTF8", "--no-sync"]
            done = subprocess.run(command, user=self._user, cwd=self.folder, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"initdb failed: {done.stderr or done.stdout}")
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start the server and wait until it answers."""
        log = self.folder / "log"
        with log.open("ab") as output:
            self._server = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.data), "-k", str(self.folder), "-c", "listen_addresses="],
                user=self._user, cwd=self.folder, stdout=output, stderr=output,
            )  # fmt: skip
        deadline = time.monotonic() + READY_IN
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {log.read_text()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(host=str(self.folder), user="memweave", dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server; SIGINT is the proper way, SIGQUIT ends it as a crash does."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait(60)
            self._server = None

    def database(self) -> str:
        """Create an empty database; returns its URL."""
        import psycopg

        name = f"ledger{next(self._numbers)}"
        with psycopg.connect(host=str(self.folder), user="memweave", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://memweave@/{name}?host={self.folder}"

    def close(self) -> None:
        """Stop the server and remove everything."""
        self.stop()
        shutil.rmtree(self.folder)


def _binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs, which Debian does not put on the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return a PostgreSQL server, or skip the test and say why."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL's programs (initdb, postgres): apt-get install postgresql")
    pytest.importorskip("psycopg", reason="needs the extra `postgres`")
    server = Postgres(binaries)
    yield server
    server.close()
