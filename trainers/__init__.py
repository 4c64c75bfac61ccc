"""Training from traces: rollouts, credit, rows, and trainers.

The names below are loaded on first use; torch and TRL are imported by the trainers only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memweave.trainers.credit import Credit, Group, broadcast, per_role, shuffled
    from memweave.trainers.episodes import Reward, Task
    from memweave.trainers.grpo import TraceGRPOTrainer
    from memweave.trainers.grpo_config import TraceGRPOConfig, agemem, memory_r1
    from memweave.trainers.hops import memory_hop
    from memweave.trainers.ppo import TracePPOConfig, TracePPOTrainer
    from memweave.trainers.rollouts import Rollouts
    from memweave.trainers.rows import build_rows
    from memweave.trainers.sft import SFTSettings, demonstrations, train_sft
    from memweave.trainers.stages import per_stage, stages_only, tool_steps_only

_HOME = {
    "Credit": "credit",
    "Group": "credit",
    "Reward": "episodes",
    "Rollouts": "rollouts",
    "SFTSettings": "sft",
    "Task": "episodes",
    "TraceGRPOConfig": "grpo_config",
    "TraceGRPOTrainer": "grpo",
    "TracePPOConfig": "ppo",
    "TracePPOTrainer": "ppo",
    "agemem": "grpo_config",
    "broadcast": "credit",
    "build_rows": "rows",
    "demonstrations": "sft",
    "memory_hop": "hops",
    "memory_r1": "grpo_config",
    "per_role": "credit",
    "per_stage": "stages",
    "shuffled": "credit",
    "stages_only": "stages",
    "tool_steps_only": "stages",
    "train_sft": "sft",
}

__all__ = [
    "Credit",
    "Group",
    "Reward",
    "Rollouts",
    "SFTSettings",
    "Task",
    "TraceGRPOConfig",
    "TraceGRPOTrainer",
    "TracePPOConfig",
    "TracePPOTrainer",
    "agemem",
    "broadcast",
    "build_rows",
    "demonstrations",
    "memory_hop",
    "memory_r1",
    "per_role",
    "per_stage",
    "shuffled",
    "stages_only",
    "tool_steps_only",
    "train_sft",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'memweave.trainers' has no attribute {name!r}")
    return getattr(import_module(f"memweave.trainers.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
