"""The layout: symlinked folders, what the wheel and the sdist contain, and that our root folders shadow nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import memweave

LINKED = ("agents", "graphs", "memory_stores", "trainers")
POLICY_FILES = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "generation_config.json", "memweave_policy.json", "pretraining.json",
)  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
def test_link_is_relative_and_leads_to_the_root_folder(root: Path, name: str) -> None:
    link = root / "src/memweave" / name
    assert link.is_symlink(), (
        f"{link} is not a symlink: the checkout lost it (on Windows: git config core.symlinks true)"
    )
    assert os.readlink(link) == f"../../{name}"
    assert link.resolve() == root / name
    assert (root / name / "__init__.py").is_file()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what a distribution is built from."""
    root = Path(__file__).resolve().parents[1]
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tree)
    for name in ("src", *LINKED):
        skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(root / name, tree / name, symlinks=True, ignore=skipped)
    return tree


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build the source distribution and return the names in it, without the folder around them."""
    out = tmp_path_factory.mktemp("sdist")
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel from a copy of the tree, without a network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(tree),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_every_module_prompt_and_data_file(wheel: zipfile.ZipFile, root: Path) -> None:
    expected = {
        str(path.relative_to(root / "src"))
        for folder in (root / "src/memweave", *(root / "src/memweave" / name for name in LINKED))
        for path in folder.rglob("*")
        if path.suffix in {".py", ".md", ".jsonl", ".json", ".html", ".toml", ".typed"} or path.name == "py.typed"
        if "__pycache__" not in path.parts
    }
    assert "memweave/py.typed" in expected
    assert any(name.startswith("memweave/agents/prompts/") for name in expected)
    assert "memweave/agents/machines/cognitive.toml" in expected
    assert any(name.startswith("memweave/demo/") and not name.endswith(".py") for name in expected)
    assert expected <= set(wheel.namelist())


def test_wheel_and_sdist_hold_every_file_of_the_policies(wheel: zipfile.ZipFile, sdist: set[str], root: Path) -> None:
    folder = root / "src/memweave/policies"
    sizes = {str(path.relative_to(root / "src")): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert {f"memweave/policies/dialog-world/{name}" for name in POLICY_FILES} <= sizes.keys()
    assert sizes.items() <= {info.filename: info.file_size for info in wheel.infolist()}.items()
    assert {f"src/{name}" for name in sizes} <= sdist


def test_wheel_claims_no_top_level_name_but_memweave(wheel: zipfile.ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"memweave"}


def test_our_root_folders_do_not_shadow_a_dependency(tmp_path: Path, root: Path) -> None:
    """With PYTHONSAFEPATH, as the Makefile sets it, `import agents` in the root finds the site package, not our folder."""
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/__init__.py").write_text("WHOSE = 'a dependency'")
    run = subprocess.run(
        [sys.executable, "-c", "import agents, memweave.agents; print(agents.WHOSE, memweave.agents.__file__)"],
        cwd=root,
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.startswith("a dependency"), run.stderr
    assert "PYTHONSAFEPATH := 1" in (root / "Makefile").read_text()
    assert "PYTHONSAFEPATH=1" in (root / "deploy/Dockerfile").read_text()


def test_the_version_is_the_same_everywhere(root: Path) -> None:
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert memweave.__version__ == version
    latest = re.search(r"^## \[?(\d+\.\d+\.\d+)", (root / "CHANGELOG.md").read_text(), re.M)
    assert latest is not None
    assert latest[1] == version


def test_every_direct_dependency_is_pinned_in_the_constraints(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.split(r"[\[<>=~! ]", line, maxsplit=1)[0].lower().replace("_", "-") for line in wanted} - {"memweave"}
    pins = re.findall(r"^([A-Za-z0-9._-]+)==", (root / "constraints.txt").read_text(), re.M)
    assert names <= {pin.lower().replace("_", "-") for pin in pins}


def test_ci_runs_what_a_developer_runs(root: Path) -> None:
    script = (root / ".ci/run").read_text()
    assert os.access(root / ".ci/run", os.X_OK)
    assert script.rstrip().endswith("make check test test-integration demo")
