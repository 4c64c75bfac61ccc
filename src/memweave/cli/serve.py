"""`memweave serve [MODEL_FOLDER]`: a local vLLM that policies are trained against, and checks of a server that runs already."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from memweave.cli import render
from memweave.cli.common import AsJson, Home, secret
from memweave.errors import OperationError, UsageError

if TYPE_CHECKING:
    from memweave.config import Settings
    from memweave.serving.vllm_process import ServeSettings, VLLMProcess


def serve(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL_FOLDER",
            help="Folder of the base policy.  [default: the tiny one that memweave train starts from]",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="Where to listen; 0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    max_loras: Annotated[int, typer.Option("--max-loras", min=1, help="Adapters in use at once: roles x 2.")] = 4,
    max_lora_rank: Annotated[int, typer.Option("--max-lora-rank", min=1, help="Largest rank of an adapter.")] = 16,
    max_model_len: Annotated[
        int | None,
        typer.Option("--max-model-len", min=2, help="Tokens of context.  [default: the model's, up to 8192]"),
    ] = None,
    kv_cache_gb: Annotated[
        float, typer.Option("--kv-cache-gb", min=0.01, help="Memory for attention keys and values.")
    ] = 1.0,
    adapters: Annotated[
        Path | None,
        typer.Option("--adapters", metavar="DIR", help="Also serve the newest adapter of each role in DIR."),
    ] = None,
    env: Annotated[
        Path | None,
        typer.Option("--env", metavar="DIR", help="Environment that holds vLLM.  [default: one in the user's cache]"),
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Make that environment first, if it is not there.")
    ] = False,
    check: Annotated[
        str | None,
        typer.Option("--check", metavar="URL", help="Only ask a running server whether it can be trained against."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Serve a policy with vLLM on this machine's CPU, so that it can be trained against.

    Runs until Ctrl-C. Without MODEL_FOLDER it serves the tiny policy that `memweave train` starts from, made in the data
    folder if need be. vLLM lives in an environment of its own, which --install makes (3 GB). A GPU server is started as
    docs/serving.md says, and asked with --check. The key in MEMWEAVE_MODEL_API_KEY, if set, is demanded or sent.
    """
    from memweave.config import Settings
    from memweave.serving.vllm_env import default_env, ensure_env, is_complete, require_env

    settings = Settings.load(vllm_env=env, home=home)
    if check is not None:
        _check(check, settings, as_json)
        return
    where = (settings.vllm_env or default_env()).absolute()
    if install:
        present = is_complete(where)
        ensure_env(where, render.note)
        if model is None:
            _show_env(where, present, as_json)
            return
    require_env(where)
    base = model or _tiny(settings)
    from memweave.serving.vllm_process import ServeSettings, start

    chosen = ServeSettings(
        port=port, host=host, max_loras=max_loras, max_lora_rank=max_lora_rank, max_model_len=max_model_len,
        kv_cache_gb=kv_cache_gb, api_key=secret(settings.model_api_key),
    )  # fmt: skip
    signal.signal(signal.SIGTERM, _interrupt)  # `docker stop` and `kill` must not leave vLLM behind
    with start(base, settings=chosen, env=where, say=render.note) as process:
        names = _load(process, adapters.absolute(), chosen) if adapters is not None else []
        _show(process, names, own=model is not None, as_json=as_json)
        code = process.wait()
        raise OperationError(f"vLLM ended by itself with code {code}. Log: {process.log}")


def _tiny(settings: Settings) -> Path:
    """Return the folder of the tiny base policy, which is made when it is not there."""
    from memweave.recipes.running import default_base, ensure_base

    base = default_base(settings.home)
    ensure_base(base)
    return base


def _show_env(env: Path, present: bool, as_json: bool) -> None:
    if as_json:
        render.emit({"env": str(env), "installed": not present})
        return
    from memweave.serving.vllm_env import default_env

    again = "" if env == default_env() else f" --env {env}"
    render.note(f"{env} {'was there already' if present else 'is ready'}. Next: memweave serve{again} [MODEL_FOLDER]")


def _show(process: VLLMProcess, names: list[str], *, own: bool, as_json: bool) -> None:
    """Print what is served. own: whether it is a base that `memweave train` would not choose by itself."""
    if as_json:
        render.emit({"url": process.url, "model": str(process.base), "adapters": names, "log": str(process.log)})
        return
    out = render.out()
    base = f" --base {process.base}" if own else ""
    out.print(f"vLLM serves {process.base} at {process.url}")
    for name in names:
        out.print(f"  with adapter {name}")
    out.print(f"  train against it:  memweave train RECIPE --policy-server {process.url}{base}", soft_wrap=True)
    out.print(f"  its log:           {process.log}")
    out.print("  Ctrl-C stops it")


def _load(process: VLLMProcess, folder: Path, settings: ServeSettings) -> list[str]:
    """Load the newest version of every stem in `folder`; return the names."""
    from memweave.serving.adapters import check_adapter
    from memweave.serving.vllm_endpoint import VLLMEndpoint

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder. --adapters takes the folder in which adapters were published")
    newest: dict[str, int] = {}
    for path in folder.iterdir():
        if found := re.fullmatch(r"([^.].*)-v(\d+)", path.name):
            newest[found[1]] = max(newest.get(found[1], 0), int(found[2]))
    endpoint = VLLMEndpoint(process.url, api_key=settings.api_key)
    names = [f"{stem}-v{number}" for stem, number in sorted(newest.items())]
    for name in names:
        check_adapter(folder / name, process.base, max_rank=settings.max_lora_rank)
        body = {"lora_name": name, "lora_path": str(folder / name)}
        endpoint.post("/v1/load_lora_adapter", body, timeout=120.0, wait=False)
    endpoint.close()
    return names


def _check(url: str, settings: Settings, as_json: bool) -> None:
    from memweave.serving.vllm_check import base_model, check_endpoint
    from memweave.serving.vllm_endpoint import VLLMEndpoint

    endpoint = VLLMEndpoint(url, api_key=secret(settings.model_api_key))
    model, adapters = base_model(endpoint)
    check_endpoint(endpoint, model)
    endpoint.close()
    if as_json:
        render.emit({"url": endpoint.url, "model": model, "adapters": adapters, "trainable": True})
        return
    out = render.out()
    out.print(f"{endpoint.url} serves {model} and can be trained against:")
    out.print("  token ids and log-probabilities come back, of the distribution that is sampled from;")
    out.print("  the server adds no sampling defaults of its own, and takes adapters while it runs")
    out.print(f"  adapters: {', '.join(adapters) or 'none'}")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
