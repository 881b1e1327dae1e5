"""Whether a research stack was promoted for a run: the reader's side of contract/artifacts/promotion.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.artifacts.promotion import base_sha256, read_promotion
from contract.errors import ContractError, ContractErrors
from contract.run.content import sha256_of_inputs
from contract.run.spec import FineTuneContract

FOLDER = Path("promotions")
"""Where records lie, unless another folder is given."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Whether some record says PROMOTE for exactly this run, whatever the suite.

    Attributes:
        wanted: the record that is needed: file and binding, in words.
        found: what the records that are there say instead, one entry each.
    """

    granted: bool
    wanted: str
    found: tuple[str, ...] = ()


def find(
    stack: str,
    contract: FineTuneContract,
    *,
    packages: Mapping[str, str],
    shards: Sequence[Path],
    folder: Path = FOLDER,
) -> Promotion:
    """Looks for a record in `folder`.

    Args:
        packages: distribution -> version, as the binding has them.
        shards: the base model's weight files; read only where a record fits in all else.
    """
    binding = {
        "packages": dict(packages), "base": contract.quant.base, "graph": contract.graph, "objective": contract.objective,
    }  # fmt: skip
    pattern = f"promotion-{stack}-*.json"
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    words = f"base {contract.quant.base}, graph {contract.graph}, objective {contract.objective}, {versions}, and this base model"
    wanted = f"{folder / pattern} with decision PROMOTE for {words}"
    found: list[str] = []
    for path in sorted(folder.glob(pattern)):
        try:
            record = read_promotion(path)
            if record.binding.stack != stack:
                continue  # of a stack whose name begins like this one's
            differs = [name for name, value in binding.items() if getattr(record.binding, name) != value]
            if not differs and record.decision == "PROMOTE" and record.binding.base_sha256 != _hash_of(shards):
                differs = ["base_sha256"]
        except (ContractError, ContractErrors) as error:
            found.append(" ".join(str(error).split()))
            continue
        if differs:
            found.append(f"{path.name} is bound to another {', '.join(differs)}")
        elif record.decision != "PROMOTE":
            found.append(f"{path.name} says {record.decision}")
        else:
            return Promotion(granted=True, wanted=wanted)
    return Promotion(granted=False, wanted=wanted, found=tuple(found))


def _hash_of(shards: Sequence[Path]) -> str | None:
    return base_sha256(sha256_of_inputs({str(path): path for path in shards}).values()) if shards else None
