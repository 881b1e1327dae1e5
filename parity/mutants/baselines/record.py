"""What was measured, as docs/evidence.json holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.worker.files import replacing
from parity.mutants.baselines.seeing import Sight
from parity.mutants.baselines.units import Inputs

NOT_ASKED = "not asked"
"""The gate's verdict, where nobody asked it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Seen(_Strict):
    """One mutant."""

    name: str
    what: str
    bug: str = Field(default="", description="id of the real bug that it stands for")
    area: str = Field(default="", description="the bug's")
    check: str
    stacks: tuple[str, ...] = Field(description="that have the bug; contract: what both share")
    gate: str = Field(default=NOT_ASKED, description="the gate's verdict")
    hard: dict[str, Sight] = Field(description="rule -> what it made of the bug on the inputs that the gate draws")
    ordinary: dict[str, Sight] = Field(description="the same on the ordinary input")
    failed: str = Field(default="", description="why it could not be asked, if so")

    @property
    def tier(self) -> str:
        """Of its check."""
        return self.check[:1].upper()

    def of(self, inputs: Inputs) -> dict[str, Sight]:
        """What the rules made of it on some inputs."""
        return self.hard if inputs == "hard" else self.ordinary


class Alarm(_Strict):
    """What a rule says of a unit of the two stacks as they are, neither with a bug."""

    unit: str
    inputs: Inputs
    rule: str
    compared: int = Field(description="tensors; of loss curves, runs")
    failing: int


class Evidence(_Strict):
    """A whole measurement."""

    schema_version: Literal[1] = 1
    sources: str = Field(description="SHA-256 of the sources that were measured")
    versions: dict[str, str]
    machine: dict[str, str]
    profile: str
    seed: int
    mutants: tuple[Seen, ...]
    alarms: tuple[Alarm, ...]


def read(path: Path) -> Evidence:
    """A measurement from its file."""
    return Evidence.model_validate_json(path.read_bytes())


def write(evidence: Evidence, path: Path) -> None:
    """Writes a measurement, whole or not at all, a mutant a line."""
    head = evidence.model_dump_json(exclude={"mutants", "alarms"})[:-1]
    lists = (("mutants", evidence.mutants), ("alarms", evidence.alarms))
    parts = [f'"{name}": [\n' + ",\n".join(one.model_dump_json() for one in rows) + "\n]" for name, rows in lists]
    with replacing(path) as file:
        file.write(f"{head},\n{', '.join(parts)}}}\n".encode())
