"""Rotary position embedding (arXiv:2104.09864): its fields, in both spellings that config.json has for them.

transformers 4    rope_theta, and rope_scaling {"type" or "rope_type": ..., ...}
transformers 5    rope_parameters {"rope_type": ..., "rope_theta": ..., ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contract import reading
from contract.errors import ContractError, brief
from contract.model.layouts import fields
from contract.model.layouts.base import DecoderLayout, Size
from contract.model.layouts.fields import ANOTHER, CORRECT, Known

FIELDS = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})

THETA = 10000.0
"""What transformers takes where config.json is silent."""

_OLD, _NEW = "rope_scaling", "rope_parameters"
_TYPES = ("default", "linear", "llama3")

Positive = Annotated[float, Field(gt=0)]


class RopeScaling(BaseModel):
    """How RoPE's frequencies f = theta^(-2 i / head_dim), i = 0 .. head_dim / 2 - 1, are changed for longer texts.

    linear (arXiv:2306.15595):    f / factor
    llama3 (arXiv:2407.21783; transformers, `_compute_llama3_parameters`), with the wavelength w = 2 pi / f and
    L = original_max_position_embeddings:

        f                                       w < L / high_freq_factor
        f / factor                              w > L / low_freq_factor
        (1 - s) f / factor + s f                between, s = (L / w - low_freq_factor) / (high_freq_factor - low_freq_factor)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    rope_type: Literal["linear", "llama3"]
    factor: float = Field(ge=1)
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Size | None = None

    @model_validator(mode="after")
    def _has_its_parameters(self) -> RopeScaling:
        low, high = self.low_freq_factor, self.high_freq_factor
        given = {name for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings") if getattr(self, name)}
        if self.rope_type == "linear" and given:
            raise ValueError(f"linear with {', '.join(sorted(given))}: leave out what only llama3 has")
        if self.rope_type == "llama3" and (low is None or high is None or self.original_max_position_embeddings is None or low >= high):
            raise ValueError("llama3 with low_freq_factor < high_freq_factor and original_max_position_embeddings, all of them given")
        return self


class RopeLayout(DecoderLayout):
    """A decoder with RMSNorm (arXiv:1910.07467), rotate-half RoPE and SwiGLU (arXiv:2002.05202)."""

    head_dim: Size = Field(multiple_of=2, description="even: RoPE turns pairs")
    rms_norm_eps: Positive
    rope_theta: Positive
    rope_scaling: RopeScaling | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """As DecoderLayout; rope_scaling.linear, rope_scaling.llama3."""
        return () if self.rope_scaling is None else (f"rope_scaling.{self.rope_scaling.rope_type}",)


def sift(config: Mapping[str, Any], known: Known, where: str) -> dict[str, Any]:
    """The honoured fields of a RoPE decoder's config.json: as fields.sift, and with what it says of RoPE and heads in one form.

    Raises: as fields.sift, `read` and fields.quotient.
    """
    honoured = fields.sift(config, known, where)
    for name in FIELDS:
        honoured.pop(name, None)
    honoured |= read(config, where)
    fields.require(honoured, ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), where)
    if honoured["num_key_value_heads"] is None:
        honoured["num_key_value_heads"] = honoured["num_attention_heads"]
    if "head_dim" not in honoured:
        honoured["head_dim"] = fields.quotient(honoured, where)
    return honoured


def read(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """rope_theta and rope_scaling out of a config.json.

    Raises:
        ContractError: a rope_type or a parameter that is not honoured; two values of one thing.
        ContractErrors: several parameters that can't be.
    """
    theta: Any = config.get("rope_theta")
    scalings: dict[str, RopeScaling | None] = {}
    for spelling in (_OLD, _NEW):
        value = config.get(spelling)
        if value is None or value == {}:
            continue
        place = f"{where}: {spelling}"
        if not isinstance(value, dict):
            raise ContractError(place, got=f"{brief(value)}, not honoured", allowed="an object ({...}) or null", remedy=ANOTHER)
        inner = value.get("rope_theta")
        if theta is not None and inner is not None and not _same(theta, inner):
            raise ContractError(
                f"{place}.rope_theta",
                got=f"{brief(inner)}, elsewhere {brief(theta)}",
                allowed="one value",
                remedy="leave the right one alone",
            )
        theta = inner if inner is not None else theta
        scalings[spelling] = _scaling(value, place)
    if len(set(scalings.values())) > 1:
        raise ContractError(
            f"{where}: {_OLD}", got=f"another scaling than {_NEW}", allowed="the same in both", remedy="leave the right one alone"
        )
    return {"rope_theta": THETA if theta is None else theta, "rope_scaling": next(iter(scalings.values()), None)}


def _same(one: object, other: object) -> bool:
    return isinstance(one, int | float) and isinstance(other, int | float) and one == other


def _scaling(value: Mapping[str, Any], place: str) -> RopeScaling | None:
    kinds = {name: value[name] for name in ("rope_type", "type") if name in value}
    if len(kinds) == 2 and kinds["rope_type"] != kinds["type"]:
        raise ContractError(
            f"{place}.type", got=f"{brief(kinds['type'])}, and rope_type {brief(kinds['rope_type'])}", allowed="one", remedy=CORRECT
        )
    kind = next(iter(kinds.values()), "default")
    if kind not in _TYPES:
        raise ContractError(f"{place}.rope_type", got=f"{brief(kind)}, not honoured", allowed=", ".join(_TYPES), remedy=ANOTHER)
    parameters = {name: parameter for name, parameter in value.items() if name not in ("rope_type", "type", "rope_theta")}
    if kind != "default":
        return reading.validated(RopeScaling, {"rope_type": kind, **parameters}, place, remedy=CORRECT)
    if parameters:
        name = next(iter(parameters))
        raise ContractError(
            f"{place}: {brief(name)}", got=f"{brief(parameters[name])}, not honoured", allowed="rope_type, rope_theta", remedy=ANOTHER
        )
    return None
