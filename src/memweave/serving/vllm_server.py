"""`VLLMServer`: publish adapters to a running vLLM, and get chat models that follow them.

An adapter is published under a name of its own, `{run}-{role}-v{number}`, in a folder of its own, which appears complete or
not at all. It is loaded before the role changes over, and older ones leave afterwards. No name is ever used for other
weights: vLLM keys its prefix cache by it. Several roles are several adapters on one base.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydantic import SecretStr

from memweave.errors import ConflictError, InputError, OperationError
from memweave.serving.adapters import Adapter, base_version, check_adapter, copy_whole
from memweave.serving.server import DEFAULT_ROLE, PublishedPolicy
from memweave.serving.vllm_chat import Served, VLLMChatModel
from memweave.serving.vllm_check import base_model, check_base, check_endpoint, refused_adapter
from memweave.serving.vllm_endpoint import RECONNECT_TIMEOUT, ServerAwayError, UnknownModelError, VLLMEndpoint
from memweave.tracing.records import Sampling

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_LOAD_TIMEOUT: Final = 120.0
_ATTEMPTS: Final = 3
"""To publish, when the server goes away meanwhile."""


@dataclass
class _Role:
    """What a role is served with."""

    current: PublishedPolicy
    served: list[PublishedPolicy] = field(default_factory=list)
    """Oldest first, the current one last."""


class VLLMServer:
    """A vLLM server at `url` that serves the policy in folder `base` (a `PolicyServer`).

    adapter_dir: where published adapters are kept; the server must be able to read it.  server_dir: the path at which the
    server sees that folder, if it is another one (a container).  keep: earlier versions of a role that stay served, for
    requests still under way.  max_lora_rank: what the server was started with, if known; else it says so itself.
    reconnect_timeout: seconds for which calls wait for a server that went away.  on_wait: gets one line when that happens.
    """

    def __init__(
        self,
        url: str,
        *,
        base: Path | str,
        adapter_dir: Path | str,
        api_key: SecretStr | str | None = None,
        server_dir: Path | str | None = None,
        keep: int = 1,
        max_lora_rank: int | None = None,
        reconnect_timeout: float = RECONNECT_TIMEOUT,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        if keep < 0:
            raise InputError(f"keep={keep}: the number of earlier versions cannot be negative")
        self._base = Path(base).absolute()
        self._dir = Path(adapter_dir).absolute()
        self._server_dir = str(server_dir) if server_dir is not None else str(self._dir)
        self._keep = keep
        self._max_rank = max_lora_rank
        key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        self._endpoint = VLLMEndpoint(
            url, api_key=key, reconnect_timeout=reconnect_timeout, on_wait=on_wait, restore=self._after_restart
        )
        self._lock = threading.RLock()
        self._roles: dict[str, _Role] = {}
        self._locks: dict[str, int] = {}
        self._base_name: str | None = None

    @property
    def base(self) -> Path:
        """Return the folder of the base policy."""
        return self._base

    @property
    def url(self) -> str:
        """Return the server's address, without `/v1`."""
        return self._endpoint.url

    def publish(self, weights: Path, *, run: str, role: str = DEFAULT_ROLE) -> PublishedPolicy:
        """Serve the adapter in folder `weights`; calls for `role` that start after this returns are answered by it.

        Raises `AdapterError` for one that does not fit (nothing was changed then), `ConflictError` when another process
        publishes under this run and role, `ServerSetupError`, `StorageFullError`, `UnavailableError`.
        """
        adapter = check_adapter(Path(weights), self._base, max_rank=self._max_rank)
        for attempt in range(_ATTEMPTS):
            self._checked_base()
            try:
                return self._publish(adapter, run, role)
            except ServerAwayError:
                if attempt + 1 == _ATTEMPTS:
                    raise
                self._endpoint.wait_ready()
        raise AssertionError("unreachable: the loop ends by return or raise")

    def _publish(self, adapter: Adapter, run: str, role: str) -> PublishedPolicy:
        with self._lock:
            stem = self._own(run, role)
            number = self._next_number(stem)
            policy = PublishedPolicy(
                name=f"{stem}-v{number}", run=run, role=role, number=number, version=adapter.version
            )
            copy_whole(adapter.folder, self._dir / policy.name)
            try:
                self._load(policy)
            except BaseException:
                shutil.rmtree(self._dir / policy.name, ignore_errors=True)
                raise
            before = self._roles[role].served if role in self._roles else []
            served = [*before, policy]
            self._roles[role] = _Role(policy, served[-(self._keep + 1) :])
            self._retire(stem, policy.number, served[: -(self._keep + 1)])
            return policy

    def current(self, role: str = DEFAULT_ROLE) -> PublishedPolicy | None:
        """Return what `role` is served with; `None` while it is the base policy."""
        found = self._roles.get(role)
        return found.current if found else None

    def chat_model(
        self, role: str = DEFAULT_ROLE, *, sampling: Sampling | None = None, timeout: float = 60.0
    ) -> VLLMChatModel:
        """Return a chat model that plays `role` with what is published for it at the time of each call.

        The server is checked (see `check`) before the first call, so its replies say `logprobs: processed`.
        """
        given = sampling or Sampling()
        if given.logprobs == "raw":
            raise InputError("A vLLM policy gives processed log-probabilities; leave Sampling.logprobs out")
        full = given.model_copy(
            update={"logprobs": "processed", "temperature": 1.0 if given.temperature is None else given.temperature}
        )
        return VLLMChatModel.connect(
            self._endpoint,
            role,
            lambda: self._served(role),
            sampling=full,
            timeout=timeout,
            restore=self._reload_missing,
        )

    def check(self) -> None:
        """Raise `UnavailableError` or `ServerSetupError`, naming the missing flag, unless it can be trained against.

        That includes another base than ours, where the server's is a folder of this machine.
        """
        with self._lock:
            self._base_name, _ = base_model(self._endpoint)
            try:
                check_base(self._endpoint, self._base)
                check_endpoint(self._endpoint, self._base_name)
            except BaseException:
                self._base_name = None
                raise

    def close(self) -> None:
        """Let other trainers publish and close connections; what was published stays served."""
        with self._lock:
            locks, self._locks = self._locks, {}
            for handle in locks.values():
                os.close(handle)
        self._endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _served(self, role: str) -> Served:
        """Return what to ask for, now. Reading `_roles` needs no lock: entries are replaced, never changed."""
        found = self._roles.get(role)
        if found is not None:
            return Served(found.current.name, found.current.version)
        return Served(self._checked_base(), base_version(self._base))

    def _checked_base(self) -> str:
        """Return the base's name on the server, which has been checked; a server that is away is waited for."""
        name = self._base_name
        if name is not None:
            return name
        self._endpoint.wait_ready()
        with self._lock:
            if self._base_name is None:
                self.check()
            assert self._base_name is not None
            return self._base_name

    def _own(self, run: str, role: str) -> str:
        """Take the names of this run and role for this process; return their stem. The system frees them with the process."""
        for what, value in (("run", run), ("role", role)):
            if not _NAME.fullmatch(value):
                raise InputError(
                    f"{what} {value!r} cannot be part of a file name: use letters, digits, - _ and . (at most 128)"
                )
        stem = f"{run}-{role}"
        if stem not in self._locks:
            self._dir.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._dir / f".{stem}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                raise ConflictError(
                    f"Another trainer publishes {stem} in {self._dir}. Stop it, or give this run another name"
                ) from error
            self._locks[stem] = handle
        return stem

    def _next_number(self, stem: str) -> int:
        """Return a number that no adapter of this stem ever had: the last one is kept in the lock file."""
        handle = self._locks[stem]
        written = os.pread(handle, 32, 0).strip()
        last = int(written) if written.isdigit() else 0
        names = [path.name for path in self._dir.glob(f"{stem}-v*")] + base_model(self._endpoint)[1]
        number = 1 + max([last, *(found for name in names if (found := _number(stem, name)) is not None)])
        os.pwrite(handle, str(number).encode(), 0)
        os.fsync(handle)
        return number

    def _load(self, policy: PublishedPolicy) -> None:
        body = {"lora_name": policy.name, "lora_path": f"{self._server_dir}/{policy.name}"}
        try:
            self._endpoint.post("/v1/load_lora_adapter", body, timeout=_LOAD_TIMEOUT, wait=False)
        except (InputError, OperationError) as error:
            # A load that was sent twice, because its answer was lost, has succeeded.
            if "already been loaded" in str(error):
                return
            meaning = refused_adapter(error, policy.name)
            if meaning is None:
                raise
            raise meaning from error

    def _retire(self, stem: str, number: int, old: list[PublishedPolicy]) -> None:
        """Unload and remove `old`, and what an earlier process left under this stem."""
        kept = {policy.name for role in self._roles.values() for policy in role.served}
        gone = {policy.name for policy in old}

        def leaves(name: str) -> bool:
            found = _number(stem, name)
            return name in gone or (found is not None and found < number and name not in kept)

        for name in base_model(self._endpoint)[1]:
            if leaves(name):
                # One that was unloaded meanwhile is as good.
                with suppress(UnknownModelError):
                    self._endpoint.post(
                        "/v1/unload_lora_adapter", {"lora_name": name}, timeout=_LOAD_TIMEOUT, wait=False
                    )
        for folder in self._dir.iterdir():
            if leaves(folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    def _after_restart(self) -> None:
        """A new process has forgotten all adapters, and may have been started with other flags."""
        with self._lock:
            if self._base_name is None:
                return  # not used yet
            self.check()
            self._reload_missing()

    def _reload_missing(self) -> None:
        """Load what this process published and the server does not list."""
        with self._lock:
            base, listed = base_model(self._endpoint)
            if self._base_name is not None:
                self._base_name = base
            for role in list(self._roles.values()):
                for policy in role.served:
                    if policy.name not in listed:
                        logger.info("loading %s again", policy.name)
                        self._load(policy)


def _number(stem: str, name: str) -> int | None:
    """Return the number in `{stem}-v{number}`; `None` for another name."""
    found = re.fullmatch(re.escape(stem) + r"-v(\d+)", name)
    return int(found[1]) if found else None
