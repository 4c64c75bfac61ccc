"""A vLLM server on this machine's CPU, as a child process: `with start(folder) as vllm: ... vllm.url`.

It is started so that it can be trained against (see `FLAGS`), ends with the block, and its log is a file.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from memweave.errors import OperationError, PortInUseError, UnavailableError
from memweave.serving.http_pool import ConnectionLost, HttpPool
from memweave.serving.policy_folder import load_policy_folder
from memweave.serving.vllm_env import Say, default_env, python_of, require_env

FLAGS: Final = (
    "--dtype", "float32", "--enforce-eager", "--enable-lora",
    # Log-probabilities of the distribution that was sampled from, and no sampling defaults from the model's folder.
    "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
    # A prompt is read whole or later. On a CPU, half of one with a seed ends the engine: vLLM takes back the number that it
    # drew in vain ("CPU Generator does not use offset"). Many prompts at once come to that.
    "--no-enable-chunked-prefill",
    "--disable-uvicorn-access-log",
)  # fmt: skip
VARIABLES: Final = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
LONGEST: Final = 8_192
"""Tokens of context that a CPU server gets by default, if its model has more."""
READY_IN: Final = 300.0
_STOP_IN: Final = 20.0
_ERROR: Final = re.compile(r"\b(\w*(?:Error|Exception): .+)")


@dataclass(frozen=True)
class ServeSettings:
    """How the server is started."""

    port: int = 0
    """0: a free one."""
    host: str = "127.0.0.1"
    max_loras: int = 4
    """Adapters that one batch may use: at least the roles, and one earlier version of each."""
    max_lora_rank: int = 16
    """One of 8, 16, 32, 64, 128, 256, 320, 512 (vLLM's)."""
    max_model_len: int | None = None
    """Tokens of context. `None`: the model's own, at most `LONGEST`."""
    kv_cache_gb: float = 1.0
    """Memory for attention keys and values, in GiB."""
    api_key: str | None = None
    """Key that callers must send."""
    ready_in: float = READY_IN
    """Seconds until the server must answer."""


@dataclass
class VLLMProcess:
    """A running server. Made by `start`."""

    base: Path
    env: Path
    settings: ServeSettings
    port: int
    log: Path
    say: Say
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Return the server's address."""
        return f"http://{self.settings.host}:{self.port}"

    @property
    def running(self) -> bool:
        """Return whether the server's main process lives."""
        return self._child is not None and self._child.poll() is None

    def launch(self) -> None:
        """Start the server and return when it answers. Raises `PortInUseError`, or `OperationError` with the cause."""
        require_port(self.settings.host, self.port)
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                command(self.base, self.env, self.settings, self.port),
                stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                env=_environment(self.settings), cwd=self.log.parent, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise

    def wait(self) -> int:
        """Return the exit code of the server, once it ends."""
        assert self._child is not None
        return self._child.wait()

    def stop(self) -> None:
        """End the server and everything that it started; return when their memory is free."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def _wait_ready(self) -> None:
        began, told = time.monotonic(), 0.0
        pool = HttpPool(self.url)
        while not _answers(pool):
            waited = time.monotonic() - began
            if not self.running:
                raise OperationError(f"vLLM ended while starting: {self._cause()}. Log: {self.log}")
            if waited > self.settings.ready_in:
                raise UnavailableError(f"vLLM did not answer within {waited:.0f} s: {self._cause()}. Log: {self.log}")
            if waited - told >= 5:
                told = waited
                self.say(f"starting vLLM ... {waited:.0f} s")
            time.sleep(0.25)
        pool.close()
        self.say(f"vLLM answers at {self.url} after {time.monotonic() - began:.0f} s")

    def _cause(self) -> str:
        """Return the first error of the newest start in the log, which later ones follow from; show the log's tail."""
        lines = self.log.read_text(errors="replace").splitlines()[-400:]
        for line in lines[-15:]:
            self.say(f"  {line}")
        found = [match[1] for line in lines if (match := _ERROR.search(line))]
        telling = [line for line in found if "See root cause above" not in line]
        return telling[-1][:300] if telling else (lines[-1][:300] if lines else "it said nothing")

    def _end(self, first: signal.Signals) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        # The server and its engine are separate processes of one group, which has the child's number.
        _signal(child.pid, first)
        deadline = time.monotonic() + _STOP_IN
        while (child.poll() is None or _group_lives(child.pid)) and time.monotonic() < deadline + 5:
            if time.monotonic() > deadline:
                _signal(child.pid, signal.SIGKILL)
            time.sleep(0.05)
        _signal(child.pid, signal.SIGKILL)


@contextmanager
def start(
    base: Path | str,
    *,
    settings: ServeSettings | None = None,
    env: Path | None = None,
    log: Path | None = None,
    say: Say = lambda line: None,
) -> Iterator[VLLMProcess]:
    """Serve the policy in folder `base` for as long as the block lasts.

    env: the environment with vLLM (`vllm_env.ensure_env` makes it).  log: file to append to.  say: gets progress.

    Raises `NotInstalledError` with the command, `PortInUseError`, `InputError` for a bad folder, `OperationError` when it
    does not start.
    """
    given = settings or ServeSettings()
    where = env or default_env()
    require_env(where)
    folder = load_policy_folder(base)
    port = given.port or free_port(given.host)
    file = log or Path(tempfile.mkdtemp(prefix="memweave-vllm-")) / "vllm.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    process = VLLMProcess(folder.path, where, given, port, file, say)
    try:
        process.launch()
        yield process
    finally:
        process.stop()


def command(base: Path, env: Path, settings: ServeSettings, port: int) -> list[str]:
    """Return the command line that serves `base`."""
    length = settings.max_model_len or min(_context(base), LONGEST)
    # A given size of the cache also turns off a check that fails while an earlier server's memory is being freed.
    cache = int(settings.kv_cache_gb * (1 << 30))
    return [
        str(python_of(env)), "-P", "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(base), "--served-model-name", base.name, "--host", settings.host, "--port", str(port),
        "--max-model-len", str(length), "--kv-cache-memory-bytes", str(cache),
        "--max-loras", str(settings.max_loras), "--max-lora-rank", str(settings.max_lora_rank), *FLAGS,
    ]  # fmt: skip


def require_port(host: str, port: int) -> None:
    """Raise `PortInUseError` when someone listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUseError(
                f"Port {port} of {host} cannot be used ({error.strerror}). Give another one with --port, or stop the program "
                "that listens there"
            ) from error


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def _context(base: Path) -> int:
    found = json.loads((base / "config.json").read_text()).get("max_position_embeddings")
    return found if isinstance(found, int) else LONGEST


def _environment(settings: ServeSettings) -> dict[str, str]:
    """Return our environment without what is ours: settings, and paths of this Python."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("MEMWEAVE_", "PYTHON", "VIRTUAL_ENV", "VLLM_API_KEY"))
    }
    # Not on the command line, where every user of the machine could read it.
    key = {"VLLM_API_KEY": settings.api_key} if settings.api_key else {}
    return {**kept, **VARIABLES, **key}


def _answers(pool: HttpPool) -> bool:
    try:
        return pool.request("GET", "/health", None, timeout=5.0).status == 200
    except (ConnectionLost, TimeoutError):
        return False


def _signal(group: int, sent: signal.Signals) -> None:
    """Send a signal to a process group, if there still is one."""
    with suppress(ProcessLookupError):
        os.killpg(group, sent)


def _group_lives(group: int) -> bool:
    """Return whether any process of the group still runs. A zombie does not: its memory is free, whoever reaps it."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            # pid (name) state parent group ...; the name may hold spaces and brackets.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                states.append(fields[0])
    return any(state not in "ZX" for state in states) if Path("/proc/self/stat").exists() else True
