"""Which statement of a module runs when: the unit in which a check is said to reach a place."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

BODIES = ("body", "orelse", "finalbody", "handlers", "cases")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The lists of statements directly beneath a node, so that each can have statements put into it."""
    for name in BODIES:
        inner = getattr(node, name, None)
        if not isinstance(inner, list):
            continue
        if inner and isinstance(inner[0], ast.stmt):
            yield inner
        for part in inner:
            if isinstance(part, ast.ExceptHandler | ast.match_case):
                yield part.body


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method of a module that lies in no other function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield node
        else:
            yield from functions(node)


def own_lines(function: Function) -> set[int]:
    """The first lines of all statements in a function's body, of functions inside it too."""
    return {node.lineno for one in function.body for node in ast.walk(one) if isinstance(node, ast.stmt)}


def innermost(tree: ast.Module, line: int) -> ast.stmt | None:
    """The smallest statement inside of a function's body that a line is of; None for what runs when the module is imported."""
    found: ast.stmt | None = None
    for function in functions(tree):
        for one in function.body:
            found = _narrower(one, line) or found
    return found


def _narrower(statement: ast.stmt, line: int) -> ast.stmt | None:
    if not statement.lineno <= line <= (statement.end_lineno or statement.lineno):
        return None
    inner = (_narrower(one, line) for block in blocks(statement) for one in block)
    return next((one for one in inner if one is not None), statement)


def bound_names(tree: ast.Module, line: int) -> Sequence[str]:
    """What the statement of a module or a class that a line is of gives a name to; nothing where it is no such statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            for one in node.body:
                if one.lineno <= line <= (one.end_lineno or one.lineno) and isinstance(one, ast.Assign | ast.AnnAssign):
                    targets = one.targets if isinstance(one, ast.Assign) else [one.target]
                    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return []


def named(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a statement mentions, and the statement's first line; what stands in a statement inside is that one's."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt):
            for part in _without_inner(node):
                if isinstance(part, ast.Name):
                    yield part.id, node.lineno
                elif isinstance(part, ast.Attribute):
                    yield part.attr, node.lineno
        yield from named(node)


def _without_inner(statement: ast.stmt) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)]
