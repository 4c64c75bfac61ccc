"""Every error that memweave raises on purpose.

    MemweaveError
    ├── UsageError               the caller asked for something that cannot be; exit code 2
    │   ├── SettingsError        a setting is unknown, malformed or contradictory
    │   ├── ScopeError           a call reached for another tenant's or user's data
    │   ├── UnknownMemoryError   no such memory (or operation) in this scope
    │   ├── ConflictError        an id is taken, the memory changed since it was read, or another trainer publishes
    │   ├── InputError           a file, message or embedding cannot be read as what it should be
    │   │   └── AdapterError     an adapter does not fit the base policy or the server
    │   ├── RewardError          a reward is missing, not a number, or outside its range
    │   ├── GroupError           a group has nothing to compare: fewer than two scored episodes
    │   ├── NoPolicyError        a run made no model call that can be trained on
    │   └── ServerSetupError     a policy server cannot be trained against as it was started
    └── OperationError           the world did not play along; exit code 1
        ├── DataFolderError      a data folder cannot be used
        │   ├── FormatError      it was written by a newer (or unknown) format
        │   └── EmbeddingMismatchError   it was made with another embedding model
        ├── UnavailableError     Qdrant, the database or a model endpoint does not answer
        ├── StorageFullError     the disk is full
        ├── NotInstalledError    a program or package that this needs is not installed
        ├── PortInUseError       another program listens where a server should
        ├── IsolationError       this machine cannot keep a program apart as a sandbox has to
        └── ModelReplyError      a model answered, but not with what was asked for
            └── ContextLengthError   the prompt does not fit the model's context

`UsageError` is for whoever wrote the call, `OperationError` for whoever runs the system. What a model or a tool gets wrong
inside a graph is data (a failed operation), not an exception. Messages name what happened, on what, and what to do.
"""

from __future__ import annotations


class MemweaveError(Exception):
    """Base of all memweave errors; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(MemweaveError, ValueError):
    """The call cannot be carried out as written.

    A `ValueError` too: that is what a LangGraph server shows to the caller with its message, and never retries.
    """

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, malformed or contradicts another."""


class ScopeError(UsageError):
    """A call reached for data outside its scope."""


class UnknownMemoryError(UsageError):
    """No such memory or operation in this scope (also when it exists in another scope)."""


class ConflictError(UsageError):
    """An id is already taken, or a memory changed since it was read."""


class InputError(UsageError):
    """Input cannot be read as what it should be."""


class AdapterError(InputError):
    """An adapter belongs to another base, has too high a rank, or is broken."""


class RewardError(UsageError):
    """A reward is missing, not a number, or outside its range."""


class GroupError(UsageError):
    """A group has nothing to compare: fewer than two scored episodes."""


class NoPolicyError(UsageError):
    """A run made no model call that can be trained on."""


class ServerSetupError(UsageError):
    """A policy server lacks what training needs: token ids, log-probabilities, or adapters."""


class OperationError(MemweaveError):
    """Something outside the program failed."""


class DataFolderError(OperationError):
    """A data folder cannot be used."""


class FormatError(DataFolderError):
    """A data folder or file has a format that this version does not know."""


class EmbeddingMismatchError(DataFolderError):
    """A data folder was made with another embedding model."""


class UnavailableError(OperationError):
    """A server that is needed does not answer."""


class StorageFullError(OperationError):
    """The disk is full; nothing was changed."""


class NotInstalledError(OperationError):
    """A program or package that this needs is not installed."""


class PortInUseError(OperationError):
    """Another program listens where a server should."""


class IsolationError(OperationError):
    """This machine does not give one of the guarantees of a sandbox, so there is none.

    guarantee: the one that is missing.  reason: what the kernel said.  remedy: what to do about it.
    """

    def __init__(self, guarantee: str, reason: str, remedy: str | None = None) -> None:
        told = f"no sandbox on this machine: the guarantee {guarantee!r} is missing ({reason})"
        super().__init__(f"{told}. {remedy or 'Run it on a machine that has it'}; there is no weaker sandbox.")
        self.guarantee = guarantee
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[IsolationError], tuple[str, str, str | None]]:
        return type(self), (self.guarantee, self.reason, self.remedy)


class ModelReplyError(OperationError):
    """A model answered with something other than what it was asked for."""


class ContextLengthError(ModelReplyError):
    """The prompt does not fit the model's context."""
