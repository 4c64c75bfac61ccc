"""Who plays FSM-QA: a base policy, the script, a trained adapter, the folder of a policy, or a model on a server."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from memweave.errors import InputError, SettingsError
from memweave.models import chat_model, providers
from memweave.recipes.graph_memory.script import FSMQAScript
from memweave.recipes.recipe import REPLY_SECONDS
from memweave.recipes.running import BASE, FSMQA_BASE, FSMQA_LARGE_BASE
from memweave.serving.adapters import CONFIG as ADAPTER_FILE
from memweave.tracing import Sampling

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from pydantic import SecretStr

SCRIPT: Final = "script"
DEAF: Final = "script-deaf"
"""The script that takes no advice: no strategy is worth anything to it."""
LARGE: Final = "base-large"
"""The larger base policy of the package."""
BASES: Final = {BASE: FSMQA_BASE, LARGE: FSMQA_LARGE_BASE}
MAX_TOKENS: Final = 96
"""Of one turn: a sequential one that quotes two lines and answers takes half."""
TRAINED: Final = ("local", "vllm")
"""Providers of policies that were trained on this."""


def player(
    name: str,
    opened: ExitStack,
    *,
    base: Path = FSMQA_BASE,
    temperature: float = 1.0,
    seed: int = 0,
    api_key: SecretStr | None = None,
) -> BaseChatModel:
    """Return the chat model of a policy by name; servers that it needs are closed with `opened`.

    base: the policy that plays `base`, and that adapters belong to.  seed: of sampling.

    Raises `SettingsError` for an unknown name or a temperature below 0, `InputError` for a folder that holds no policy.
    """
    if not 0 <= temperature < math.inf:
        raise SettingsError(f"temperature is 0 (greedy) or above, not {temperature}")
    if name in (SCRIPT, DEAF):
        return FSMQAScript(seed=seed if temperature else None, compliance=0.0 if name == DEAF else None)
    provider, colon, _ = name.partition(":")
    if colon and provider in providers():
        own = provider in TRAINED
        return chat_model(
            name, api_key=api_key, temperature=temperature, max_tokens=MAX_TOKENS if own else None, timeout=REPLY_SECONDS,
            seed=seed if own else None,
        )  # fmt: skip
    folder = {**BASES, BASE: base}.get(name, Path(name))
    if not folder.is_dir():
        if name in (BASE, LARGE):
            raise InputError(
                f"the base policy {folder} does not exist. Make it: memweave pretrain --world fsmqa --out FOLDER, "
                f"and give it with --base FOLDER; or take the policy {SCRIPT}"
            )
        raise SettingsError(
            f"no policy is called {name!r}. There are: {BASE}, {LARGE}, {SCRIPT}, {DEAF}, the folder of a policy, and models: "
            "local:FOLDER, vllm:NAME@URL, openai:NAME"
        )
    from memweave.serving.local_server import LocalServer

    sampling = Sampling(temperature=temperature, max_tokens=MAX_TOKENS, seed=seed)
    if (folder / ADAPTER_FILE).is_file():
        server = opened.enter_context(LocalServer(base))
        server.publish(folder, run="eval", role="agent")
        return server.chat_model("agent", sampling=sampling, timeout=REPLY_SECONDS)
    return opened.enter_context(LocalServer(folder)).chat_model(BASE, sampling=sampling, timeout=REPLY_SECONDS)
