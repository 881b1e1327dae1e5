"""Changes of sums, products, numbers, slices, comparisons and conditions."""

from __future__ import annotations

import ast
import copy
import math
from collections.abc import Iterator

from parity.mutants.generic.place import Change

_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_COMPARISON: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
NUDGES = (1e-6, 1e-3)
"""Relative: one that float32's rounding hides in a sum of some hundred numbers, and one that a loss curve hides."""


def written(node: ast.expr) -> str:
    """An expression as source that can stand wherever an expression can."""
    source = ast.unparse(node)
    return source if isinstance(node, ast.Name | ast.Constant | ast.Attribute | ast.Call | ast.Subscript) else f"({source})"


def _no_arithmetic(node: ast.expr) -> bool:
    """Whether it is plainly text, a list or a type: what a sum joins, and no number."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | bytes) or node.value is None
    return isinstance(node, ast.JoinedStr | ast.List | ast.ListComp | ast.Tuple | ast.Dict)


def arithmetic(node: ast.expr) -> Iterator[Change]:
    """Another operator between the same operands; the operands of a matrix product the other way round."""
    if not isinstance(node, ast.BinOp) or _no_arithmetic(node.left) or _no_arithmetic(node.right):
        return
    changed = copy.copy(node)
    if isinstance(node.op, ast.MatMult):
        changed.left, changed.right = node.right, node.left
        yield Change(node, written(changed), "the operands of a matrix product are swapped")
    elif type(node.op) in _ARITHMETIC:
        changed.op = _ARITHMETIC[type(node.op)]()
        yield Change(node, written(changed), f"{type(node.op).__name__} became {type(changed.op).__name__}")


def comparison(node: ast.expr) -> Iterator[Change]:
    """A comparison that is strict or not, or its opposite."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISON:
        changed = copy.copy(node)
        changed.ops = [_COMPARISON[type(node.ops[0])]()]
        yield Change(node, written(changed), f"{type(node.ops[0]).__name__} became {type(changed.ops[0]).__name__}")


def boolean(node: ast.expr) -> Iterator[Change]:
    """`and` for `or`, a `not` dropped, True for False."""
    if isinstance(node, ast.BoolOp):
        changed = copy.copy(node)
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield Change(node, written(changed), f"{type(node.op).__name__} became {type(changed.op).__name__}")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield Change(node, written(node.operand), "a not is dropped")
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield Change(node, str(not node.value), f"{node.value} became {not node.value}")


def condition(node: ast.expr) -> Iterator[Change]:
    """The branches of a conditional expression exchanged."""
    if isinstance(node, ast.IfExp):
        changed = copy.copy(node)
        changed.body, changed.orelse = node.orelse, node.body
        yield Change(node, written(changed), "the branches of a condition are exchanged")


def nudge(node: ast.expr) -> Iterator[Change]:
    """A number, a product or a quotient that is off by 1e-6 or 1e-3 of itself."""
    if isinstance(node, ast.Constant) and isinstance(node.value, float) and math.isfinite(node.value):
        for size in NUDGES:
            changed = node.value * (1 + size) if node.value else size
            yield Change(node, repr(changed), f"{node.value!r} became {changed!r}")
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div) and not _counts(node):
        for size in NUDGES:
            yield Change(node, f"({written(node)} * (1 + {size!r}))", f"a product is {size:g} of itself too large")


def _counts(node: ast.expr) -> bool:
    """Whether it is plainly made of sizes: a list repeated, or numbers of bytes and rows."""
    parts = list(ast.walk(node))
    return any(_no_arithmetic(part) for part in parts if isinstance(part, ast.expr)) or any(
        (isinstance(part, ast.Attribute) and part.attr == "shape") or (isinstance(part, ast.Name) and part.id == "len") for part in parts
    )


def off_by_one(node: ast.expr) -> Iterator[Change]:
    """An integer one larger or smaller."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        for changed in (node.value + 1, node.value - 1):
            yield Change(node, f"({changed})" if changed < 0 else str(changed), f"{node.value} became {changed}")


def sliced(node: ast.expr) -> Iterator[Change]:
    """A slice whose border is one further, where it is no literal number."""
    if isinstance(node, ast.Slice):
        for end in (node.lower, node.upper):
            if end is not None and not isinstance(end, ast.Constant) and not isinstance(end, ast.UnaryOp):
                yield Change(end, f"{written(end)} + 1", "a slice's border is one further")


def dropped_term(node: ast.expr) -> Iterator[Change]:
    """A sum or a product without one of its two sides."""
    if not isinstance(node, ast.BinOp) or _no_arithmetic(node.left) or _no_arithmetic(node.right):
        return
    if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
        yield Change(node, written(node.left), f"the right side of {type(node.op).__name__} is dropped")
    if isinstance(node.op, ast.Add | ast.Mult):
        yield Change(node, written(node.right), f"the left side of {type(node.op).__name__} is dropped")
