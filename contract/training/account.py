"""What a run's manifest says, at its start and at its end, and what it is held against."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from contract.artifacts import saved
from contract.artifacts.manifest import TrainingManifest, manifest_of, write_manifest
from contract.errors import ContractError, printable
from contract.training.inputs import Run
from contract.training.loop import Outcome
from contract.training.trainer import Trainer
from contract.worker import files
from contract.worker.discover import version

OWN_PACKAGES = ("twostack", "numpy", "safetensors", "tokenizers")
"""Distributions that every run goes through, beside the stack's own."""

_LINE = 1000
"""Characters of a note at most."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a stack brings to a run.

    notes: what it chose, one line each, for the manifest. threads: of its computation, where sums depend on their number.
    device: what it runs on, in words; None: as the launcher names it.
    """

    trainer: Trainer
    notes: tuple[str, ...] = ()
    threads: int | None = None
    device: str | None = None


class Reproduced(BaseModel):
    """What of a manifest a run that is to reproduce it is held against once it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    packages: dict[str, str]
    device: str
    threads: int | None
    outputs: dict[str, str]


class About(BaseModel):
    """What the launcher knows of a run beside its contract.

    packages: the stack's distributions. notes: for the manifest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stack: str
    packages: tuple[str, ...]
    device: str
    git_sha: str | None = None
    notes: tuple[str, ...] = ()
    reproduces: Reproduced | None = Field(default=None, description="of the manifest that was given in place of a contract")


class Account:
    """The run's manifest, at its start and at its end."""

    def __init__(self, folder: Path, run: Run, about: About, prepared: Prepared, earlier: TrainingManifest | None) -> None:
        self._folder, self._run, self._about, self._prepared = folder, run, about, prepared
        self.packages = {name: version(name) or "not installed" for name in (*OWN_PACKAGES, *about.packages)}
        self.packages["python"] = platform.python_version()
        self._device = prepared.device or about.device
        self.notes: tuple[str, ...] = () if earlier is None else earlier.notes
        self._outputs: dict[str, str] = {}

    def begin(self, resumed: str | None) -> None:
        """Writes what is known before the first step."""
        differing = () if self._about.reproduces is None else self._differing(self._about.reproduces)
        self._add((*self._about.notes, *self._prepared.notes, *differing, *(() if resumed is None else (resumed,))))

    def end(self, outcome: Outcome) -> list[str]:
        """Writes how it ended; answers what a user must know of that."""
        notes = list(outcome.notes)
        if outcome.skipped:
            notes.append(f"{outcome.skipped:,} rows were skipped: they have no token to learn")
        if outcome.end == "done":
            self._outputs = _hashes(self._folder)
            if self._about.reproduces is not None:
                notes.append(self._reproduced(self._about.reproduces))
        with suppress(OSError) if outcome.end == "output" else nullcontext():  # the outcome says it already
            self._add((*notes, f"{outcome.end} after {outcome.step:,} of {outcome.total:,} steps"))
        return notes

    def _add(self, notes: tuple[str, ...]) -> None:
        told = (printable(note)[:_LINE] for note in (*self.notes, *notes))
        self.notes = tuple(dict.fromkeys(told))
        run = self._run
        write_manifest(
            self._folder,
            manifest_of(
                run.contract, stack=self._about.stack, packages=self.packages, device=self._device, git_sha=self._about.git_sha,
                data=dict(run.data), weights=dict(run.weights), threads=self._prepared.threads, outputs=self._outputs, notes=self.notes,
            ),
        )  # fmt: skip

    def _differing(self, first: Reproduced) -> tuple[str, ...]:
        """What may keep this run from giving the bits of the one that it reproduces."""
        pairs: dict[str, tuple[str | None, str | None]]
        pairs = {name: (first.packages.get(name), self.packages.get(name)) for name in sorted({*first.packages, *self.packages})}
        pairs |= {"device": (first.device, self._device), "threads": (_text(first.threads), _text(self._prepared.threads))}
        found = [f"{name} {then or 'none'}, now {now or 'none'}" for name, (then, now) in pairs.items() if then != now]
        return (f"reproduces a run under other conditions, so that bits may differ: {'; '.join(found)}",) if found else ()

    def _reproduced(self, first: Reproduced) -> str:
        if not first.outputs:
            return "the manifest that was reproduced is of a run that did not end: its outputs are not known"
        names = sorted({*first.outputs, *self._outputs})
        other = [name for name in names if first.outputs.get(name) != self._outputs.get(name)]
        if not other:
            return f"reproduced bit for bit: all {len(names)} files of the outputs are the same"
        return f"NOT reproduced bit for bit: {len(other)} of {len(names)} files differ, such as {other[0]}"


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


def require_inputs(path: Path, found: TrainingManifest, *, data: Mapping[str, str], weights: Mapping[str, str]) -> None:
    """Holds a manifest's hashes against those of the files that are there.

    Raises:
        ContractError: the first that differs, by its role.
    """
    then, now = {**found.data, **found.weights}, {**data, **weights}
    for role in sorted({*then, *now}):
        if then.get(role) != now.get(role):
            raise ContractError(
                f"{path}: {role}", got=f"a file of SHA-256 {now.get(role, 'none')}", allowed=f"{then.get(role, 'none')}, as the run had it",
                remedy="put that file back; another one is another run",
            )  # fmt: skip


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the outputs."""
    places = (folder / name for name in (saved.ADAPTER, saved.PEFT))
    found = sorted(path for place in places if place.is_dir() for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): files.sha256_of(path) for path in found}
