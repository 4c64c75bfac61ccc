"""The Python of the guides runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [
        "docs/memory.md",
        "docs/memory-r1.md",
        "docs/memento.md",
        "docs/graph-memory.md",
        "docs/strategies.md",
        "docs/training.md",
        "docs/tracing.md",
        "docs/dialog-world.md",
        "docs/tools.md",
        "docs/mcp.md",
    ],
)
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = _BLOCK.findall((_ROOT / page).read_text())
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, page, "exec"), {"__name__": "__main__"})
