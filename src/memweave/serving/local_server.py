"""`LocalServer`: a policy in this process, behind the same seam as a vLLM server.

    with LocalServer("runs/policy") as server:
        model = server.chat_model("manager", sampling=Sampling(temperature=1.0, max_tokens=64))
        server.publish(adapter_folder, run="first", role="manager")      # the next call is answered by it

Callers on any thread or event loop put requests into one queue; one thread reads it and samples. Calls of the same policy
grow together, and join and leave between tokens. A request keeps the weights that were published when it was made.
Nothing is written to disk. torch is imported when the server is made.
"""

from __future__ import annotations

import math
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from memweave.errors import ContextLengthError, InputError, SettingsError, UnavailableError
from memweave.serving.adapters import base_version, check_adapter, check_weights, is_adapter
from memweave.serving.policy_folder import PolicyFolder, load_policy_folder, require_torch
from memweave.serving.server import DEFAULT_ROLE, PublishedPolicy
from memweave.tracing.records import Sampling

if TYPE_CHECKING:
    from memweave.serving.decoding import Batch, Row, SlotCache, Weights
    from memweave.serving.local_chat import LocalChatModel

MAX_QUEUE: Final = 4_096
"""Most requests that wait or run at once."""
_CANCEL_CHECK: Final = 8
"""Tokens between two looks whether somebody still waits for a reply."""
_CLOSE_SECONDS: Final = 10.0
"""How long closing waits for the token that is being sampled."""
_ONE_THREAD_BELOW: Final = 20_000_000
"""Parameters below which a second CPU thread costs more than it gives."""
_SPARE_CACHES: Final = 2
"""Caches that wait for a batch: the policy in training and its frozen partner take turns."""
_threads_lock = threading.Lock()


@dataclass(frozen=True)
class Reply:
    """What was sampled."""

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    policy: str
    policy_version: str
    sampling: Sampling
    """As it was done: limits and defaults filled in."""


@dataclass(frozen=True, eq=False)
class _Policy:
    """Weights under the name by which replies report them."""

    name: str
    version: str
    weights: Weights
    published: PublishedPolicy | None = None


@dataclass(eq=False)
class _Request:
    policy: _Policy
    row: Row
    sampling: Sampling
    future: Future[Reply] = field(default_factory=Future)


