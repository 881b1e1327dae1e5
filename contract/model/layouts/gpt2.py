"""GPT-2: learned positions, LayerNorm, one fused linear for q, k and v, GELU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from contract import reading
from contract.errors import ContractError, brief
from contract.model.layouts import fields
from contract.model.layouts.base import ATTENTION, DecoderLayout
from contract.model.layouts.fields import Known, Only

_SYNONYMS: Mapping[str, str] = {
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
}  # fmt: skip
"""config.json's names, and those that every layout has; of the first four transformers takes either (GPT2Config.attribute_map)."""

_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")

_GELU: Mapping[str, str] = {
    "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_python_tanh": "gelu_new", "gelu_accurate": "gelu_new",
    "gelu": "gelu", "gelu_python": "gelu",
}  # fmt: skip
"""transformers' names of two functions. gelu_fast is neither: it rounds sqrt(2 / pi) to ten digits."""

_DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")

Probability = Annotated[float, Field(ge=0, lt=1)]


class GPT2Layout(DecoderLayout):
    """GPT-2's causal graph (Radford et al. 2019, "Language models are unsupervised multitask learners").

    activation_function: gelu_new is 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), gelu is 0.5 x (1 + erf(x / sqrt(2)))
    (arXiv:1606.08415). Scores are divided by sqrt(head_dim) with scale_attn_weights, and by layer + 1, counted from 0, with
    scale_attn_by_inverse_layer_idx. Every linear and every norm has a bias.

    attn_pdrop, embd_pdrop, resid_pdrop: dropouts that GPT-2 was pre-trained with; its own config.json has them at 0.1. The base
    is frozen here and computes as in evaluation, so they are not applied, also not in training; the adapter's own dropout is a field
    of the contract. transformers and PEFT apply them in training mode unless they are set to 0.
    """

    model_type: Literal["gpt2"] = "gpt2"
    layer_norm_epsilon: float = Field(gt=0)
    activation_function: Literal["gelu_new", "gelu"]
    scale_attn_weights: bool
    scale_attn_by_inverse_layer_idx: bool
    attn_pdrop: Probability
    embd_pdrop: Probability
    resid_pdrop: Probability

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears of a block: the three parts of attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj."""
        return (*ATTENTION, "up_proj", "down_proj")

    @property
    def biased(self) -> tuple[str, ...]:
        """The linears that have a bias: all."""
        return self.linears

    @property
    def options(self) -> tuple[str, ...]:
        """activation_function.gelu, scale_attn_weights.false, scale_attn_by_inverse_layer_idx."""
        found = {
            "activation_function.gelu": self.activation_function == "gelu",
            "scale_attn_weights.false": not self.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": self.scale_attn_by_inverse_layer_idx,
        }
        return tuple(name for name, there in found.items() if there)

    @property
    def notes(self) -> tuple[str, ...]:
        """The dropouts that are not applied."""
        given = [f"{name} {getattr(self, name):g}" for name in _DROPOUTS if getattr(self, name)]
        return (f"the base's own dropouts are not applied, since it is frozen: {', '.join(given)}",) if given else ()


KNOWN = Known(
    model_type="gpt2",
    honoured=frozenset(
        {
            *_SYNONYMS, *_NAMES, *_DROPOUTS, "vocab_size", "layer_norm_epsilon", "activation_function",
            "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings", "n_ctx",
        }
    ),
    silent={
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False, "tie_word_embeddings": True, **dict.fromkeys(_DROPOUTS, 0.1),
    },
    only={
        "add_cross_attention": Only(values=(False,)),
        "reorder_and_upcast_attn": Only(
            values=(False,), remedy="it asks for float32 in attention and changes no function: set it to false if you train in float32"
        ),
    },
    no_effect=frozenset(
        {
            "output_past", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
        }
    ),
)  # fmt: skip
"""summary_*: of another head than the language model's. output_past: of transformers 2."""


def read(config: Mapping[str, Any], where: str) -> GPT2Layout:
    """The layout of a config.json. Raises: as contract.model.layout.read."""
    honoured = fields.sift(config, KNOWN, where)
    sizes = _sizes(honoured, where)
    context, name = honoured.pop("n_ctx", sizes["max_position_embeddings"]), honoured["activation_function"]
    if context != sizes["max_position_embeddings"]:
        raise ContractError(
            f"{where}: n_ctx",
            got=brief(context),
            allowed=f"{brief(sizes['max_position_embeddings'])}, as n_positions",
            remedy=fields.CORRECT,
        )
    if not isinstance(name, str) or name not in _GELU:
        raise ContractError(
            f"{where}: activation_function", got=f"{brief(name)}, not honoured", allowed=", ".join(_GELU), remedy=fields.ANOTHER
        )
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if width % heads:
        raise ContractError(f"{where}: n_head", got=str(heads), allowed=f"a divisor of n_embd, {width}", remedy=fields.CORRECT)
    sizes["head_dim"] = width // heads
    sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return reading.validated(GPT2Layout, {**honoured, **sizes, "activation_function": _GELU[name]}, where, remedy=fields.CORRECT)


def _sizes(honoured: dict[str, Any], where: str) -> dict[str, int]:
    """Takes the sizes out of the fields, whichever name they have there."""
    sizes: dict[str, int] = {}
    for theirs, ours in _SYNONYMS.items():
        for name in (theirs, ours):
            value = honoured.pop(name, None)
            if value is None:
                continue
            if type(value) is not int or not 1 <= value <= fields.MANY or sizes.get(ours, value) != value:
                allowed = f"{sizes[ours]}, as {theirs}" if ours in sizes else f"a whole number from 1 to {fields.MANY}"
                raise ContractError(f"{where}: {name}", got=brief(value), allowed=allowed, remedy=fields.CORRECT)
            sizes[ours] = value
    sizes.setdefault("max_position_embeddings", 1024)
    if "hidden_size" in sizes:
        sizes.setdefault("intermediate_size", 4 * sizes["hidden_size"])
    required = {theirs: sizes.get(ours) for theirs, ours in _SYNONYMS.items()}
    fields.require({name: size for name, size in required.items() if size is not None}, required, where)
    return sizes
