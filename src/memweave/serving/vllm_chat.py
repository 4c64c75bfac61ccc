"""The chat model of a policy that vLLM serves: every reply keeps the token ids and log-probabilities that were sampled.

It talks to the server directly and not through `ChatOpenAI`, which drops the ids and costs 2 ms of CPU per call (see
docs/serving.md). Asynchronous calls run on threads of their own, so one model serves any number of event loops.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field, PrivateAttr

from memweave.errors import InputError, ModelReplyError, ServerSetupError, UnavailableError
from memweave.serving.http_pool import Call, JsonObject
from memweave.serving.sampled_reply import sampled_reply
from memweave.serving.seeding import call_seed
from memweave.serving.tool_text import ToolLike, template_messages, tool_specs
from memweave.serving.vllm_endpoint import ServerAwayError, UnknownModelError, VLLMEndpoint
from memweave.tracing.records import Sampling

THREADS: Final = 512
"""Most requests that asynchronous callers of this process have under way at once."""
_RENAMED: Final = 5
_NEUTRAL: Final = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sent when the sampling says nothing: else a server started without `--generation-config vllm` takes the model's own."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a role is served with at the moment. name: in requests; version: hash of the weights, if known."""

    name: str
    version: str | None


class VLLMChatModel(BaseChatModel):
    """A chat model that plays one role on a vLLM server. Made by `VLLMServer.chat_model`, or `chat_model("vllm:NAME@URL")`.

    `response_metadata` of a reply holds `prompt_token_ids`, `token_ids`, `token_logprobs`, `policy`, `policy_version`,
    `sampling`, `finish_reason`. It never streams: a stream has no token ids. `ignore_eos=True` as a call argument makes
    replies of exactly `max_tokens` tokens (for measurements).
    """

    model_name: str
    """What the model plays: a role, or a model name."""
    sampling: Sampling = Field(default_factory=Sampling)
    timeout: float = 60.0
    """Seconds that one request may take."""
    disable_streaming: bool = True
    _endpoint: VLLMEndpoint = PrivateAttr()
    _target: Callable[[], Served] = PrivateAttr()
    _restore: Callable[[], None] | None = PrivateAttr(default=None)

    @classmethod
    def connect(
        cls,
        endpoint: VLLMEndpoint,
        name: str,
        target: Callable[[], Served],
        *,
        sampling: Sampling | None = None,
        timeout: float = 60.0,
        restore: Callable[[], None] | None = None,
    ) -> VLLMChatModel:
        """Return a model on `endpoint`.

        target: asked at every call for what to request.  restore: called when the server does not know that name, before
        it is asked again.
        """
        model = cls(model_name=name, sampling=sampling or Sampling(), timeout=timeout)
        model._endpoint, model._target, model._restore = endpoint, target, restore
        return model

    @property
    def _llm_type(self) -> str:
        return "memweave-vllm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name, **self.sampling.model_dump(exclude_none=True)}

    def bind_tools(
        self, tools: Sequence[ToolLike], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the chat template list `tools`; calls are read from the reply's text (see `serving.tool_text`).

        tool_choice: `None` or `auto`; `any` and a tool's name are accepted as a wish (structured output asks so), since a
        policy that samples freely cannot be made to call a tool.
        """
        return self.bind(tools=tool_specs(tools), **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._complete(messages, stop, run_manager.metadata if run_manager else None, kwargs, None)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = Call()
        metadata = run_manager.metadata if run_manager else None
        loop = asyncio.get_running_loop()
        try:
            complete = partial(self._complete, messages, stop, metadata, kwargs, call)
            return await loop.run_in_executor(_threads(), copy_context().run, complete)
        except asyncio.CancelledError:
            call.cancel()
            raise

    def _complete(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        metadata: Mapping[str, Any] | None,
        options: Mapping[str, Any],
        call: Call | None,
    ) -> ChatResult:
        """Ask the server, under the name that the role has at this moment."""
        sampling = self.sampling
        body = _body(template_messages(messages), stop, sampling, metadata, options)
        unknown: UnknownModelError | None = None
        for _ in range(_RENAMED):
            served = self._target()
            try:
                answer = self._endpoint.post(
                    "/v1/chat/completions", {"model": served.name, **body}, timeout=self.timeout, call=call
                )
            except UnknownModelError as error:
                unknown = error
                if self._restore is None:
                    break
                with suppress(ServerAwayError):  # then the next request waits for it
                    self._restore()
                continue
            return _result(answer, served, sampling, tools="tools" in body)
        if self._restore is None:
            raise ServerSetupError(
                f"vLLM at {self._endpoint.url}: {unknown}. GET /v1/models lists what it serves"
            ) from unknown
        raise UnavailableError(
            f"vLLM at {self._endpoint.url} does not keep the adapter of {self.model_name}: {unknown}"
        )


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """Return the threads that wait for answers; one is started only when all others are waiting."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="memweave-vllm")


def _body(
    messages: list[dict[str, str]],
    stop: list[str] | None,
    sampling: Sampling,
    metadata: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> JsonObject:
    """Return the request without the model's name."""
    body: JsonObject = {"messages": messages, "logprobs": True, "return_token_ids": True, **_NEUTRAL}
    body.update(sampling.model_dump(exclude_none=True, exclude={"logprobs", "seed"}))
    if sampling.seed is not None:
        prompt = repr([(message["role"], message["content"]) for message in messages])
        body["seed"] = call_seed(sampling.seed, metadata, prompt)
    if stop:
        body["stop"] = stop
    for name, value in options.items():
        if name == "tools":
            # `none`: the template lists the tools, and the server leaves the text (and its ids) alone.
            body.update(tools=value, tool_choice="none")
        elif name in ("ignore_eos", "min_tokens", "chat_template_kwargs", "cache_salt", "priority"):
            body[name] = value
        elif name not in ("tool_choice", "stream", "ls_structured_output_format", "parallel_tool_calls", "strict"):
            raise InputError(f"{name!r} is no argument of a vLLM policy; sampling is set when the model is made")
    return body


def _result(answer: JsonObject, served: Served, sampling: Sampling, *, tools: bool) -> ChatResult:
    """Return the reply with everything that training needs, checked."""
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] or ""
        usage = answer["usage"]
        prompt_tokens, reply_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelReplyError(
            f"The answer is not that of a chat completion (no {error}). Is the server vLLM?"
        ) from error
    if answer.get("model") != served.name:
        raise ModelReplyError(
            f"{served.name} was asked, {answer.get('model')!r} answered: nobody can tell which weights sampled this reply"
        )
    prompt_ids, ids, logprobs = _tokens(answer, choice, prompt_tokens, reply_tokens)
    return sampled_reply(
        text,
        prompt_token_ids=prompt_ids,
        token_ids=ids,
        logprobs=logprobs,
        policy=served.name,
        policy_version=served.version,
        sampling=sampling,
        finish_reason=choice.get("finish_reason"),
        tools=tools,
        id=answer.get("id"),
    )


def _tokens(
    answer: JsonObject, choice: JsonObject, prompt_tokens: int, reply_tokens: int
) -> tuple[list[int], list[int], list[float]]:
    """Return prompt ids, sampled ids and their log-probabilities. Raises unless the server gave all of them."""
    prompt_ids, ids = answer.get("prompt_token_ids"), choice.get("token_ids")
    if not isinstance(prompt_ids, list) or not isinstance(ids, list):
        raise ServerSetupError(
            "The server returns no token ids, which training needs: use vLLM 0.10.2 or newer, without a proxy that drops "
            "prompt_token_ids and token_ids"
        )
    content = (choice.get("logprobs") or {}).get("content")
    if not isinstance(content, list):
        raise ServerSetupError(
            "The server returns no log-probabilities, which training needs: start vLLM with "
            "--logprobs-mode processed_logprobs and without --max-logprobs 0"
        )
    if not len(ids) == len(content) == reply_tokens or len(prompt_ids) != prompt_tokens:
        raise ModelReplyError(
            f"The server counts {prompt_tokens} + {reply_tokens} tokens but returns {len(prompt_ids)} + {len(ids)} ids and "
            f"{len(content)} log-probabilities. Start vLLM without --tool-call-parser and --reasoning-parser"
        )
    try:
        logprobs = [float(entry["logprob"]) for entry in content]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelReplyError(f"A log-probability is not a number ({error}). Is the server vLLM?") from error
    if not all(-9_000.0 < value <= 1e-4 for value in logprobs):
        worst = next(value for value in logprobs if math.isnan(value) or not -9_000.0 < value <= 1e-4)
        raise ModelReplyError(
            f"The server gives a sampled token the log-probability {worst}: weights or server are broken"
        )
    return cast("list[int]", prompt_ids), cast("list[int]", ids), [min(value, 0.0) for value in logprobs]
