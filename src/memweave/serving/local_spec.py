"""`local:` specifications: `FOLDER`, `FOLDER?adapter=FOLDER`, also with `device=cuda` and `dtype=bfloat16` after an `&`.

Models of one process with the same base, device and type share one server, which goes when the last of them does. An
adapter is read when the model is made; a newer one in the same folder is served by models made afterwards.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl
from weakref import WeakValueDictionary

from memweave.errors import SettingsError
from memweave.serving.local_server import LocalServer
from memweave.serving.server import DEFAULT_ROLE, weights_version

if TYPE_CHECKING:
    from memweave.serving.local_chat import LocalChatModel
    from memweave.tracing.records import Sampling

_OPTIONS: Final = ("adapter", "device", "dtype")
_lock = threading.Lock()
_servers: WeakValueDictionary[tuple[Path, str, str], LocalServer] = WeakValueDictionary()


@dataclass(frozen=True)
class LocalSpec:
    """What a `local:` specification names."""

    base: Path
    adapter: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"


def parse_local(rest: str) -> LocalSpec:
    """Return what follows `local:`. Raises `SettingsError` for an option that does not exist."""
    folder, mark, query = rest.rpartition("?")
    if not mark or Path(rest).exists():
        return LocalSpec(Path(rest).expanduser())
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(options.keys() - set(_OPTIONS))
    if unknown or not options or not folder or not all(options.values()):
        what = f"no option {unknown[0]!r}" if unknown else "an empty part"
        raise SettingsError(f"'local:{rest}' has {what}. Write local:FOLDER or local:FOLDER?adapter=FOLDER&device=cuda")
    adapter = options.get("adapter")
    return LocalSpec(
        Path(folder).expanduser(),
        Path(adapter).expanduser() if adapter else None,
        options.get("device", "cpu"),
        options.get("dtype", "float32"),
    )


def shared_server(base: Path, *, device: str = "cpu", dtype: str = "float32") -> LocalServer:
    """Return this process's server of a base folder, started if there is none. Raises as `LocalServer` does."""
    key = (base.resolve(), device, dtype)
    with _lock:
        server = _servers.get(key)
        if server is None:
            server = _servers[key] = LocalServer(base, device=device, dtype=dtype)
    return server


def local_chat_model(rest: str, *, sampling: Sampling, timeout: float) -> LocalChatModel:
    """Return the chat model that `local:REST` names. Raises as `parse_local`, `LocalServer` and `publish` do."""
    spec = parse_local(rest)
    server = shared_server(spec.base, device=spec.device, dtype=spec.dtype)
    role = DEFAULT_ROLE
    if spec.adapter is not None:
        role = f"{spec.adapter.name}-{weights_version(spec.adapter)}"
        with _lock:
            if server.current(role) is None:
                server.publish(spec.adapter, run="local", role=role)
    return server.chat_model(role, sampling=sampling, timeout=timeout)
