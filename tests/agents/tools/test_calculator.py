"""The calculator calculates, and refuses all else, whatever a model writes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.agents.tools.calculator import calculate, calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("(12.5 + 3) * 4", "62"),
        ("2 ** 10", "1024"),
        ("2^3", "8"),
        ("-7 // 2", "-4"),
        ("7 % 4", "3"),
        ("1/8", "0.125"),
    ],
)
def test_it_calculates(expression: str, value: str) -> None:
    assert calculator().invoke({"expression": expression}) == value


@pytest.mark.parametrize(
    "expression",
    ["", "x + 1", "__import__('os')", "1 / 0", "9**9**9**9", "(-1) ** 0.5", "'a' * 9", "True", "1j", "f(1)", "1 if 1 else 2",
     "(" * 400, "1+" * 300, "1e400", "10.0 ** 400", "[1]"],
)  # fmt: skip
def test_it_refuses_the_rest_in_words(expression: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        calculate(expression)
    assert isinstance(calculator().invoke({"expression": expression}), str)


@given(st.text(alphabet="0123456789+-*/%().e ", max_size=40))
def test_no_expression_does_anything_else(expression: str) -> None:
    with suppress(ValueError):
        assert isinstance(calculate(expression), int | float)
