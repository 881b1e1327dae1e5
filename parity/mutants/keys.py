"""What an asking's facts depend on, as one digest: patches, sources, versions, checks, stacks, profile, seed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from contract.worker.discover import StackInfo
from contract.worker.files import sha256_of
from parity.mutants.facts import Askable

ROOT = Path(__file__).parents[2]
SUFFIXES = (".py", ".toml", ".json")
OTHER = ("parity/mutants", "parity/scorecard", "parity/report", "parity/commands", "parity/coverage.json")
"""What of parity neither draws, asks nor judges: mutants are told apart by their own digest."""


def sources(folders: Iterable[str]) -> str:
    """SHA-256 over the source and data files of some folders of this project: names, and bytes by their own SHA-256."""
    digest = hashlib.sha256()
    for folder in sorted(folders):
        for name, content in _files(folder):
            digest.update(f"{name}\0{content}\0".encode())
    return digest.hexdigest()


def _files(folder: str) -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / folder).rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in SUFFIXES and path.is_file() and not any(name == one or name.startswith(f"{one}/") for one in OTHER):
            yield name, sha256_of(path)


def of_stacks(known: Mapping[str, StackInfo], stacks: Sequence[str]) -> dict[str, object]:
    """What of the stacks an asking's facts depend on; stacks: those that run, none: all that are known."""
    return {name: _of_stack(known[name]) for name in sorted(stacks or known) if name in known}


def _of_stack(info: StackInfo) -> list[object]:
    folder = f"stacks/{info.stack or info.name}"
    return [sources([folder]), list(info.command), info.capabilities.model_dump(mode="json"), info.told_versions()]


def of_patches(mutant: Askable | None) -> str:
    """SHA-256 of what a mutant changes; of none, empty."""
    if mutant is None:
        return ""
    told = [[patch.stack, patch.module, patch.find, patch.replace] for patch in mutant.patches]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def key(mutant: Askable | None, checks: Sequence[str], stacks: Sequence[str], of: Mapping[str, object], *, profile: str, seed: int) -> str:
    """The digest of one asking; of: `of_stacks`."""
    told = [of_patches(mutant), list(checks), list(stacks), of, sources(["contract", "parity"]), platform.machine(), profile, seed]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def stale(mutant: Askable) -> str:
    """Why a mutant no longer applies to the source; empty where it does. Nothing is imported."""
    changed: dict[tuple[str, str], str] = {}
    for patch in mutant.patches:
        place = patch.stack, patch.module
        source = changed.get(place) or _source(patch.module)
        if source is None:
            return f"there is no module {patch.module}"
        if (count := source.count(patch.find)) != 1:
            return f"{patch.module}: the text to replace occurs {count} times, must occur once: {patch.find!r}"
        changed[place] = source.replace(patch.find, patch.replace)
    for (_, module), source in changed.items():
        try:
            compile(source, module, "exec")
        except (SyntaxError, ValueError) as error:
            return f"{module} does not compile with it: {error}"
    return ""


def _source(module: str) -> str | None:
    """The source of a module, found without importing what it lies in; None: there is none."""
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)
    for folder in () if spec is None else spec.submodule_search_locations or ():
        path = Path(folder, *below)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file.read_text(encoding="utf-8")
    return None
