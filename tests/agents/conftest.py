"""A bank for all tests of roles and tools, and the memory tools at work on it, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from memweave.agents.context import ExtractiveSummarizer
from memweave.agents.memory_tools import Numbers, Outcome, Workplace, arun, checked, run
from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import Scope, new_id
from tests.agents.memory_work import ALL, CONTEXT, Use, called


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    """Return one bank for all tests; each has a tenant of its own in it."""
    with open_bank(tmp_path_factory.mktemp("bank"), embedding="hashing") as opened:
        yield opened


@pytest.fixture
def scope() -> Scope:
    """Return the scope of Anna, in a tenant that no other test uses."""
    return Scope(tenant=str(new_id()), user="anna")


@pytest.fixture
def at(bank: MemoryBank, scope: Scope) -> Workplace:
    return Workplace(
        store=bank,
        scope=scope,
        numbers=Numbers(),
        context=CONTEXT,
        keep={"u2"},
        summarizer=ExtractiveSummarizer(),
        actor="clever",
        policy_version="v7",
        run_id="run-1",
        source_ids=("u2",),
    )


@pytest.fixture(params=["sync", "async"])
def use(request: pytest.FixtureRequest) -> Use:
    """Check and run a call, in both ways."""

    def made(at: Workplace, name: str, reason: str = "She said so.", /, **arguments: Any) -> Outcome:
        call = checked(called(name, arguments), names=ALL, reason=reason)
        return run(call, at) if request.param == "sync" else asyncio.run(arun(call, at))

    return made
