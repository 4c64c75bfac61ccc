"""The seam between trainers and whatever serves the policy: `publish` weights, then call them through a chat model.

A trainer publishes, graphs call. The chat model of a role follows what was published last for that role, so a graph is
built once and its model improves under it. Every reply says which weights sampled it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

from langchain_core.language_models import BaseChatModel

from memweave.errors import InputError
from memweave.records import Record
from memweave.tracing.records import Sampling

DEFAULT_ROLE = "policy"


class PublishedPolicy(Record):
    """Weights that a server serves under a name of their own."""

    name: str
    """`{run}-{role}-v{number}`; never used twice for other weights."""
    run: str
    role: str
    number: int
    version: str
    """Hash of the weights, see `weights_version`."""


@runtime_checkable
class PolicyServer(Protocol):
    """Serves one base policy and adapters on it. Calls block: from async code, use a thread."""

    @property
    def base(self) -> Path:
        """Return the folder of the base policy: config, weights, tokenizer, chat template."""

    def publish(self, weights: Path, *, run: str, role: str = DEFAULT_ROLE) -> PublishedPolicy:
        """Serve the adapter (or, where the server can, the full weights) in folder `weights`; from now on `role` uses it.

        The next call for `role` is answered by these weights and no other. The folder may be changed or removed
        afterwards. Raises `InputError` for an adapter that does not fit the base, `ConflictError` when another process
        publishes under this run and role, `UnavailableError` when the server does not answer.
        """

    def current(self, role: str = DEFAULT_ROLE) -> PublishedPolicy | None:
        """Return what `role` is served with; `None` while it is the base policy."""

    def chat_model(
        self, role: str = DEFAULT_ROLE, *, sampling: Sampling | None = None, timeout: float = 60.0
    ) -> BaseChatModel:
        """Return a chat model that plays `role` with whatever is published for it at the time of each call.

        Its replies carry `prompt_token_ids`, `token_ids`, `token_logprobs`, `policy`, `policy_version`,
        `sampling` and `finish_reason` in `response_metadata`. It never streams: a stream has no token ids.
        """

    def check(self) -> None:
        """Raise `UnavailableError` or `SettingsError`, naming the remedy, unless the server can be trained against."""

    def close(self) -> None:
        """Release what the server holds here; published policies stay served where the server is another process."""


WEIGHT_FILES = ("adapter_config.json", "adapter_model.safetensors", "model.safetensors")


def weights_version(folder: Path) -> str:
    """Return the policy version of `folder`: 16 hex digits of a hash of its weights (and adapter settings).

    Raises `InputError` when the folder holds no weights.
    """
    digest = hashlib.blake2b(digest_size=8)
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    found += sorted(folder.glob("model-*-of-*.safetensors"))  # a large model comes in shards
    if not any(file.suffix == ".safetensors" for file in found):
        raise InputError(f"{folder} holds no weights: expected adapter_model.safetensors or model.safetensors")
    for file in found:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
