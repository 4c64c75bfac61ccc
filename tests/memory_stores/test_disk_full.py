"""A full disk: one clear error, nothing half done, and everything works again once there is space."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memweave.errors import StorageFullError
from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import Scope, Turn
from memweave.testing.audit import audit
from memweave.testing.operations import add

SIZE_MB = 300  # reading the holes of a sparse file through a memory map takes up space on a tmpfs, unlike elsewhere


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs (root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Write a file that leaves so many kilobytes free."""
    free = os.statvfs(folder)
    size = free.f_bavail * free.f_frsize - leave * 1024
    filler = folder / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return filler


def write_until_full(bank: MemoryBank, scope: Scope) -> int:
    """Write until it fails; return how many writes were acknowledged."""
    for done in range(10_000):
        try:
            bank.apply([add(f"Anna drinks tea number {done}: " + "tea " * 200), add("And some water")], scope=scope)
        except StorageFullError:
            break
    else:
        raise AssertionError("the disk is never full")
    with pytest.raises(StorageFullError, match=r"ledger\.sqlite .*Nothing was changed; free space and repeat\."):
        bank.apply([add("tea " * 200_000)], scope=scope)
    return done


def test_what_was_acknowledged_is_there_and_nothing_else(small_disk: Path, scope: Scope) -> None:
    with open_bank(small_disk / "home", embedding="hashing:64") as bank:
        bank.apply([add("Anna drinks milk")], scope=scope)
        assert bank.count(scope=scope) == 1  # the index is open
        filler = fill(small_disk, leave=300)
        done = write_until_full(bank, scope)
        with pytest.raises(StorageFullError):
            bank.accept([Turn(source_id="1", speaker="Anna", text="x" * 400_000)], scope=scope)
        assert len(bank.memories(scope=scope)) == len(bank.log(scope=scope)) == 1 + 2 * done
        assert bank.turns(scope=scope) == []
        if done:
            with pytest.raises(StorageFullError, match="index .* catches up"):
                bank.search("tea", scope=scope)  # it would have to be told of what is new

        filler.unlink()
        bank.apply([add("Anna drinks coffee")], scope=scope)
        assert bank.search("coffee", scope=scope, limit=1)[0].memory.text == "Anna drinks coffee"
        assert len(bank.memories(scope=scope)) == 2 + 2 * done
        assert audit(bank, scope=scope) == []
    with open_bank(small_disk / "home") as bank:
        assert audit(bank, scope=scope) == []


def test_closing_on_a_full_disk_loses_nothing(small_disk: Path, scope: Scope) -> None:
    with open_bank(small_disk / "home", embedding="hashing:64") as bank:
        bank.apply([add(f"Anna drinks tea number {i}") for i in range(300)], scope=scope)
        assert bank.count(scope=scope) == 300
        filler = fill(small_disk, leave=0)
    with open_bank(small_disk / "home") as bank:
        assert len(bank.memories(scope=scope)) == 300
        with pytest.raises(StorageFullError, match="MB are needed"):
            bank.search("tea", scope=scope)
        filler.unlink()
        assert audit(bank, scope=scope) == []


def test_a_new_folder_on_a_full_disk(small_disk: Path, scope: Scope) -> None:
    filler = fill(small_disk, leave=0)
    with pytest.raises(StorageFullError, match="free space and repeat"):
        open_bank(small_disk / "home", embedding="hashing:64")
    filler.unlink()
    with open_bank(small_disk / "home", embedding="hashing:64") as bank:
        bank.apply([add("Anna drinks tea")], scope=scope)
        assert audit(bank, scope=scope) == []


def test_a_purge_on_a_full_disk_erases_when_there_is_space(small_disk: Path, scope: Scope) -> None:
    with open_bank(small_disk / "home", embedding="hashing:64") as bank:
        bank.apply([add("qxsecret " * 100) for _ in range(50)], scope=scope)
        bank.apply([add("Bob drinks tea")], scope=Scope(user="bob"))
        assert bank.count(scope=scope) == 50
        filler = fill(small_disk, leave=0)
        with pytest.raises(StorageFullError):
            bank.purge(scope=scope)
        filler.unlink()
        bank.purge(scope=scope)
        for path in (p for p in (small_disk / "home").rglob("*") if p.is_file()):
            assert b"qxsecret" not in path.read_bytes(), path
        assert audit(bank, scope=scope) == audit(bank, scope=Scope(user="bob")) == []
        assert bank.memories(scope=scope) == []


def test_a_limit_on_the_size_of_files_is_a_full_disk_too(tmp_path: Path) -> None:
    # In a process of its own, because the limit holds for all it writes. Needs no rights.
    script = """
import resource, sys
from memweave.errors import StorageFullError
from memweave.memory_stores import open_bank
from memweave.records import Scope
from memweave.testing.operations import add

scope = Scope(user="anna")
with open_bank(sys.argv[1], embedding="hashing:64") as bank:
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    done = 0
    try:
        while True:
            bank.apply([add("tea " * 2_000)], scope=scope)
            done += 1
    except StorageFullError:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert len(bank.memories(scope=scope)) == done > 3, done
    bank.apply([add("coffee")], scope=scope)
    assert len(bank.memories(scope=scope)) == bank.count(scope=scope) == done + 1
    print("fine")
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (run.stdout, run.returncode) == ("fine\n", 0), run.stderr