class LocalServer:
    """Serves one base policy in this process, and adapters or full weights per role.

    base_folder: see `load_policy_folder`.  device: `cpu`, `cuda`, ...  dtype: `float32`, `bfloat16` or `float16`.  max_batch: most
    replies per policy that grow together; others wait.  threads: CPU threads for sampling; by default 1 for small
    policies, where more are slower, else what torch is set to.

    Raises as `load_policy_folder` does; `SettingsError` for a device or type that is not there, `NotInstalledError`
    without torch.
    """

    def __init__(
        self,
        base_folder: Path | str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        max_batch: int = 64,
        threads: int | None = None,
    ) -> None:
        require_torch("A local policy")
        if max_batch < 1 or (threads is not None and threads < 1):
            raise SettingsError(f"max_batch and threads start at 1, not {max_batch} and {threads}")
        self.folder: PolicyFolder = load_policy_folder(base_folder)
        self.folder.tokenizer()
        from memweave.serving.loading import Loader

        self._loader = Loader(self.folder.path, device, dtype)
        self._base = _Policy(self.folder.path.name, base_version(self.folder.path), self._loader.base())
        self._roles: dict[str, _Policy] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._publishing = threading.Lock()
        if threads is None and self._loader.parameters < _ONE_THREAD_BELOW:
            threads = 1
        self._worker = _Worker(max_batch, threads)
        # Nobody has to close a server that nobody holds any more; at exit, the thread must not be amid a computation.
        self._finalizer = weakref.finalize(self, self._worker.close)

    @property
    def base(self) -> Path:
        """Return the folder of the base policy."""
        return self.folder.path

    def publish(self, weights: Path, *, run: str, role: str = DEFAULT_ROLE) -> PublishedPolicy:
        """Serve the LoRA adapter or the full weights in folder `weights` as `role` from the next call on.

        Raises `AdapterError` for weights that do not fit the base, `UnavailableError` after `close`.
        """
        folder = Path(weights).absolute()
        with self._publishing:
            self._worker.check_open()
            if is_adapter(folder):
                version = check_adapter(folder, self.base).version
                served = self._loader.adapted(folder)
            else:
                version = check_weights(folder, self.base)
                served = self._loader.full(folder)
            number = self._numbers[run, role] = self._numbers.get((run, role), 0) + 1
            name = f"{run}-{role}-v{number}"
            published = PublishedPolicy(name=name, run=run, role=role, number=number, version=version)
            self._roles[role] = _Policy(name, version, served, published)
        return published

    def current(self, role: str = DEFAULT_ROLE) -> PublishedPolicy | None:
        """Return what `role` is served with; `None` while it is the base policy."""
        return self._policy(role).published

    def version(self, role: str = DEFAULT_ROLE) -> str:
        """Return the hash of the weights that would answer `role` now."""
        return self._policy(role).version

    def chat_model(
        self, role: str = DEFAULT_ROLE, *, sampling: Sampling | None = None, timeout: float = 60.0
    ) -> LocalChatModel:
        """Return a chat model that plays `role` with whatever is published for it at the time of each call.

        sampling: temperature (default 1; 0 is greedy), max_tokens (default: what fits the context) and seed.  timeout:
        seconds per reply, waiting included. Raises `SettingsError` for sampling that the server does not do.
        """
        from memweave.serving.local_chat import LocalChatModel

        given = sampling or Sampling()
        check_sampling(given)
        return LocalChatModel.of(self, role, given, timeout)

    def check(self) -> None:
        """Raise `UnavailableError` unless the server takes requests."""
        self._worker.check_open()

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        role: str = DEFAULT_ROLE,
        seed: int | None = None,
        ignore_eos: bool = False,
    ) -> Future[Reply]:
        """Queue a prompt (token ids) for `role`; the reply comes as a future, which may be cancelled.

        seed: of this one call, in [0, 2^63); random by default.  ignore_eos: sample `max_tokens` tokens whatever comes.

        Raises `ContextLengthError` when the prompt leaves no room for a token, `InputError` for an empty prompt,
        `UnavailableError` when too many requests wait or the server is closed.
        """
        from memweave.serving.decoding import Row, uniforms

        room = self.folder.context_length - len(prompt)
        if room < 1:
            raise ContextLengthError(
                f"The prompt has {len(prompt)} tokens; the context of {self.base.name} holds {self.folder.context_length}, "
                "reply included. Shorten the prompt, or train a policy with a longer context"
            )
        if not prompt:
            raise InputError("The prompt is empty: a policy needs a token to begin with")
        temperature = 1.0 if sampling.temperature is None else sampling.temperature
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        drawn = uniforms(secrets.randbits(63) if seed is None else seed, limit) if temperature else ()
        stop_ids = frozenset(() if ignore_eos else self.folder.eos_ids)
        done = Sampling(
            temperature=temperature,
            max_tokens=limit,
            seed=sampling.seed,
            logprobs="processed" if temperature else "raw",
        )
        request = _Request(self._policy(role), Row(prompt, limit, temperature, drawn, stop_ids), done)
        self._worker.add(request)
        return request.future

    def close(self) -> None:
        """Stop the server; requests that wait or run fail with `UnavailableError`. Closing again does nothing."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _policy(self, role: str) -> _Policy:
        return self._roles.get(role, self._base)


def check_sampling(sampling: Sampling) -> None:
    """Raise `SettingsError` for sampling that a local policy does not do."""
    neutral = {"top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    for name, value in neutral.items():
        if getattr(sampling, name) not in (None, value):
            raise SettingsError(f"A local policy samples by temperature only: leave out {name}, or serve it with vLLM")
    if sampling.top_k not in (None, 0, -1):
        raise SettingsError("A local policy samples by temperature only: leave out top_k, or serve it with vLLM")
    if sampling.temperature is not None and not 0 <= sampling.temperature < math.inf:
        raise SettingsError(f"temperature is 0 (greedy) or above, not {sampling.temperature}")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise SettingsError(f"max_tokens starts at 1, not {sampling.max_tokens}")


class _Worker:
    """The thread that samples, and its queue."""

    def __init__(self, max_batch: int, threads: int | None) -> None:
        self._max_batch = max_batch
        self._threads = threads
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, request: _Request) -> None:
        with self._changed:
            self._open()
            if len(self._waiting) + self._running >= MAX_QUEUE:
                raise UnavailableError(
                    f"{MAX_QUEUE} requests wait for the local policy already. Run fewer episodes at once"
                )
            self._waiting.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="memweave-local-policy", daemon=True)
                self._thread.start()
            self._changed.notify()

    def check_open(self) -> None:
        with self._changed:
            self._open()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSE_SECONDS)

    def _open(self) -> None:
        if self._closed:
            raise UnavailableError("The local policy server is closed. Make a new LocalServer")

    def _work(self) -> None:
        if self._threads is not None:
            _use_threads(self._threads)
        batches: dict[_Policy, _Growing] = {}
        spare: list[SlotCache] = []  # of batches that ended: getting and clearing that memory anew takes time
        while True:
            with self._changed:
                while not self._waiting and not batches and not self._closed:
                    self._changed.wait()
                if self._closed:
                    break
                new = self._take(batches)
                self._running = sum(len(batch.requests) for batch in batches.values()) + len(new)
            for request in new:
                if request.policy not in batches:
                    batches[request.policy] = _Growing(request.policy.weights, spare.pop() if spare else None)
                batches[request.policy].joining.append(request)
            for policy, batch in list(batches.items()):
                batch.advance()
                if not batch.requests:
                    del batches[policy]
                    if len(spare) < _SPARE_CACHES and batch.cache is not None:
                        spare.append(batch.cache)
        left = [*self._waiting, *(request for batch in batches.values() for request in batch.requests)]
        for request in left:
            _fail(request, UnavailableError("The local policy server was closed before the reply was complete"))

    def _take(self, batches: dict[_Policy, _Growing]) -> list[_Request]:
        """Return the waiting requests for which there is room, oldest first."""
        room: dict[_Policy, int] = {}
        taken, kept = [], deque[_Request]()
        for request in self._waiting:
            policy = request.policy
            if policy not in room:
                room[policy] = self._max_batch - (len(batches[policy].requests) if policy in batches else 0)
            if request.future.cancelled():
                continue
            if room[policy] > 0:
                room[policy] -= 1
                taken.append(request)
            else:
                kept.append(request)
        self._waiting = kept
        return taken


class _Growing:
    """The requests of one policy that are being answered."""

    def __init__(self, weights: Weights, cache: SlotCache | None) -> None:
        from memweave.serving.decoding import Batch

        self._batch: Batch = Batch(weights, cache)
        self._requests: dict[int, _Request] = {}
        self._steps = 0
        self.joining: list[_Request] = []

    @property
    def cache(self) -> SlotCache | None:
        """Return the cache, for another batch; `None` while rows use it, or lie in it since something failed."""
        return None if self._batch.rows or self._batch.cache.rows else self._batch.cache

    @property
    def requests(self) -> list[_Request]:
        return [*self._requests.values(), *self.joining]

    def advance(self) -> None:
        """Sample one token for every request, the first one for those that joined. A failure fails them all."""
        try:
            ended: list[Row] = []
            if self.joining:
                new, self.joining = self.joining, []
                self._requests.update((id(request.row), request) for request in new)
                ended += self._batch.join([request.row for request in new])
            if self._batch.rows:
                ended += self._batch.step()
            for row in ended:
                _succeed(self._requests.pop(id(row)))
            self._steps += 1
            if self._steps % _CANCEL_CHECK == 0:
                self._drop_cancelled()
        except Exception as error:  # whatever it is, those who wait must hear of it, and the thread must go on
            for request in self.requests:
                _fail(request, _explained(error))
            self._requests, self.joining = {}, []

    def _drop_cancelled(self) -> None:
        gone = [request for request in self._requests.values() if request.future.cancelled()]
        self._batch.leave(request.row for request in gone)
        for request in gone:
            del self._requests[id(request.row)]


def _use_threads(count: int) -> None:
    """Make torch use `count` CPU threads in the calling thread only."""
    import torch

    with _threads_lock:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        # That was also the default of threads that have not used torch yet, a trainer's perhaps: give it back, from a
        # thread whose own setting does not matter.
        restore = threading.Thread(target=torch.set_num_threads, args=(before,))
        restore.start()
        restore.join()


def _succeed(request: _Request) -> None:
    row = request.row
    reply = Reply(
        prompt_ids=list(row.prompt),
        token_ids=row.tokens,
        logprobs=row.logprobs,
        finish_reason=row.finish_reason or "length",
        policy=request.policy.name,
        policy_version=request.policy.version,
        sampling=request.sampling,
    )
    try:
        request.future.set_result(reply)
    except InvalidStateError:
        return  # cancelled a moment ago


def _fail(request: _Request, error: Exception) -> None:
    try:
        request.future.set_exception(error)
    except InvalidStateError:
        return  # cancelled a moment ago


def _explained(error: Exception) -> Exception:
    """Return a new error for one waiting caller: callers add tracebacks to what they are given."""
    from memweave.errors import MemweaveError

    if isinstance(error, MemweaveError):
        return type(error)(str(error))
    hint = ". Lower max_batch" if "out of memory" in str(error).lower() else ""
    explained = UnavailableError(f"The local policy failed while sampling: {type(error).__name__}: {error}{hint}")
    explained.__cause__ = error
    return explained
