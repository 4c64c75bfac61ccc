"""Conformance kits: what a vector engine and a memory store have to do, as tests that yours can inherit.

    # test_my_engine.py
    class TestMyEngine(EngineConformance):
        persistent = True                                     # what it can do beyond the minimum

        def make_engine(self, folder: Path) -> VectorEngine:
            return MyEngine(folder, self.dimension)

    # test_my_store.py
    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self, scope: Scope) -> MemoryStore:
            return MyStore()

Run it with pytest. In `conftest.py`, before the import, `pytest.register_assert_rewrite("memweave.testing.conformance")` makes failures
tell both sides. What an engine or a store cannot do (and need not) is skipped with the reason, never passed silently.
"""

from memweave.testing.conformance.engines import EngineConformance
from memweave.testing.conformance.stores import StoreConformance

__all__ = ["EngineConformance", "StoreConformance"]
