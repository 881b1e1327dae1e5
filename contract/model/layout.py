"""What config.json says of a model's function, field by field.

A field that changes the function is honoured or refused by name; one that this module does not know is refused too, since
nobody could say that it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from contract.errors import UserError

_NO_EFFECT = frozenset(
    {
        "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "initializer_range", "is_llama_config", "pad_token_id",
        "torch_dtype", "transformers.js_config", "transformers_version", "use_cache",
    }
)  # fmt: skip
"""Fields that say nothing of the function: names, token ids, how weights were initialised or are stored."""

_ONLY: Mapping[str, tuple[Any, ...]] = {
    "attention_dropout": (0, 0.0),
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "rope_interleaved": (False,),
    "rope_scaling": (None,),
    "sliding_window": (None,),
}
"""Fields that would change the function, and the values with which they don't: any other is refused."""


class LlamaLayout(BaseModel):
    """A Llama-type causal graph: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU (arXiv:2302.13971).

    Attributes are named as in config.json; `head_dim` is hidden_size / num_attention_heads unless config.json gives its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_type: Literal["llama"] = "llama"
    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2, multiple_of=2, description="even: RoPE turns pairs")
    max_position_embeddings: int = Field(ge=1)
    rms_norm_eps: float = Field(gt=0, allow_inf_nan=False)
    rope_theta: float = Field(gt=0, allow_inf_nan=False)
    attention_bias: bool = Field(description="q, k, v and o have biases")
    mlp_bias: bool = Field(description="gate, up and down have biases")
    tie_word_embeddings: bool = Field(description="the head is the embedding, transposed")

    @model_validator(mode="after")
    def _heads_share_keys(self) -> LlamaLayout:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, must be a multiple of num_key_value_heads ({self.num_key_value_heads})"
            )
        return self


_DEFAULTS: Mapping[str, Any] = {
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
}  # fmt: skip
"""What transformers' LlamaConfig takes where config.json is silent."""


def read(config: Mapping[str, Any], *, where: str = "config.json") -> LlamaLayout:
    """The layout that a parsed config.json describes.

    Raises:
        UserError: another architecture, a field that is not honoured, not known, missing, or of a value that can't be.
    """
    if config.get("model_type") != "llama":
        raise UserError(f"{where}: model_type is {config.get('model_type')!r}; allowed: llama; take another checkpoint")
    fields = dict(config)
    rope = _rope_parameters(fields.pop("rope_parameters", None), where)
    for name in rope:
        if fields.get(name) not in (None, rope[name]):
            raise UserError(f"{where}: {name} is {fields[name]!r}, in rope_parameters it is {rope[name]!r}; leave the right one alone")
    fields |= rope
    known = set(LlamaLayout.model_fields)
    for name, value in fields.items():
        if name in _ONLY and value not in _ONLY[name]:
            allowed = " or ".join(map(repr, _ONLY[name]))
            raise UserError(f"{where}: {name} is {value!r}, which is not honoured; allowed: {allowed}; take another checkpoint")
        if name not in known | set(_ONLY) | _NO_EFFECT:
            raise UserError(
                f"{where}: there is no field {name!r} that is honoured, and it may change the function; remove it if it does not"
            )
    honoured = dict(_DEFAULTS) | {name: value for name, value in fields.items() if name in known and value is not None}
    honoured.setdefault("num_key_value_heads", honoured.get("num_attention_heads"))
    if "head_dim" not in honoured:
        honoured["head_dim"] = _whole_quotient(honoured.get("hidden_size"), honoured.get("num_attention_heads"), where)
    try:
        return LlamaLayout.model_validate(honoured, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            what = f"{first['loc'][0]}: {what}{'' if first['type'] == 'missing' else ', got ' + repr(first['input'])}"
        raise UserError(f"{where}: {what}; set it right, or take another checkpoint") from None


def _rope_parameters(parameters: object, where: str) -> dict[str, Any]:
    """rope_theta out of `rope_parameters`, where transformers 5 writes it; any scaling is refused."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict) or parameters.get("rope_type", "default") != "default":
        raise UserError(
            f"{where}: rope_parameters is {parameters!r}, which is not honoured; allowed: rope_type default with a rope_theta; "
            "take another checkpoint"
        )
    strange = sorted(set(parameters) - {"rope_type", "rope_theta"})
    if strange:
        raise UserError(
            f"{where}: rope_parameters has {strange[0]!r}, which is not honoured; allowed: rope_type, rope_theta; take another checkpoint"
        )
    return {"rope_theta": parameters["rope_theta"]} if "rope_theta" in parameters else {}


def _whole_quotient(hidden: object, heads: object, where: str) -> int:
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise UserError(
            f"{where}: has no head_dim, and hidden_size {hidden!r} is no multiple of num_attention_heads {heads!r}; give head_dim"
        )
    return hidden // heads
