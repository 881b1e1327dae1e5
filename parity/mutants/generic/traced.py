"""`python -m parity.mutants.generic.traced FOLDER MODULE ARGUMENTS`: a stack's worker that writes down which of its statements ran.

Each statement of the worker's package is preceded by a call, in the process alone: an import gives the changed code, and no file is
written but those in FOLDER, one a process: a line `MODULE:LINE` each time a statement runs for the first time. A line is written when it
happens, so that nothing is lost when the worker is killed. Statements that run at import are not counted.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

from parity.mutants.generic import statements

RAN = "__statement_ran__"
"""What each statement calls; no module has such a name."""


class Notes:
    """Writes `MODULE:LINE` once for each."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / f"{os.getpid()}.ran", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._seen: set[tuple[str, int]] = set()

    def of(self, module: str) -> Callable[[int], None]:
        """What the statements of a module call."""

        def ran(line: int) -> None:
            if (module, line) not in self._seen:
                self._seen.add((module, line))
                os.write(self._file, f"{module}:{line}\n".encode())

        return ran


def instrumented(tree: ast.Module) -> ast.Module:
    """A module whose functions' statements each call RAN with their first line before they run; docstrings stay where they are."""
    for function in statements.functions(tree):
        _count(function)
    return ast.fix_missing_locations(tree)


def _count(node: ast.AST) -> None:
    for block in list(statements.blocks(node)):
        counted: list[ast.stmt] = []
        for one in block:
            _count(one)
            stays = isinstance(one, ast.Global | ast.Nonlocal) or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
            if not stays:
                call = ast.Expr(ast.Call(ast.Name(RAN, ast.Load()), [ast.Constant(one.lineno)], []))
                counted.append(ast.copy_location(call, one))
            counted.append(one)
        block[:] = counted


class _Loader(importlib.machinery.SourceFileLoader):
    """Never reads or writes a file of byte code: those are of the unchanged source."""

    def __init__(self, fullname: str, path: str, notes: Notes) -> None:
        super().__init__(fullname, path)
        self._notes = notes

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = compile(instrumented(ast.parse(self.get_data(path))), path, "exec")
        return code

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[RAN] = self._notes.of(str(self.name))
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    """Gives the modules of one package with their statements counted; the module `worker` itself, and all others, as they are."""

    def __init__(self, worker: str, notes: Notes) -> None:
        self._package, self._worker, self._notes = worker.rpartition(".")[0], worker, notes

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's own, with another loader."""
        if not fullname.startswith(f"{self._package}.") or fullname == self._worker:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(fullname, spec.origin, self._notes)
        return spec


def main() -> None:
    """Starts the worker."""
    folder, worker, *arguments = sys.argv[1:]
    sys.meta_path.insert(0, Finder(worker, Notes(Path(folder))))
    sys.argv = [worker, *arguments]
    runpy.run_module(worker, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
