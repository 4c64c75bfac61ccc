"""The README tells the truth: its code prints what it says, and every command, target and file that it names exists."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from memweave.cli.app import run

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def readme(root: Path) -> str:
    return (root / "README.md").read_text()


def blocks(text: str) -> list[tuple[str, str]]:
    return BLOCK.findall(text)


def test_python_prints_what_the_next_block_says(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(readme)
    pairs = [(code, found[i + 1][1]) for i, (kind, code) in enumerate(found) if kind == "python"]
    assert pairs
    for code, expected in pairs:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
        assert printed.getvalue().strip() == expected.strip()


def test_the_embedding_example_is_short(readme: str) -> None:
    first = next(code for kind, code in blocks(readme) if kind == "python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 15


def test_every_command_exists(readme: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {
        line for _, block in blocks(readme) for line in block.splitlines() if re.match(r"memweave [a-z]+( |$)", line)
    }
    assert lines
    for line in sorted(lines):
        words = shlex.split(line, comments=True)[1:]
        command = words[:2] if words[0] in {"memory", "eval"} else words[:1]
        assert run([*command, "--help"]) == 0
        usage = capsys.readouterr().out
        for option in (word for word in words if word.startswith("--")):
            assert option in usage, line


def test_every_make_target_exists(readme: str, root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    targets = set(re.findall(r"(?:`|^|cpu )make ([a-z-]+)", readme, re.MULTILINE))
    assert targets
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_every_file_and_link_exists(readme: str, root: Path) -> None:
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in link}
    tree = next(block for kind, block in blocks(readme) if "memory_stores/" in block)
    entries = {line.split()[0] for line in tree.splitlines() if line.strip() and not line.startswith(" ")}
    assert entries
    assert [name for name in sorted((links | entries) - {""}) if not (root / name).exists()] == []
