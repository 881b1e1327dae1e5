"""Which stacks are there: entry points, read as metadata and never loaded, and tables in parity.toml."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from contract.errors import MissingError, UserError
from contract.worker import environment
from contract.worker.capabilities import Capabilities

ENTRY_POINTS = "parity.stacks"


@dataclass(frozen=True, kw_only=True)
class StackInfo:
    """A known stack: how to start it, and what it declares.

    python: of another environment that it runs in (a virtual environment's folder, or its Python); None: this one's
    stack: the installed stack that runs there
    """

    name: str
    command: tuple[str, ...]
    capabilities: Capabilities
    python: Path | None = None
    stack: str = ""

    def versions(self) -> dict[str, str | None]:
        """Each distribution that the stack needs: its version in the environment that the stack runs in, None where it has none.

        Raises:
            MissingError: that environment is not there.
        """
        packages = self.capabilities.packages
        if self.python is None:
            return {package: _version(package) for package in packages}
        return dict(environment.versions(environment.interpreter(self.python), packages))

    def told_versions(self) -> dict[str, str]:
        """The same for a report: in words where it has none."""
        return {package: version or "not installed" for package, version in self.versions().items()}

    def missing_packages(self) -> tuple[str, ...]:
        """Distributions that the stack needs and its environment lacks.

        Raises:
            MissingError: that environment is not there.
        """
        return tuple(package for package, version in self.versions().items() if version is None)

    def require_installed(self) -> None:
        """Raises MissingError when a package of the stack is not installed, or its environment is not there."""
        missing = self.missing_packages()
        if missing and self.python is not None:
            raise MissingError(
                f"stack {self.name} needs {', '.join(missing)}, not installed in the environment {self.python}; run: "
                f"{environment.interpreter(self.python)} -m pip install 'twostack[{self.capabilities.extra}]'"
            )
        if missing:
            raise MissingError(
                f"stack {self.name} needs {', '.join(missing)}, not installed here; run: pip install 'twostack[{self.capabilities.extra}]'"
            )


def discover(configuration: Path | None = None) -> dict[str, StackInfo]:
    """Every known stack by name, installed or not.

    `parity.toml` (in the current folder, unless given) may add or replace one::

        [stacks.my_stack]
        command = ["ssh", "mac", "python", "-m", "my_stack.worker"]
        capabilities = "my_stack/capabilities.json"

        [stacks.newer_torch]                # an installed stack, in another virtual environment
        python = "/home/me/newer"
        stack = "torch_qlora"

    Raises:
        UserError: parity.toml or a capabilities file is not sound.
    """
    stacks = installed()
    path = configuration or Path("parity.toml")
    if configuration is not None or path.exists():
        stacks |= _configured(path)
    return dict(sorted(stacks.items()))


def installed() -> dict[str, StackInfo]:
    """The stacks that installed distributions bring, by entry point."""
    return {
        entry.name: StackInfo(
            name=entry.name,
            command=(sys.executable, "-m", entry.value),
            capabilities=_read_capabilities(entry.name, _beside(entry.value)),
        )
        for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS))
    }


def version(package: str) -> str | None:
    """The installed version of a distribution, None where it is not installed."""
    return _version(package)


def elsewhere(stack: str, python: Path, *, name: str = "") -> StackInfo:
    """An installed stack as it is in another environment: its code and capabilities from here, its packages from there.

    Raises:
        UserError: there is no such stack here.
    """
    entries = {entry.name: entry.value for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if stack not in entries:
        raise UserError(f"there is no installed stack {stack!r}; allowed: {', '.join(sorted(entries)) or 'none is installed'}")
    module = entries[stack]
    beside = _beside(module)
    started = python / "bin" / "python" if python.is_dir() else python
    return StackInfo(
        name=name or stack, command=environment.command(started, module, beside.parents[module.count(".")]),
        capabilities=_read_capabilities(stack, beside), python=python, stack=stack,
    )  # fmt: skip


def _configured(path: Path) -> dict[str, StackInfo]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); give a TOML file with tables [stacks.NAME]") from None
    if set(content) - {"stacks"}:
        raise UserError(f"{path}: unknown {sorted(set(content) - {'stacks'})}; allowed: tables [stacks.NAME]")
    tables = content.get("stacks", {})
    if not isinstance(tables, dict):
        raise UserError(f"{path}: stacks is {tables!r}; give tables [stacks.NAME]")
    stacks = {}
    for name, table in tables.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise UserError(f"{path}: a stack is named {name!r}; names are of letters, digits, '_', '.' and '-'")
        if isinstance(table, dict) and set(table) == {"python", "stack"}:
            stacks[name] = _in_environment(path, name, table)
            continue
        if not isinstance(table, dict) or set(table) != {"command", "capabilities"}:
            got = sorted(table) if isinstance(table, dict) else repr(table)
            raise UserError(
                f"{path}: [stacks.{name}] has {got}; give command = [words] and capabilities = 'file.json', or python = 'a virtual "
                "environment' and stack = 'an installed stack', nothing else"
            )
        command, capabilities = table["command"], table["capabilities"]
        words = isinstance(command, list) and command and all(isinstance(word, str) for word in command)
        if not words or not isinstance(capabilities, str):
            raise UserError(f"{path}: [stacks.{name}] needs command = [words] and capabilities = 'file.json'")
        stacks[name] = StackInfo(name=name, command=tuple(command), capabilities=_read_capabilities(name, path.parent / capabilities))
    return stacks


def _in_environment(path: Path, name: str, table: Mapping[str, object]) -> StackInfo:
    python, stack = table["python"], table["stack"]
    if not isinstance(python, str) or not isinstance(stack, str):
        raise UserError(f"{path}: [stacks.{name}] needs python = 'a virtual environment' and stack = 'an installed stack'")
    return elsewhere(stack, path.parent.absolute() / Path(python).expanduser(), name=name)


def _beside(module: str) -> Path:
    """`capabilities.json` beside a module, found without importing its package."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    for part in inner[:-1]:
        if spec is None or spec.submodule_search_locations is None:
            break
        spec = importlib.machinery.PathFinder.find_spec(part, list(spec.submodule_search_locations))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the entry point {module} names no package; install the stack again")
    return Path(next(iter(spec.submodule_search_locations))) / "capabilities.json"


def _read_capabilities(name: str, path: Path) -> Capabilities:
    try:
        return Capabilities.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"stack {name}: {path} can't be read ({error.strerror}); every stack declares its capabilities there") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"stack {name}: {path.name}: {where}: {first['msg']} (of {error.error_count()} faults); see contract/worker/capabilities.py"
        ) from None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
