"""Let any LangChain chat model play a role, and turn what a caller names (`rule`, a model, a policy) into a policy.

The third kind of policy, a trained local model, is a chat model too: whatever `memweave.models.chat_model` returns can
play a role here, with `profile="none"` if it was trained on the role.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.constants import TAG_NOSTREAM

from memweave.agents.answerer import render_answer
from memweave.agents.extractor import render_extract
from memweave.agents.judge import render_judge
from memweave.agents.manager import render_manage
from memweave.agents.prompts import PromptRole, load_prompt, prompt_hash
from memweave.agents.rendering import Profile
from memweave.agents.roles import (
    Answerer,
    AnswerRequest,
    Extractor,
    ExtractRequest,
    Judge,
    JudgeRequest,
    Manager,
    ManageRequest,
    Policy,
    one_line,
)
from memweave.errors import ModelReplyError, SettingsError, UnavailableError
from memweave.models import chat_model, model_name
from memweave.records import Memory

T = TypeVar("T")
R = TypeVar("R", ExtractRequest, ManageRequest, AnswerRequest, JudgeRequest)

PolicyLike = str | BaseChatModel | Policy[R]
"""`rule`, a specification for `chat_model`, a chat model, or a policy."""

DEFAULT_TIMEOUT: Final = 120.0
"""Seconds that one reply may take, retries of the model's own client included."""


@dataclass(frozen=True)
class Role(Generic[R]):
    """What a model has to do: the name of the role, and how a request is put to it."""

    name: PromptRole
    render: Callable[[R, Profile], list[BaseMessage]]


EXTRACTOR: Final = Role[ExtractRequest]("extractor", render_extract)
MANAGER: Final = Role[ManageRequest]("manager", render_manage)
ANSWERER: Final = Role[AnswerRequest]("answerer", render_answer)
JUDGE: Final = Role[JudgeRequest]("judge", render_judge)


