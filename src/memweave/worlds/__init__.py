"""Readers of conversations and public data sets, and generators of tasks with hidden truth."""

from memweave.worlds.files import read_turns

__all__ = ["read_turns"]
