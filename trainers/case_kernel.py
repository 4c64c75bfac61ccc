"""Episodic control over cases: what a case did is remembered with the query it was shown for (Memento, Eq. 9, algorithm 1).

In a single step, the value that is written is the reward itself (section 2.5). The kernel stays as it is; `case_soft_q` learns one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from memweave.memory_stores.case_kernel import Uses
from memweave.memory_stores.case_retrieval import ECKernelSoftmax, Matrix, Scores, Vector
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
            remember(self.policy, [(row.case_id, query, row.reward) for row in rows])


def remember(policy: ECKernelSoftmax, seen: Sequence[tuple[UUID, Vector, float]]) -> None:
    """Add uses to D: case, query (d,) and Q of each; whoever reads the old ones meanwhile is not disturbed."""
    uses: dict[UUID, Uses] = dict(policy.uses)
    for case, query, q in seen:
        known = uses.get(case)
        uses[case] = Uses(query[None], np.array([q])) if known is None else known.and_then(query, q)
    policy.uses = uses
