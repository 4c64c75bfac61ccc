"""Authentication for a LangGraph server: bearer tokens from a file, and each user sees their own things only.

Point to it from langgraph.json with `"auth": {"path": "./deploy/auth.py:auth"}` and name the file in AUTH_TOKENS_FILE:

    {"<sha256 of the token, hex>": {"user": "anna", "tenant": "acme"}, ...}       tenant may be left out

Memories follow: the graphs take user and tenant from here, and refuse a run whose context names somebody else. Threads, runs and
assistants are marked with their owner; items of the server's store must lie under the user's own namespace. Replace `authenticate` to
check your own sessions or JWTs; the rest can stay.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from langgraph_sdk import Auth

auth = Auth()


@auth.authenticate
async def authenticate(authorization: str | None) -> Auth.types.MinimalUserDict:
    """Return who sends the request. Raises: HTTP 401 without a known token."""
    scheme, _, token = (authorization or "").partition(" ")
    known = await asyncio.to_thread(_tokens)
    # Looked up by hash: neither the file nor the time it takes says anything about a token.
    found = known.get(hashlib.sha256(token.strip().encode()).hexdigest())
    if scheme.lower() != "bearer" or found is None:
        raise Auth.exceptions.HTTPException(status_code=401, detail="Send a valid token: 'Authorization: Bearer ...'")
    user: dict[str, Any] = {"identity": found["user"], "is_authenticated": True, **found}
    return user  # type: ignore[return-value]  # MinimalUserDict lists the required keys; the graphs also read `tenant`


@auth.on
async def own_things_only(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> dict[str, str]:
    """Mark what is created with its owner, and show only what the owner has."""
    owner = _owner(ctx)
    value.setdefault("metadata", {})["owner"] = owner
    return {"owner": owner}


@auth.on.assistants.read
@auth.on.assistants.search
async def graphs_are_for_all(ctx: Auth.types.AuthContext, value: Any) -> None:
    """Let everybody see the graphs that the server offers."""


@auth.on.store
async def own_namespace_only(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> None:
    """Refuse the server's store outside the namespace that begins with the user."""
    namespace = tuple(value.get("namespace") or value.get("namespace_prefix") or ())
    if namespace[:1] != (_owner(ctx),):
        raise Auth.exceptions.HTTPException(status_code=403, detail=f"Use a namespace that begins with {_owner(ctx)!r}")


def _owner(ctx: Auth.types.AuthContext) -> str:
    tenant = ctx.user["tenant"] if "tenant" in ctx.user else None  # noqa: SIM401 -- BaseUser has no `get`
    return f"{tenant}/{ctx.user.identity}" if tenant else ctx.user.identity


def _tokens() -> dict[str, dict[str, str]]:
    """Read the file anew for each request, so that a revoked token is refused at once."""
    path = os.environ.get("AUTH_TOKENS_FILE")
    if not path:
        raise Auth.exceptions.HTTPException(status_code=503, detail="The server has no AUTH_TOKENS_FILE")
    tokens: dict[str, dict[str, str]] = json.loads(Path(path).read_text())
    return tokens
