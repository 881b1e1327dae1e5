"""Plants a bug in a process of its own, so that a gate can be shown to catch it.

A mutation is a piece of a module's source and what to put in its place. The modules of the package, and of those
that import it, are dropped and imported again with the changed source; nothing is written to disk.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import cast


@dataclass
class Mutation:
    """A bug to plant in a process: `find` stands once in the module's source, and `replace` takes its place."""

    module: str
    find: str
    replace: str


class _PatchedLoader(importlib.abc.InspectLoader):
    def __init__(self, source: str, filename: str) -> None:
        self._source, self._filename = source, filename

    def get_source(self, fullname: str) -> str:
        return self._source

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, self._filename, "exec"), module.__dict__)


class _PatchedFinder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, source: str, original: ModuleSpec) -> None:
        self._module, self._source, self._original = module, source, original

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        filename = str(self._original.origin)
        loader = _PatchedLoader(self._source, filename)
        folders = self._original.submodule_search_locations
        return importlib.util.spec_from_file_location(fullname, filename, loader=loader, submodule_search_locations=folders)


CONTRACT = "contract"
"""The package that every process of the gate shares."""

_AT_WORK = frozenset(f"contract.worker.{name}" for name in ("files", "mutation", "serve", "stack", "wire"))
"""What a worker is itself while a mutation is planted: it goes on with what it has imported, so a change of these would change nothing."""


def plant(package: str, module: str, find: str, replace: str, *, importers: Sequence[str] = ()) -> None:
    """Changes `module` of `package` and drops the package's modules, so that they are imported afresh.

    A second change of the same module adds to the first.

    Args:
        importers: packages that import this one; their modules are dropped, too.

    Raises:
        ValueError: the module is not the package's, or one that a worker is at work with, or `find` does not occur in it exactly once.
        SyntaxError: the changed source does not compile.
    """
    if not module.startswith(f"{package}."):
        raise ValueError(f"{module} is not part of {package}; one of a stack changes the stack's own modules only")
    if module in _AT_WORK:
        raise ValueError(f"{module} answers the requests of this very process; a mutation changes what a run computes or takes")
    original = _find(module)
    source = cast(importlib.abc.InspectLoader, original.loader).get_source(module) or ""
    if source.count(find) != 1:
        raise ValueError(f"{module}: the text to replace occurs {source.count(find)} times, must occur once: {find!r}")
    changed = source.replace(find, replace)
    compile(changed, str(original.origin), "exec")
    for dropped in (package, *importers):
        _drop(dropped)
    sys.meta_path.insert(0, _PatchedFinder(module, changed, original))
    importlib.invalidate_caches()


def _drop(package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
    above, _, last = package.rpartition(".")
    if above in sys.modules:  # else `from above import package` would still find the old one
        vars(sys.modules[above]).pop(last, None)


def _find(module: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module {module}; name one of the stack's own")
    return spec
