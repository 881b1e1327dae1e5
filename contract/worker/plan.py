"""What a stack is to open: the graph, its layout, the dtype, LoRA, the base, the production paths and the sections."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contract.model.layout import Layout
from contract.worker import taps
from contract.worker.taps import LINEARS, LM_HEAD, MIDDLE

GraphName = Literal["full_causal", "qlora_proxy_v1"]
Dtype = Literal["float32", "float64", "bfloat16"]

Path = Literal["nf4_linear", "checkpoint", "chunked_loss", "fused_attention", "fused_lora", "fused_elementwise"]
"""A production path, in place of the plain one: the product straight from NF4 codes; activations computed again in the
backward pass; the loss without the whole matrix of logits; attention as one kernel, without its scores; a linear and its
LoRA as one function; RMSNorm and SwiGLU as one each."""

_KIND = "(" + "|".join(LINEARS) + ")"
_ONE = re.compile(rf"(?:layers\.(0|[1-9][0-9]*)\.)?{_KIND}", re.ASCII)

Kind = Annotated[str, Field(pattern=f"^{_KIND}$")]
Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _ends(sections: tuple[str, ...]) -> tuple[str, ...]:
    """The sections of a graph in few words."""
    return sections[0], f"{sections[1]} .. {sections[-2]}", sections[-1]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(_Frozen):
    """LoRA on linears: y = W x + s B (A x), s = alpha / rank (arXiv:2106.09685), or alpha / sqrt(rank) (rslora, 2312.03732).

    targets: the linears that have it, by kind (q_proj); None: all of a block.
    rank_pattern, alpha_pattern: another rank or alpha for a kind (q_proj) or for one linear (layers.3.q_proj), which wins.
    """

    rank: Rank
    alpha: Alpha
    rslora: bool = False
    targets: tuple[Kind, ...] | None = None
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict)

    def rank_of(self, path: str) -> int:
        """The rank of one linear by its path, layers.3.q_proj."""
        return self.rank_pattern.get(path, self.rank_pattern.get(path.rpartition(".")[2], self.rank))

    def alpha_of(self, path: str) -> float:
        """The alpha of one linear by its path."""
        return self.alpha_pattern.get(path, self.alpha_pattern.get(path.rpartition(".")[2], self.alpha))

    def scaling_of(self, path: str) -> float:
        """s of one linear by its path."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(rank) if self.rslora else rank)


class Nf4(_Frozen):
    """The frozen weights of the blocks' linears, and of the proxy graph's head, in NF4; without the path `nf4_linear` their dequantised
    values go through a plain linear.

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


class GraphPlan(_Frozen):
    """What a stack is to open.

    dtype: of activations and products. In bfloat16 frozen weights, the residual stream and activations are bfloat16 and products
    accumulate in float32, their bias with them; norms, softmax, activations and the loss compute in float32 inside, backward too, and are
    rounded once; the loss stays float32; the adapter's matrices are float32 and are cast in the product, and LoRA's s is not. NF4 weights
    are dequantised to float32 and rounded.
    sections: those to hold, of which `block` alone may be asked; None for the whole graph.
    middle_blocks: how many blocks the proxy graph has, those of the first layers; None for all layers.
    """

    graph: GraphName = "full_causal"
    layout: Annotated[Layout, Field(discriminator="model_type")]
    dtype: Dtype
    lora: Lora
    base: Nf4 | None = None
    paths: tuple[Path, ...] = ()
    sections: tuple[str, ...] | None = None
    middle_blocks: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _means_something(self) -> GraphPlan:
        self._require_blocks()
        known = taps.sections(self.blocks)
        strange = [section for section in self.held if section not in known]
        if strange or len(set(self.held)) != len(self.held) or not self.held:
            raise ValueError(
                f"sections are {list(self.held)}; allowed: one or more of {', '.join(known if len(known) < 4 else _ends(known))}, each once"
            )
        if "nf4_linear" in self.paths and self.base is None:
            raise ValueError("the path nf4_linear multiplies from NF4 codes, and base is None; give base, or leave the path out")
        strange = sorted(set(self.lora.targets or ()) - set(self.layout.linears))
        if strange:
            raise ValueError(f"targets has {strange[0]}, which {self.layout.model_type} lacks; allowed: {', '.join(self.layout.linears)}")
        for field, pattern in (("rank_pattern", self.lora.rank_pattern), ("alpha_pattern", self.lora.alpha_pattern)):
            for name in pattern:
                self._require_target(field, name)
        return self

    def _require_target(self, field: str, name: str) -> None:
        if name in self.targets:
            return
        match = _ONE.fullmatch(name)
        if match is None or match[2] not in self.targets or (match[1] and int(match[1]) >= self.blocks):
            inner = sorted(self.targets - {LM_HEAD})
            one = f", or one of layers.0 .. layers.{self.blocks - 1} and a target, such as layers.0.{inner[0]}" if inner else ""
            raise ValueError(f"{field} names {name!r}; allowed: a target ({', '.join(sorted(self.targets))}){one}")

    def _require_blocks(self) -> None:
        """What the proxy graph has and the full causal graph has not, and the other way round."""
        layout = self.layout
        if self.graph == "full_causal":
            if self.middle_blocks is not None:
                raise ValueError(f"middle_blocks is {self.middle_blocks} with graph full_causal; leave it out, or take qlora_proxy_v1")
            return
        if self.blocks > layout.num_hidden_layers:
            raise ValueError(f"middle_blocks is {self.blocks}; allowed: num_hidden_layers = {layout.num_hidden_layers} at most")
        if self.lora.targets:
            raise ValueError("targets with graph qlora_proxy_v1, whose linears all have LoRA, or none; leave them out, or give none")
        (out_features, in_features) = layout.widths[MIDDLE]
        if self.blocks and out_features != in_features:
            raise ValueError(
                f"{MIDDLE} is [{out_features}, {in_features}], and a middle block takes the residual stream and adds to it; allowed: a "
                "square one (num_attention_heads * head_dim = hidden_size), middle_blocks 0, or graph full_causal"
            )

    @property
    def held(self) -> tuple[str, ...]:
        """The sections that the open graph has."""
        return taps.sections(self.blocks) if self.sections is None else self.sections

    @property
    def blocks(self) -> int:
        """How many blocks the graph has."""
        return self.layout.num_hidden_layers if self.middle_blocks is None else self.middle_blocks

    @property
    def targets(self) -> frozenset[str]:
        """The linears that have LoRA."""
        if self.graph == "qlora_proxy_v1" and self.lora.targets is None:
            return frozenset((MIDDLE, LM_HEAD) if self.blocks else (LM_HEAD,))
        return frozenset(self.layout.linears if self.lora.targets is None else self.lora.targets)
