"""Changes of calls and attributes: transposes, dtypes, functions for their neighbours, arguments."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator

from parity.mutants.generic.arithmetic import written
from parity.mutants.generic.place import Change

_PAIRS = (
    ("min", "max"), ("minimum", "maximum"), ("amin", "amax"), ("argmin", "argmax"), ("mean", "sum"), ("sqrt", "rsqrt"), ("sin", "cos"),
    ("floor", "ceil"), ("any", "all"), ("zeros", "ones"), ("zeros_like", "ones_like"), ("tril", "triu"), ("log", "log2"), ("exp", "exp2"),
)  # fmt: skip
_NEIGHBOUR = {name: other for pair in _PAIRS for name, other in (pair, pair[::-1])}
_DTYPES = {
    "float32": ("float64", "bfloat16"), "float64": ("float32",), "bfloat16": ("float32", "float16"), "float": ("double", "bfloat16"),
    "double": ("float",),
}  # fmt: skip
_TRANSPOSED = ("T", "mT")
_TURNS = ("transpose", "permute", "swapaxes", "t")
_CASTS = ("to", "cast", "astype", "type_as", "contiguous", "detach", "float", "double", "bfloat16")
_SQUARE = re.compile(r"_[A-Z]{2}$")
_ASKS = ("isinstance", "issubclass", "getattr", "hasattr", "setattr", "cast", "zip")
"""Functions whose arguments are never the same thing the other way round, so that a swap is no mistake that anyone makes."""


def transpose(node: ast.expr) -> Iterator[Change]:
    """A transpose dropped; one added to a matrix that is square, where every shape still fits."""
    if isinstance(node, ast.Attribute) and node.attr in _TRANSPOSED:
        yield Change(node, written(node.value), "a transpose is dropped")
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _TURNS:
        yield Change(node, written(node.func.value), "a transpose is dropped")
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and _SQUARE.search(node.id):
        name = node.id
        square = f"{name}.ndim == 2 and {name}.shape[0] == {name}.shape[1]"
        yield Change(node, f"({name}.T if {square} else {name})", "a square matrix is transposed")


def dtype(node: ast.expr) -> Iterator[Change]:
    """Another dtype; a cast dropped."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in _DTYPES:
        for other in _DTYPES[node.attr]:
            changed = copy.copy(node)
            changed.attr = other
            yield Change(node, written(changed), f"{node.attr} became {other}")
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in _DTYPES and node.value not in ("float", "double"):
        for other in _DTYPES[node.value]:
            yield Change(node, repr(other), f"{node.value} became {other}")
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CASTS:
        yield Change(node, written(node.func.value), f".{node.func.attr}() is dropped")


def neighbour(node: ast.expr) -> Iterator[Change]:
    """A function for the one that is its counterpart: min and max, mean and sum, sqrt and rsqrt."""
    if not isinstance(node, ast.Call):
        return
    changed = copy.copy(node)
    if isinstance(node.func, ast.Attribute) and node.func.attr == "sqrt" and ast.unparse(node.func.value) in ("math", "np"):
        yield Change(node, f"(1 / {written(node)})", "sqrt became its reciprocal")
    elif isinstance(node.func, ast.Attribute) and node.func.attr in _NEIGHBOUR:
        function = copy.copy(node.func)
        function.attr = _NEIGHBOUR[node.func.attr]
        changed.func = function
        yield Change(node, written(changed), f"{node.func.attr} became {function.attr}")
    elif isinstance(node.func, ast.Name) and node.func.id in _NEIGHBOUR:
        changed.func = ast.Name(_NEIGHBOUR[node.func.id], ast.Load())
        yield Change(node, written(changed), f"{node.func.id} became {_NEIGHBOUR[node.func.id]}")


def keyword_dropped(node: ast.expr) -> Iterator[Change]:
    """A call without one of its keywords, so that the callee's default is taken."""
    if isinstance(node, ast.Call):
        for position, keyword in enumerate(node.keywords):
            if keyword.arg is not None:
                changed = copy.copy(node)
                changed.keywords = [*node.keywords[:position], *node.keywords[position + 1 :]]
                yield Change(node, written(changed), f"{keyword.arg} is left out, so that its default is taken")


def arguments_swapped(node: ast.expr) -> Iterator[Change]:
    """Two arguments that follow each other, swapped."""
    if not isinstance(node, ast.Call) or (isinstance(node.func, ast.Name) and node.func.id in _ASKS):
        return
    for position in range(len(node.args) - 1):
        one, other = node.args[position : position + 2]
        if not isinstance(one, ast.Starred | ast.Constant) and not isinstance(other, ast.Starred | ast.Constant):
            changed = copy.copy(node)
            changed.args = [*node.args[:position], other, one, *node.args[position + 2 :]]
            yield Change(node, written(changed), f"arguments {position + 1} and {position + 2} are swapped")
