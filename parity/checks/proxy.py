"""Tier C for the proxy graph qlora_proxy_v1: small graphs with a plain and with an NF4 base, and the paths that runs of it take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from contract.model.layout import Layout
from contract.worker.plan import GraphPlan, Lora, Nf4
from parity.checks import strategies
from parity.checks.check import Case, GraphNeeds
from parity.checks.graph_case import GraphCase
from parity.checks.graph_draws import adapter_of, batch_of, case_of, weights_of
from parity.checks.graph_layouts import PLAIN


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A layout, how many of its blocks there are, LoRA, and how many sequences of how many tokens a batch has."""

    layout: Layout
    middle_blocks: int
    lora: Lora
    batch: tuple[int, int]


_GPT2, (_, _LLAMA), (_, _QWEN3) = PLAIN["gpt2"][0].layout, PLAIN["llama"], PLAIN["qwen3"]
RECIPES = (
    Recipe(
        layout=_LLAMA.layout, middle_blocks=3, batch=(3, 5),
        lora=Lora(rank=3, alpha=7.5, rank_pattern={"layers.1.o_proj": 2, "lm_head": 4}, alpha_pattern={"o_proj": 1.5}),
    ),
    Recipe(layout=_GPT2, middle_blocks=2, batch=(2, 29), lora=Lora(rank=5, alpha=3.0, rslora=True)),
    Recipe(layout=_GPT2, middle_blocks=0, batch=(3, 5), lora=Lora(rank=2, alpha=5.0)),
    Recipe(layout=_QWEN3.layout, middle_blocks=1, batch=(2, 13), lora=Lora(rank=4, alpha=9.0)),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How cases are drawn, and on which base."""

    base: Nf4 | None = None

    @property
    def recipes(self) -> Sequence[Recipe]:
        """The graphs."""
        return RECIPES

    def needs(self) -> GraphNeeds:
        """What a stack must declare to be asked."""
        return GraphNeeds(model_types=(), nf4=self.base is not None, patterns=True, proxy=True)

    def cases(self) -> st.SearchStrategy[Case]:
        """Any of the graphs, with an adapter as training starts from or any other."""
        return _drawn(self)

    def each(self) -> Iterator[GraphCase]:
        """Every graph once, the same in every run."""
        for seed, recipe in enumerate(self.recipes):
            yield self.case(recipe, seed, initial=False)

    def case(self, recipe: Recipe, seed: int, *, initial: bool) -> GraphCase:
        """A graph with random weights; initial: with the adapter that training starts from."""
        plan = GraphPlan(
            graph="qlora_proxy_v1", layout=recipe.layout, dtype="float64", lora=recipe.lora, base=self.base,
            middle_blocks=recipe.middle_blocks,
        )  # fmt: skip
        rng = np.random.default_rng(seed)
        weights = weights_of(rng, plan)
        weights["embedding"] *= np.float32(recipe.layout.hidden_size**-0.5)  # it's the head's weight too
        name = f"{recipe.middle_blocks} of {recipe.layout.num_hidden_layers} blocks of {recipe.layout.hidden_size}"
        name = f"{recipe.layout.model_type}, {name}, {'B = 0' if initial else 'random B'}, seed {seed}"
        batch = batch_of(rng, recipe.batch, recipe.layout.vocab_size)
        return case_of(name, plan, weights, adapter_of(plan, seed, initial=initial), batch, seed)


@st.composite
def _drawn(draw: st.DrawFn, of: Draw) -> Case:
    which, seed = draw(st.integers(0, len(of.recipes) - 1)), draw(strategies.SEEDS)
    return of.case(of.recipes[which], seed, initial=draw(st.booleans()))
