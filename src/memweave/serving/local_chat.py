"""The chat model of a policy that this process serves itself, and what a prompt's token ids are.

It renders the policy's own chat template, as vLLM does. One thing it does better: a reply that this policy sampled earlier
comes back into the prompt as exactly the ids that were sampled, not as its text tokenised again, so that the turns of an
episode always merge into one training row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, Final

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field, PrivateAttr

from memweave.errors import InputError, UnavailableError
from memweave.serving.policy_folder import PolicyFolder
from memweave.serving.sampled_reply import sampled_reply
from memweave.serving.seeding import call_seed
from memweave.serving.server import DEFAULT_ROLE
from memweave.serving.tool_text import ToolLike, ToolSpec, template_messages, tool_specs
from memweave.tracing.records import Sampling

if TYPE_CHECKING:
    from memweave.serving.local_server import LocalServer, Reply

_IGNORED: Final = ("tool_choice", "stream", "ls_structured_output_format", "parallel_tool_calls", "strict")
_PRIVATE_USE: Final = range(0xE000, 0xF900)
"""Code points without a meaning: hardly a text holds one, none holds all 6,400."""


class LocalChatModel(BaseChatModel):
    """A chat model that plays one role on a `LocalServer`. Made by `LocalServer.chat_model`, or `chat_model("local:FOLDER")`.

    `response_metadata` of a reply holds `prompt_token_ids`, `token_ids`, `token_logprobs`, `policy`, `policy_version`,
    `sampling`, `finish_reason`. It never streams, and asynchronous calls do not block the event loop. `ignore_eos=True`
    as a call argument makes replies of exactly `max_tokens` tokens (for measurements).
    """

    role: str = DEFAULT_ROLE
    sampling: Sampling = Field(default_factory=Sampling)
    timeout: float = 60.0
    """Seconds that one reply may take, waiting included."""
    disable_streaming: bool = True
    cache: bool = False
    """A reply from a cache would carry log-probabilities of other weights."""
    _server: LocalServer = PrivateAttr()

    @classmethod
    def of(cls, server: LocalServer, role: str, sampling: Sampling, timeout: float) -> LocalChatModel:
        """Return the model of `role` on `server`."""
        model = cls(role=role, sampling=sampling, timeout=timeout)
        model._server = server
        return model

    @property
    def model_name(self) -> str:
        """Return the name of what would answer now: the published policy, or the base folder."""
        published = self._server.current(self.role)
        return published.name if published else self._server.base.name

    @property
    def policy_version(self) -> str:
        """Return the hash of the weights that would answer now."""
        return self._server.version(self.role)

    @property
    def _llm_type(self) -> str:
        return "memweave-local"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name, "role": self.role, **self.sampling.model_dump(exclude_none=True)}

    def bind_tools(
        self, tools: Sequence[ToolLike], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the chat template list `tools`; calls are read from the reply's text (see `serving.tool_text`).

        tool_choice: taken as a wish, since a policy that samples freely cannot be made to call a tool.
        """
        return self.bind(tools=tool_specs(tools), **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        future = self._ask(messages, stop, run_manager.metadata if run_manager else None, kwargs)
        try:
            reply = future.result(self.timeout)
        except FutureTimeoutError:
            raise self._late(future) from None
        return self._result(reply, kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        future = self._ask(messages, stop, run_manager.metadata if run_manager else None, kwargs)
        try:
            async with asyncio.timeout(self.timeout):
                reply = await asyncio.wrap_future(future)
        except TimeoutError:
            raise self._late(future) from None
        return self._result(reply, kwargs)

    def _ask(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        metadata: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> Future[Reply]:
        if stop:
            raise InputError("A local policy ends its replies itself; stop strings would part text and token ids")
        if unknown := options.keys() - {"tools", "ignore_eos", *_IGNORED}:
            name = sorted(unknown)[0]
            raise InputError(f"{name!r} is no argument of a local policy; sampling is set when the model is made")
        ids = prompt_ids(self._server.folder, messages, options.get("tools"))
        seed = None if self.sampling.seed is None else call_seed(self.sampling.seed, metadata, ids)
        ignore_eos = bool(options.get("ignore_eos"))
        return self._server.submit(ids, self.sampling, role=self.role, seed=seed, ignore_eos=ignore_eos)

    def _late(self, future: Future[Reply]) -> UnavailableError:
        future.cancel()
        return UnavailableError(
            f"The local policy {self.model_name!r} did not answer within {self.timeout:g} s. Run fewer episodes at once, "
            "sample fewer tokens, or allow it more time"
        )

    def _result(self, reply: Reply, options: Mapping[str, Any]) -> ChatResult:
        return sampled_reply(
            reply_text(self._server.folder, reply.token_ids),
            prompt_token_ids=reply.prompt_ids,
            token_ids=reply.token_ids,
            logprobs=reply.logprobs,
            policy=reply.policy,
            policy_version=reply.policy_version,
            sampling=reply.sampling,
            finish_reason=reply.finish_reason,
            tools=bool(options.get("tools")),
        )


def reply_text(folder: PolicyFolder, token_ids: Sequence[int]) -> str:
    """Return the text of sampled ids, special tokens left out."""
    text: str = folder.tokenizer().backend_tokenizer.decode(list(token_ids), skip_special_tokens=True)
    return text


def prompt_ids(
    folder: PolicyFolder, messages: Sequence[BaseMessage], tools: Sequence[ToolSpec] | None = None
) -> list[int]:
    """Return the prompt for a reply to `messages` as the folder's chat template writes it.

    An assistant message that still says what its `token_ids` decode to is written with those very ids.
    """
    plain = template_messages(messages)
    text = _render(folder, plain, tools)
    marked, sampled = _mark_sampled(folder, messages, plain, text)
    if not sampled:
        return _encode(folder, text)
    with_marks = _render(folder, marked, tools)
    if _fill_in(with_marks, [(mark, content) for mark, content, _ in sampled]) != text:
        return _encode(folder, text)  # this template does not write assistant messages as they are
    out: list[int] = []
    rest = with_marks
    for mark, _, ids in sampled:
        before, _, rest = rest.partition(mark)
        out += _encode(folder, before) + ids
    return out + _encode(folder, rest)


Sampled = tuple[str, str, list[int]]
"""A mark, the text that it stands for, and the ids that were sampled for it."""


def _mark_sampled(
    folder: PolicyFolder, messages: Sequence[BaseMessage], plain: Sequence[dict[str, str]], text: str
) -> tuple[list[dict[str, str]], list[Sampled]]:
    """Return the messages with marks in place of what was sampled, and what each mark stands for."""
    fence = next(chr(code) for code in _PRIVATE_USE if chr(code) not in text)
    marked: list[dict[str, str]] = []
    sampled: list[Sampled] = []
    for message, entry in zip(messages, plain, strict=True):
        ids = _sampled_ids(folder, message, entry["content"])
        mark = f"{fence}{len(sampled)}{fence}"
        if ids is None:
            marked.append(entry)
        else:
            marked.append({**entry, "content": mark})
            sampled.append((mark, entry["content"], ids))
    return marked, sampled


def _fill_in(text: str, values: Sequence[tuple[str, str]]) -> str:
    for mark, value in values:
        text = text.replace(mark, value, 1)
    return text


def _render(folder: PolicyFolder, messages: Sequence[dict[str, str]], tools: Sequence[ToolSpec] | None) -> str:
    listed: list[Any] | None = list(tools) if tools else None
    return str(
        folder.tokenizer().apply_chat_template(list(messages), tools=listed, tokenize=False, add_generation_prompt=True)
    )


def _encode(folder: PolicyFolder, text: str) -> list[int]:
    ids: list[int] = folder.tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _sampled_ids(folder: PolicyFolder, message: BaseMessage, content: str) -> list[int] | None:
    """Return the ids of an assistant's message without its end token, if they are known and say what it says."""
    ids = message.response_metadata.get("token_ids") if isinstance(message, AIMessage) else None
    if not isinstance(ids, list) or not ids:
        return None
    inner = ids[:-1] if ids[-1] == folder.eos_ids[0] else ids
    if any(not isinstance(token, int) or not 0 <= token < folder.vocabulary for token in inner):
        return None
    return inner if reply_text(folder, inner) == content else None
