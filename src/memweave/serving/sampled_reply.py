"""The one form in which a policy's reply leaves a chat model, whoever served it: text, tool calls, and what training needs."""

from __future__ import annotations

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from memweave.serving.tool_text import parse_tool_calls
from memweave.tracing.records import Sampling


def sampled_reply(
    text: str,
    *,
    prompt_token_ids: list[int],
    token_ids: list[int],
    logprobs: list[float],
    policy: str,
    policy_version: str | None,
    sampling: Sampling,
    finish_reason: str | None,
    tools: bool,
    id: str | None = None,
) -> ChatResult:
    """Return a reply as a chat model's result; its message carries ids and log-probabilities in `response_metadata`.

    logprobs: one per token of `token_ids`, in nat.  tools: whether `text` may hold tool calls. The content is `text` as it
    is, calls included: the next prompt must repeat what was sampled.
    """
    calls, invalid = parse_tool_calls(text) if tools else ([], [])
    read, written = len(prompt_token_ids), len(token_ids)
    message = AIMessage(
        content=text,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        id=id,
        usage_metadata={"input_tokens": read, "output_tokens": written, "total_tokens": read + written},
        response_metadata={
            "prompt_token_ids": prompt_token_ids,
            "token_ids": token_ids,
            "token_logprobs": logprobs,
            "policy": policy,
            "policy_version": policy_version,
            "sampling": sampling.model_dump(exclude_none=True),
            "finish_reason": finish_reason,
            "model_name": policy,
        },
    )
    return ChatResult(generations=[ChatGeneration(message=message)])
