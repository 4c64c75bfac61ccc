"""Which learning runs there are, and the rules by which they are judged. Fixed before the runs.

token-class, served by a real vLLM, 3 seeds (1 to 3; learning rate and base were chosen on seed 0)
    Learns: for each seed, mean reward of the evaluation after training minus before >= 0.3, training takes <= 15 minutes.
    Control (reward shuffled over episodes): for each seed, the absolute difference stays below 0.1.

two-node, in-process, 5 seeds (0 to 4; looked at before: seed 100), arms paired by seed (same base, tasks, sampling seeds)
    Measure: mean over all steps of the chooser's reward (area under the learning curve).
    Claim: credit per role minus broadcast; the 95 % bootstrap interval over seeds lies above 0. Both arms use the same number of
    steps, episodes and the same optimiser settings; AdamW makes the update size independent of how many tokens share the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One learning run."""

    recipe: str
    arm: str
    seed: int
    server: str = "local"
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the name of its file and folder."""
        return f"{self.recipe}-{self.arm}-{self.server}-s{self.seed}"

    def file(self, results: Path) -> Path:
        """Return where its result lies."""
        return results / self.recipe / f"{self.arm}-{self.server}-s{self.seed}.json"


PLAN = [
    *(Run("token-class", arm, seed, "vllm") for seed in (1, 2, 3) for arm in ("grpo", "shuffled")),
    *(Run("two-node", arm, seed) for seed in range(5) for arm in ("per-role", "broadcast")),
]
