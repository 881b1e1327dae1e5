"""A run's folder: spec.yaml (the spec, word for word), manifest.json (what was run, and hashes of it), events.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from contract.artifacts.record import Line, Name, Packages, Record, Sha256, read_record, write_record
from contract.errors import ContractError, UserError
from contract.worker.files import replacing
from parity.scorecard.conditions import Facts
from parity.scorecard.spec_source import Scorecard, read_scorecard

SPEC, MANIFEST = "spec.yaml", "manifest.json"
_REMEDY = "give a folder that parity scorecard run wrote"


class Manifest(Record):
    """What a run is. Written before its first event, and never changed: a resumed run must be the same."""

    format: Literal["twostack_scorecard"] = "twostack_scorecard"
    version: Literal[1] = 1
    cycle: Name
    spec_sha256: Sha256 = Field(description="protocol, seeds and conditions")
    protocol_sha256: Sha256 = Field(description="tasks, prompts, retries, length of answers")
    suite_sha256: Sha256 = Field(description="the tasks")
    tasks: Annotated[int, Field(ge=1)]
    folder: Line = Field(description="what relative paths of fixtures are relative to")
    conditions: dict[Name, Facts] = Field(description="what each answers with")
    packages: Packages


def begin(
    path: Path, scorecard: Scorecard, *, cycle: str, conditions: Mapping[str, Facts], fits: Callable[[], None] = lambda: None
) -> Manifest:
    """Begins a run's folder, or goes on with the one that is there.

    Args:
        fits: called once nothing speaks against the folder, before anything is written.

    Raises:
        ContractError: what is there is another run, or a condition's files are others than when it began.
        UserError: the folder holds something else.
    """
    manifest = Manifest(
        cycle=cycle, spec_sha256=scorecard.spec_sha256, protocol_sha256=scorecard.protocol_sha256, suite_sha256=scorecard.suite_sha256,
        tasks=len(scorecard.tasks), folder=str(scorecard.folder.resolve()), conditions=dict(conditions),
        packages=_packages(),
    )  # fmt: skip
    begun = (path / MANIFEST).exists()
    if begun:
        _require_same(path / MANIFEST, read_manifest(path), manifest)
    elif path.exists() and (
        not path.is_dir() or any(SPEC not in entry.name and MANIFEST not in entry.name for entry in path.iterdir())
    ):  # killed as it began: a spec
        raise UserError(f"{path}: holds something that is no scorecard's run; give a folder that is empty or not there")
    fits()
    if not begun:
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / SPEC) as file:
            file.write(scorecard.text.encode())
        write_record(path / MANIFEST, manifest)  # last: a folder without it was never begun
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest of a run's folder.

    Raises:
        ContractError, ContractErrors: there is none, or it is not sound.
    """
    return read_record(Manifest, path / MANIFEST, remedy=_REMEDY)


def read_run(path: Path) -> tuple[Manifest, Scorecard]:
    """A run's manifest, and its spec with the tasks.

    Raises:
        ContractError, ContractErrors: one of them is not there or not sound, or the spec is not the manifest's.
    """
    manifest = read_manifest(path)
    scorecard = read_scorecard(path / SPEC, folder=Path(manifest.folder))
    if scorecard.spec_sha256 != manifest.spec_sha256:
        got = f"a spec of digest {scorecard.spec_sha256[:16]}"
        raise ContractError(
            str(path / SPEC), got=got, allowed=f"{manifest.spec_sha256[:16]}, as {MANIFEST} has it",
            remedy="read it with the version that wrote it, or take the file as the run wrote it",
        )  # fmt: skip
    return manifest, scorecard


def _require_same(place: Path, before: Manifest, now: Manifest) -> None:
    for name in ("spec_sha256", "cycle"):
        if getattr(before, name) != getattr(now, name):
            what = {"spec_sha256": "a run of another spec", "cycle": f"cycle {before.cycle}"}[name]
            raise ContractError(str(place), got=what, allowed=f"{getattr(now, name)[:16]}", remedy="give another --out")
    for condition, facts in now.conditions.items():
        began = before.conditions[condition]
        pairs = {name: (began.hashes.get(name), facts.hashes.get(name)) for name in sorted({*began.hashes, *facts.hashes})}
        pairs |= {"runtime": (began.runtime_sha256, facts.runtime_sha256)}
        if differs := [name for name, (one, other) in pairs.items() if one != other]:
            got = f"another {', '.join(differs[:5])} than when the run began"
            raise ContractError(f"{place}: {condition}", got=got, allowed="the same", remedy="put it back, or give another --out")


def _packages() -> dict[str, str]:
    from contract.worker.discover import version

    names = ("twostack", "sqlglot", "jsonschema", "numpy")
    return {name: found for name in names if (found := version(name)) is not None}
