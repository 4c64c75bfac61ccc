"""Public names: one sorted list per package, and every name in it exists."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

import memweave

PACKAGES = ("agents", "cli", "evaluation", "graphs", "memory_stores", "testing", "tracing", "worlds")


def test_the_lazy_table_the_list_and_the_type_checker_agree(root: Path) -> None:
    tree = ast.parse((root / "src/memweave/__init__.py").read_text())
    typed = {
        (alias.name, node.module)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert dict(memweave._HOME) == dict(typed)
    assert memweave.__all__ == sorted(memweave._HOME)


@pytest.mark.parametrize("name", memweave.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(memweave, name) is getattr(import_module(memweave._HOME[name]), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rember'"):
        _ = memweave.rember


@pytest.mark.parametrize("package", PACKAGES)
def test_each_packages_list_is_sorted_and_true(package: str) -> None:
    module = import_module(f"memweave.{package}")
    names = getattr(module, "__all__", [])
    assert list(names) == sorted(names)
    assert [name for name in names if not hasattr(module, name)] == []
