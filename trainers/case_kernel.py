"""Episodic control over cases: what a case did is remembered with the query it was shown for (Memento, Eq. 9, algorithm 1).

In a single step, the value that is written is the reward itself (section 2.5).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from memweave.memory_stores.case_retrieval import ECKernelSoftmax, Matrix, Scores, Uses, Vector
from memweave.records import ReplayRow


@dataclass
class EpisodicControl:
    """Writes D = {(s, c, Q)} for a kernel policy: a `CaseLearner`. Nothing is trained; the policy sees a query at once."""

    policy: ECKernelSoftmax

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def observe(self, rows: Sequence[ReplayRow], query: Vector, cases: Matrix, case_rewards: Scores) -> None:
        """Take in one query; see `CaseLearner`."""
        with self._lock:
            uses: dict[UUID, Uses] = dict(self.policy.uses)
            for row in rows:
                known = uses.get(row.case_id)
                if known is None:
                    uses[row.case_id] = Uses(query[None], np.array([row.reward]))
                else:
                    uses[row.case_id] = Uses(
                        np.concatenate([known.queries, query[None]]), np.append(known.q, row.reward)
                    )
            self.policy.uses = uses
