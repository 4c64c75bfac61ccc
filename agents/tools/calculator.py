"""A calculator for agents: arithmetic on numbers, and nothing else. An expression is parsed, never evaluated as a program."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Final

from langchain_core.tools import BaseTool, ToolException, tool

LONGEST: Final = 500
"""Characters of an expression."""
LARGEST: Final = 1e15
"""Up to this a power may go; above, floating point takes over, and integers could grow without end."""

_BINARY: Final[dict[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def calculate(expression: str) -> float:
    """Return the value of an expression of numbers, + - * / // % **, and brackets. Raises `ValueError` for anything else."""
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters; at most {LONGEST} are allowed")
    try:
        value = _value(ast.parse(expression.strip().replace("^", "**"), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{expression!r:.80} is no expression: use numbers, + - * / // % ** and brackets") from None
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{expression!r:.80} has no value: {error}") from None
    if not math.isfinite(value):
        raise ValueError(f"{expression!r:.80} has no finite value")
    return value


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value) if abs(node.value) > LARGEST else node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, exponent = _value(node.left), _value(node.right)
        found: float | complex = float(base) ** exponent
        if isinstance(found, complex):
            raise ValueError(f"{base} to the power of {exponent} is no real number")
        if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0 and abs(found) <= LARGEST:
            return int(base**exponent)
        return found
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        found = _BINARY[type(node.op)](_value(node.left), _value(node.right))
        return float(found) if abs(found) > LARGEST else found
    raise ValueError("only numbers, + - * / // % ** and brackets can be calculated")


@tool
def _calculator(expression: str) -> str:
    """Calculate an arithmetic expression, e.g. "(12.5 + 3) * 4". Numbers, + - * / // % ** and brackets; no words, no units."""
    try:
        value = calculate(expression)
    except ValueError as error:
        raise ToolException(str(error)) from None
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST else str(value)


def calculator() -> BaseTool:
    """Return the tool `calculator`."""
    return _calculator.model_copy(update={"name": "calculator", "handle_tool_error": True})
