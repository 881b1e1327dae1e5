"""What a stack is to open: the layout, the dtype, LoRA, the base, the production paths and the sections of a graph."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contract.errors import ContractError
from contract.model.layout import Layout, LlamaLayout
from contract.worker import taps
from contract.worker.taps import LINEARS

Path = Literal["nf4_linear", "checkpoint", "chunked_loss"]
"""A production path, in place of the plain one: the product straight from NF4 codes; activations computed again in the
backward pass; the loss without the whole matrix of logits."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(_Frozen):
    """LoRA on the named linears: y = W x + s B (A x), s = alpha / rank (arXiv:2106.09685), or alpha / sqrt(rank) (rslora, 2312.03732)."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    rslora: bool = False
    targets: tuple[Annotated[str, Field(pattern="^(" + "|".join(LINEARS) + ")$")], ...] = tuple(LINEARS)


class Nf4(_Frozen):
    """The block linears' frozen weights in NF4; without the path `nf4_linear` their dequantised values go through a plain linear.

    offsets_given: `open` carries NAME.offset (float32, of shape []), the mean of each linear's absmax. No two programs sum it alike, and
    what is nested depends on its last bit: two stacks have the same weights only where they are given the same offset.
    """

    block_size: int = Field(default=64, ge=1)
    double_quant: bool = True
    offsets_given: bool = False

    @model_validator(mode="after")
    def _has_offsets(self) -> Nf4:
        if self.offsets_given and not self.double_quant:
            raise ValueError("offsets_given without double_quant: there are no offsets; leave one of the two out")
        return self


def plain(layout: Layout) -> LlamaLayout:
    """The layout, if the tap table (contract/worker/taps.py) describes its graph: a Llama without options.

    Raises:
        ContractError: it does not; names the model type, or the options.
    """
    if not isinstance(layout, LlamaLayout):
        raise ContractError(
            "model_type", got=layout.model_type, allowed="llama, of whose graph there are taps", remedy="take another model"
        )
    if layout.options:
        raise ContractError(
            "config.json", got=", ".join(layout.options), allowed="the plain graph, of which there are taps", remedy="take another model"
        )
    return layout


class GraphPlan(_Frozen):
    """What a stack is to open.

    sections: those to hold, of which `block` alone may be asked; None for the whole graph.
    """

    layout: LlamaLayout
    dtype: Literal["float32", "float64"]
    lora: Lora
    base: Nf4 | None = None
    paths: tuple[Path, ...] = ()
    sections: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _means_something(self) -> GraphPlan:
        plain(self.layout)
        known = taps.sections(self.layout.num_hidden_layers)
        strange = [section for section in self.held if section not in known]
        if strange or len(set(self.held)) != len(self.held) or not self.held:
            raise ValueError(
                f"sections are {list(self.held)}; allowed: one or more of {known[0]}, {known[1]} .. {known[-2]}, {known[-1]}, each once"
            )
        if "nf4_linear" in self.paths and self.base is None:
            raise ValueError("the path nf4_linear multiplies from NF4 codes, and base is None; give base, or leave the path out")
        return self

    @property
    def held(self) -> tuple[str, ...]:
        """The sections that the open graph has."""
        return taps.sections(self.layout.num_hidden_layers) if self.sections is None else self.sections

    @property
    def targets(self) -> frozenset[str]:
        """The linears that have LoRA."""
        return frozenset(self.lora.targets)
