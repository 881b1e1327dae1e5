"""The rule of promotion, as data: promotion.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.artifacts.record import Name
from contract.errors import ContractError, ContractErrors, brief
from contract.reading import bytes_of, validated
from contract.run.strict_yaml import parse
from parity.scorecard.cycle import METRICS

FILE = Path(__file__).with_name("promotion.yaml")
_MAX_BYTES = 65_536
_REMEDY = "correct the rule; the one that is shipped is parity/scorecard/promotion.yaml"

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Alpha = Annotated[float, Field(gt=0.0, lt=0.5)]
Count = Annotated[int, Field(ge=2, le=1_000_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Validity(_Part):
    """What a judgement needs."""

    cycles: Count
    seeds: Count
    families: Count
    complete_pairs: Share
    infra_errors: Share
    infra_balance: Alpha
    same: Annotated[tuple[Name, ...], Field(strict=False, min_length=1, max_length=64)]
    control: Alpha


class Confidence(_Part):
    """How the bounds of a loss are made."""

    cycle_alpha: Alpha
    pooled_alpha: Alpha
    resamples: Annotated[int, Field(ge=1_000, le=1_000_000)]
    resampling_seed: Annotated[int, Field(ge=0, lt=2**63)]
    power: Annotated[float, Field(ge=0.5, lt=1.0)]


class Margins(_Part):
    """How much the candidate may lose on each metric."""

    syntax: Share
    semantics: Share
    stall_rate: Share
    attempts: Annotated[float, Field(ge=0.0, le=100.0)]
    tokens: Share

    def of(self, metric: str) -> float:
        """The margin of a metric."""
        return float(getattr(self, metric))


class Veto(_Part):
    """What rejects by itself."""

    mcnemar: Alpha
    family_loss: Share
    family_alpha: Alpha


class Questions(_Part):
    """Thresholds of the summary's two questions."""

    spread: Share
    strictness: Share
    syntax: Share
    semantics: Share
    decisive: Share


class Rule(_Part):
    """The whole rule."""

    version: Literal[1]
    validity: Validity
    bounds: Confidence
    margins: Margins
    veto: Veto
    questions: Questions


assert tuple(Margins.model_fields) == METRICS, "a margin for each metric"


def read_rule(path: Path = FILE) -> Rule:
    """Reads a rule.

    Raises:
        ContractError: no such file, no YAML, an unknown, missing or wrong field.
        ContractErrors: several such fields.
    """
    try:
        text = bytes_of(path, limit=_MAX_BYTES, remedy=_REMEDY).decode()
    except UnicodeDecodeError as error:
        raise ContractError(str(path), got=f"no UTF-8 ({error.reason})", allowed="YAML in UTF-8", remedy=_REMEDY) from None
    value, _, faults = parse(text, str(path))
    if faults:
        raise ContractErrors(list(faults.values()))
    if not isinstance(value, dict):
        raise ContractError(str(path), got=brief(value), allowed="a mapping", remedy=_REMEDY)
    return validated(Rule, value, str(path), remedy=_REMEDY)
