"""Memory banks and branches pass the same kit."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from qdrant_client import QdrantClient

from memweave.memory_stores import MemoryBank, MemoryStore, open_bank
from memweave.memory_stores.exact import ExactEngine
from memweave.memory_stores.server import ServerEngine
from memweave.records import Scope
from memweave.testing.banks import bank_over
from memweave.testing.conformance import StoreConformance

QDRANT_URL = os.environ.get("QDRANT_URL")


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    with open_bank(tmp_path_factory.mktemp("edge"), embedding="hashing:64") as opened:
        yield opened


@pytest.fixture(scope="module", params=["qdrant-server" if QDRANT_URL else "qdrant-in-memory"])
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    name = "memweave_test_" + uuid.uuid4().hex
    engine = ServerEngine(QdrantClient(QDRANT_URL or ":memory:"), name, 64)
    with bank_over(tmp_path_factory.mktemp("server"), engine, shared=True) as opened:
        yield opened
        engine._client.delete_collection(name)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    with bank_over(tmp_path_factory.mktemp("exact"), ExactEngine()) as opened:
        yield opened


class TestBank(StoreConformance):
    @pytest.fixture
    def store(self, edge: MemoryBank) -> MemoryStore:
        return edge


class TestBankOnServer(StoreConformance):
    @pytest.fixture
    def store(self, server: MemoryBank) -> MemoryStore:
        return server


class TestBankOnExactEngine(StoreConformance):
    @pytest.fixture
    def store(self, exact: MemoryBank) -> MemoryStore:
        return exact


class TestBranch(StoreConformance):
    @pytest.fixture
    def store(self, edge: MemoryBank, scope: Scope) -> MemoryStore:
        return edge.branch(scope=scope)
