"""The README tells the truth: its code prints what it says, and every command, target and file that it names exists."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from memweave.cli.app import run
from memweave.embeddings import minilm_installed

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


@pytest.mark.skipif(not minilm_installed(), reason="the demo in the README runs on MiniLM (extra: local)")
def test_the_demo_prints_what_the_first_screen_says(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["demo", "--no-train"]) == 0  # learning takes a minute, and its numbers are the machine's
    printed = iter(timeless(line) for line in capsys.readouterr().out.splitlines())
    shown = next(block for _, block in blocks(readme) if block.startswith("memweave demo:"))
    missing = [line for line in shown.splitlines() if line not in ("", "...") and timeless(line) not in printed]
    assert missing == []  # every line is there, in this order


def timeless(line: str) -> str:
    """Return `line` without seconds and widths of columns."""
    return " ".join(re.sub(r"\d+\.\d s", "SECONDS", line).split())


def test_every_command_exists(readme: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {
        line for _, block in blocks(readme) for line in block.splitlines() if re.match(r"memweave [a-z]+( |$)", line)
    }
    assert lines
    for line in sorted(lines):
        words = shlex.split(line, comments=True)[1:]
        command = words[:2] if words[0] in {"memory", "cases", "eval", "traces"} else words[:1]
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
