"""Every mutant of a module's source: each operator at each place that it applies to."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from parity.mutants.generic import arithmetic, calling
from parity.mutants.generic.place import Change, Place, place

Operator = Callable[[ast.expr], Iterator[Change]]

OPERATORS: dict[str, Operator] = {
    "arithmetic": arithmetic.arithmetic,
    "comparison": arithmetic.comparison,
    "boolean": arithmetic.boolean,
    "condition": arithmetic.condition,
    "nudge": arithmetic.nudge,
    "off-by-one": arithmetic.off_by_one,
    "slice": arithmetic.sliced,
    "dropped-term": arithmetic.dropped_term,
    "transpose": calling.transpose,
    "dtype": calling.dtype,
    "neighbour": calling.neighbour,
    "keyword": calling.keyword_dropped,
    "swap": calling.arguments_swapped,
}


def changes(tree: ast.Module) -> Iterator[tuple[str, Change]]:
    """Every change, with its operator's name, in the order of the source; some change nothing (`place` says which)."""
    for node in _expressions(tree):
        for name, operator in OPERATORS.items():
            for change in operator(node):
                yield name, change


def places(module: str, source: str) -> list[Place]:
    """Every mutant; each differs from the source in one expression, and compiles."""
    return [one for name, change in changes(ast.parse(source)) if (one := place(module, source, name, change)) is not None]


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """Every expression that computes something: no annotation, decorator, docstring, error and its condition, or formatted text."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _says(child):
                continue
            if isinstance(child, ast.expr):
                yield child
            yield from _expressions(child)


def _says(node: ast.AST) -> bool:
    """Whether nothing of it computes: an error that is raised and when, an assertion, formatted text, a docstring, an import."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return True
    if isinstance(node, ast.If) and not node.orelse and all(isinstance(one, ast.Raise) for one in node.body):
        return True
    return isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and ast.unparse(node.test.left) == "__name__"
