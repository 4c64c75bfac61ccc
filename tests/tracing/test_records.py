"""Records of tracing: what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from memweave.tracing import Score


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["value", "low", "high", "parts"])
def test_a_score_holds_finite_numbers_only(number: float, place: str) -> None:
    given: dict[str, Any] = {"value": 0.5, place: {"manager": number} if place == "parts" else number}
    with pytest.raises(ValidationError, match="finite number"):
        Score(**given)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_score_lies_within_its_range(value: float) -> None:
    with pytest.raises(ValidationError, match="lies outside its range"):
        Score(value=value)
