"""The proxy graph qlora_proxy_v1: embedding rows, the attention's output projections as a residual chain, and the head with LoRA.

h0 = the token's embedding row; for each middle block h <- h + o_proj(RMSNorm(h)) / sqrt(n), RMSNorm without a weight;
logits = lm_head(h / sqrt(n)), or lm_head(h0) where n, the number of middle blocks, is 0.

Shape suffixes: B sequences, T tokens, D hidden_size, V vocab_size.
"""

from __future__ import annotations

from tinygrad import Tensor

from contract.worker.plan import GraphPlan
from contract.worker.taps import LM_HEAD, MIDDLE, PROXY_EPS
from stacks.tinygrad_lora.lora import Linears
from stacks.tinygrad_lora.models.section import TOKENS, Hook, Pass, Tensors
from stacks.tinygrad_lora.norm import rms_norm
from stacks.tinygrad_lora.widen import wide


def embed(tensors: Tensors, hook: Hook) -> Tensor:
    """The embedding's rows, as they are."""
    return hook("embedding", tensors[TOKENS])


def block(x_BTD: Tensor, tensors: Tensors, linears: Linears, hook: Hook, layer: int, shared: Pass) -> Tensor:
    """x + o_proj(RMSNorm(x)) / sqrt(n); a token sees itself alone, and no position counts."""
    norm_BTD = hook("norm", rms_norm(x_BTD, None, width_1=tensors["hidden_size"], eps_1=tensors["norm_eps"]))
    step_BTD = linears(MIDDLE, norm_BTD)
    return hook("output", (wide(x_BTD) + wide(step_BTD) / tensors["sqrt_blocks"]).cast(x_BTD.dtype))


def finish(x_BTD: Tensor, tensors: Tensors, hook: Hook) -> Tensor:
    """x / sqrt(n)."""
    return hook("scaled", (wide(x_BTD) / tensors["sqrt_blocks"]).cast(x_BTD.dtype))


def project(scaled_BTD: Tensor, tensors: Tensors, linears: Linears, hook: Hook) -> Tensor:
    """logits = lm_head(scaled), whose weight is the embedding, with LoRA."""
    return linears(LM_HEAD, scaled_BTD)


def scalars(plan: GraphPlan) -> dict[str, float]:
    """The numbers of every section."""
    # without blocks nothing is scaled, and x / 1 is x
    return {"hidden_size": float(plan.layout.hidden_size), "norm_eps": PROXY_EPS, "sqrt_blocks": max(1, plan.blocks) ** 0.5}


def out_features(plan: GraphPlan) -> dict[str, int]:
    """O of each linear."""
    return {MIDDLE: plan.layout.hidden_size, LM_HEAD: plan.layout.vocab_size}
