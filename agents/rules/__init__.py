"""The rule form of the roles: deterministic, without a model. The demo runs on it, and it is a baseline for ever."""

from memweave.agents.rules.answerer import RuleAnswerer
from memweave.agents.rules.extractor import RuleExtractor
from memweave.agents.rules.manager import RuleManager

__all__ = ["RuleAnswerer", "RuleExtractor", "RuleManager"]