class LLMPolicy(Generic[R]):
    """A chat model in a role.

    profile: `full` gives it the shipped instructions unless the request brings its own; `none` is for models trained on
    the role.  timeout: seconds per reply.  name, policy_version: as logged with each operation; by default the model's
    own (`policy_version` attribute, if it has one).

    A reply that makes no sense is returned as it is: judging it is the parser's work.
    """

    def __init__(
        self,
        model: BaseChatModel,
        role: Role[R],
        *,
        profile: Profile = "full",
        name: str | None = None,
        policy_version: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.model = model
        self.role: Role[R] = role
        self.profile: Profile = profile
        self.timeout = timeout
        self._name = name or model_name(model)
        self._policy_version = policy_version
        load_prompt(role.name)  # read the file now, not in the middle of a run

    @property
    def name(self) -> str:
        """Return who decides, as logged."""
        return self._name

    @property
    def policy_version(self) -> str | None:
        """Return the hash of the weights, if the model is a trained one: of those published for it at the moment."""
        version = self._policy_version or getattr(self.model, "policy_version", None)
        return version if isinstance(version, str) else None

    def reply(self, request: R, config: RunnableConfig | None = None) -> str:
        """Return the model's reply.

        Raises `UnavailableError` when the model cannot be reached, refuses the key, is overloaded, or does not answer
        in time; `ModelReplyError` when it refuses this one request, for example because it is too long.
        """
        messages = self.role.render(request, self.profile)
        return _clean(ask(self.model, messages, self._config(request, config), self.timeout))

    async def areply(self, request: R, config: RunnableConfig | None = None) -> str:
        """Return the model's reply. Raises as `reply` does."""
        messages = self.role.render(request, self.profile)
        return _clean(await aask(self.model, messages, self._config(request, config), self.timeout))

    def _config(self, request: R, config: RunnableConfig | None) -> RunnableConfig:
        """Return `config` for this call, with a tag that keeps the reply out of the token stream of a chat."""
        shipped = load_prompt(self.role.name).text if self.profile == "full" else None
        memories: Sequence[Memory] = getattr(request, "memories", ())
        own: RunnableConfig = described(config, self.role.name, memories, request.system_prompt or shipped)
        return {**own, "run_name": self.role.name, "tags": [*(own.get("tags") or []), TAG_NOSTREAM]}


def described(
    config: RunnableConfig | None, role: str, memories: Sequence[Memory], prompt: str | None
) -> RunnableConfig:
    """Return `config` with what a trace says of a model call: its role, the memories in the prompt, the hash of the instructions."""
    given: RunnableConfig = config or RunnableConfig()
    about: dict[str, Any] = {"memweave_role": role}
    if memories:
        about["memweave_memories"] = [[str(memory.id), memory.version] for memory in memories]
    if prompt:
        about["memweave_prompt_hash"] = prompt_hash(prompt)
    return {**given, "metadata": {**(given.get("metadata") or {}), **about}}


def ask(model: BaseChatModel, messages: list[BaseMessage], config: RunnableConfig, seconds: float) -> AIMessage:
    """Return the model's message after at most `seconds`. Raises as `LLMPolicy.reply` does."""
    try:
        return bounded(lambda: model.invoke(messages, config), seconds)
    except Exception as error:
        raise translated(error, model, seconds) from error


async def aask(model: BaseChatModel, messages: list[BaseMessage], config: RunnableConfig, seconds: float) -> AIMessage:
    """Return the model's message, as `ask` does."""
    try:
        async with asyncio.timeout(seconds):
            return await model.ainvoke(messages, config)
    except Exception as error:
        raise translated(error, model, seconds) from error


def bounded(call: Callable[[], T], timeout: float) -> T:
    """Return the result of `call`, which may block, after at most `timeout` seconds.

    Raises `TimeoutError`; the call itself cannot be stopped and ends on its own, in a thread that holds nothing up.
    """
    results: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            results.put((context.run(call), None))
        except BaseException as error:  # handed to the waiting thread
            results.put((None, error))

    threading.Thread(target=work, name="memweave-model-call", daemon=True).start()
    try:
        value, error = results.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return cast(T, value)


def translated(error: Exception, model: BaseChatModel, timeout: float) -> Exception:
    """Return the memweave error that says what `error` means; an error of another kind is returned as it is.

    Clients have error classes of their own; what they share is `status_code`, and the names of connection errors.
    """
    url = getattr(model, "openai_api_base", None)
    who = f"The model {model_name(model)!r}" + (f" at {url}" if isinstance(url, str) else "")
    status = getattr(error, "status_code", None)
    detail = one_line(str(error))[:300]
    if isinstance(error, TimeoutError) or _is_a(error, "APITimeoutError", "TimeoutException"):
        return UnavailableError(f"{who} did not answer within {timeout:g} s. Check that it runs, or allow it more time")
    if isinstance(error, ConnectionError) or _is_a(error, "APIConnectionError", "TransportError"):
        return UnavailableError(f"{who} cannot be reached: {detail} Check that it runs and that the address is right")
    if status in (401, 403):
        return UnavailableError(f"{who} refuses the API key ({status}). Check MEMWEAVE_MODEL_API_KEY")
    if status == 404:
        return UnavailableError(f"{who} is not there (404). Check the model's name and the address: {detail}")
    if status in (408, 409, 429) or (isinstance(status, int) and status >= 500):
        return UnavailableError(f"{who} is overloaded or broken ({status}). Try again later: {detail}")
    if isinstance(status, int) and status >= 400:
        return ModelReplyError(f"{who} refuses the request ({status}): {detail}")
    return error


def _is_a(error: Exception, *names: str) -> bool:
    return any(cls.__name__ in names for cls in type(error).__mro__)


def _clean(message: BaseMessage) -> str:
    """Return the text of a reply, valid as UTF-8: it is stored and shown."""
    return message.text.encode("utf-8", "replace").decode()


def as_extractor(value: PolicyLike[ExtractRequest]) -> Extractor:
    """Return the policy that `value` names: `rule`, a model's specification, a chat model, or a policy itself."""
    return _as_policy(value, EXTRACTOR)


def as_manager(value: PolicyLike[ManageRequest]) -> Manager:
    """Return the policy that `value` names, as `as_extractor` does."""
    return _as_policy(value, MANAGER)


def as_answerer(value: PolicyLike[AnswerRequest]) -> Answerer:
    """Return the policy that `value` names, as `as_extractor` does."""
    return _as_policy(value, ANSWERER)


def as_judge(value: PolicyLike[JudgeRequest]) -> Judge:
    """Return the policy that `value` names, as `as_extractor` does; there is no rule judge."""
    return _as_policy(value, JUDGE)


def _as_policy(value: PolicyLike[R], role: Role[R]) -> Policy[R]:
    if value == "rule":
        return _rule_policy(role)
    if isinstance(value, str):
        return LLMPolicy(chat_model(value), role)
    if isinstance(value, BaseChatModel):
        return LLMPolicy(value, role)
    return value


def _rule_policy(role: Role[R]) -> Policy[R]:
    if role.name not in ("extractor", "manager", "answerer"):
        raise SettingsError(f"There are no rules that play the {role.name}; give it a model")
    from memweave.agents.rules import RuleAnswerer, RuleExtractor, RuleManager

    rules: dict[str, Callable[[], Any]] = {
        "extractor": RuleExtractor,
        "manager": RuleManager,
        "answerer": RuleAnswerer,
    }
    policy: Policy[R] = rules[role.name]()
    return policy
