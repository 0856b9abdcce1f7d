"""A formula over named numbers: `click * value`, `click * (bid - 0.1)`.

It comes from a configuration or a command line, so it must not be able to do anything
but arithmetic: Python parses it, and every part that is no name, number, `+ - * /` or
parenthesis is refused before anything is computed.
"""

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Long formulas are refused, because Python's parser and `_value` go as deep as one.
MAX_LENGTH = 200
BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


@dataclass(frozen=True)
class Formula:
    """A formula that was parsed and found to be arithmetic.

    >>> formula = Formula.parse("click * (value + 1)")
    >>> formula.names
    ('click', 'value')
    >>> formula.value({"click": 0.5, "value": 3.0})
    2.0

    Attributes:
        text: as it was written.
        tree: its syntax tree.
    """

    text: str
    tree: ast.expr

    @classmethod
    def parse(cls, text: str) -> "Formula":
        """Parse a formula.

        Raises:
            ValueError: it is no formula, has other parts than it may, or no name.
        """
        if len(text) > MAX_LENGTH:
            raise ValueError(
                f"a formula of {len(text)} signs, expected at most {MAX_LENGTH}"
            )
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(
                f"{text!r} is no formula, expected one as `click * value`"
            ) from None
        for node in _parts(tree):
            _check(node, text)
        formula = cls(text, tree)
        if not formula.names:
            raise ValueError(f"{text!r} names nothing, so all ads would be equal")
        return formula

    @property
    def names(self) -> tuple[str, ...]:
        """The names in it, each once, in the order of the text."""
        names = (node for node in _parts(self.tree) if isinstance(node, ast.Name))
        ordered = sorted(names, key=lambda node: (node.lineno, node.col_offset))
        return tuple(dict.fromkeys(node.id for node in ordered))

    def multiplies(self, one: str, other: str) -> bool:
        """Whether it multiplies two names, or sums that they stand in.

        >>> Formula.parse("click * 2 + value").multiplies("click", "value")
        False
        >>> Formula.parse("click * bid * (value + 1)").multiplies("value", "click")
        True
        """
        for node in _parts(self.tree):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                left, right = (
                    {part.id for part in _parts(side) if isinstance(part, ast.Name)}
                    for side in (node.left, node.right)
                )
                if (one in left and other in right) or (other in left and one in right):
                    return True
        return False

    def value(self, values: Mapping[str, Any]) -> Any:
        """Compute it from the values of its names: numbers, or arrays of one shape."""
        return _value(self.tree, values)


def _parts(tree: ast.expr) -> Iterator[ast.expr]:
    """Yield every part of a tree, the operators and the contexts of names excepted."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.expr))


def _check(node: ast.expr, text: str) -> None:
    """Refuse a part that is no arithmetic."""
    allowed = isinstance(node, ast.Name)
    if isinstance(node, ast.Constant):
        # A bool is an int to Python; 1e999 is infinite, and 10 ** 400 fits no float.
        is_number = type(node.value) in (int, float)
        allowed = is_number and _is_finite(node.value)
    elif isinstance(node, ast.BinOp):
        allowed = type(node.op) in BINARY
    elif isinstance(node, ast.UnaryOp):
        allowed = type(node.op) in UNARY
    if not allowed:
        part = ast.get_source_segment(text.strip(), node)
        raise ValueError(
            f"{part!r} in the formula {text!r}: expected names, finite numbers,"
            " + - * / and parentheses"
        )


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the largest float
        return False


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, values), _value(node.right, values)
        return BINARY[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp):
        return UNARY[type(node.op)](_value(node.operand, values))
    assert isinstance(node, ast.Constant), "`parse` lets nothing else through"
    return float(node.value)  # type: ignore[arg-type]
