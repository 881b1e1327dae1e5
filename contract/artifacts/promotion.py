"""The promotion record: what `parity promote` decided about one combination of stack, versions, base, graph, objective and suite.

It's bound to that combination and to no other: any difference, such as a package's version, is another record, under another name.
The name follows from the binding, so that a refusal can name the file that is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from contract.artifacts.record import Line, Name, Packages, Record, Sha256, read_record, write_record
from contract.errors import ContractError
from contract.run.spec import Base, Graph, Objective, Whole

FORMAT = "twostack_promotion"

Decision = Literal["PROMOTE", "REJECT", "HOLD", "INVALID"]
"""REJECT: the evidence speaks against it; HOLD: there is too little; INVALID: it can't be judged."""

_NAME_DIGITS = 16
_REMEDY = "run `parity promote` again; a record is not written by hand"


class Binding(Record):
    """What a decision holds for."""

    stack: Name
    packages: Packages = Field(description="distribution -> version: twostack itself, and those of the stack's capabilities")
    base_sha256: Sha256 = Field(description="of the base model's weights, see base_sha256()")
    base: Base = Field(description="how the frozen base is held")
    graph: Graph
    objective: Objective
    suite: Line = Field(description="the scorecard suite's name and version")


class PromotionRecord(Record):
    """One decision, with the reasons that it rests on."""

    format: Literal["twostack_promotion"] = "twostack_promotion"
    version: Annotated[Literal[1], Whole] = 1
    binding: Binding
    decision: Decision
    reasons: Annotated[tuple[Line, ...], Field(strict=False, min_length=1, max_length=4096)]
    cycles: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(description="scorecard cycles that were compared")
    evidence: dict[Line, Sha256] = Field(description="file that was judged -> its SHA-256")


def base_sha256(shards: Iterable[str]) -> str:
    """The base model's hash from the SHA-256 of each of its weight files, in any order.

    One file: its own. Several: SHA-256 of their hexadecimal digests, sorted, a line feed after each.
    """
    digests = sorted(shards)
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def record_name(binding: Binding) -> str:
    """The record's file name: `promotion-STACK-DIGITS.json`, 16 digits of the binding's SHA-256 as canonical JSON."""
    content = json.dumps(binding.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"promotion-{binding.stack}-{hashlib.sha256(content.encode()).hexdigest()[:_NAME_DIGITS]}.json"


def write_promotion(folder: Path, record: PromotionRecord) -> Path:
    """Writes a record under its name; atomic, the same bytes for the same record."""
    path = folder / record_name(record.binding)
    write_record(path, record)
    return path


def read_promotion(path: Path) -> PromotionRecord:
    """Reads a record.

    Raises:
        ContractError: no such file, no JSON, another format or version, an unknown, missing or wrong field, or a name that is not the
            binding's (a record under another's name).
        ContractErrors: several wrong fields.
    """
    record = read_record(PromotionRecord, path, remedy=_REMEDY)
    name = record_name(record.binding)
    if path.name != name:
        raise ContractError(str(path), got=f"a record of another binding, whose name is {name}", allowed="its own name", remedy=_REMEDY)
    return record
