"""What every layout has, whatever its architecture."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contract.model.layouts.fields import MANY

Size = Annotated[int, Field(ge=1, le=MANY)]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class DecoderLayout(BaseModel):
    """A causal decoder: sizes that every architecture has, under one name each.

    The names are those of config.json where architectures agree; GPT-2's n_embd is hidden_size here, and so on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    max_position_embeddings: Size
    tie_word_embeddings: bool = Field(description="the head is the embedding, transposed")

    @model_validator(mode="after")
    def _heads_share_keys(self) -> DecoderLayout:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, must be a multiple of num_key_value_heads ({self.num_key_value_heads})"
            )
        return self

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears of a block, in the order of computation."""
        return (*ATTENTION, "gate_proj", "up_proj", "down_proj")

    @property
    def biased(self) -> tuple[str, ...]:
        """The linears that have a bias."""
        return ()

    @property
    def head_norms(self) -> tuple[str, ...]:
        """Norms of a block over one head, beside the two over the whole width."""
        return ()

    @property
    def options(self) -> tuple[str, ...]:
        """What changes the function beyond the plain graph of the model type: a stack must have each of them to run the model."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What of config.json is known and not applied, in words for a report."""
        return ()

    def window(self, layer: int) -> int | None:
        """Sliding attention: in this layer a token sees the `window` last ones, itself among them; None: all before it."""
        return None

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Each linear's [out, in]."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes = {
            "q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden), "o_proj": (hidden, queries),
            "gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner),
        }  # fmt: skip
        return {name: shapes[name] for name in self.linears}
