"""Operations of a bfloat16 graph, each alone: what is legal stays within its limits and reaches them, what is planted leaves them.

torch computes here, in float32 and bfloat16, on the tensors of the `block` requests that tier C sends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from parity.checks.graph_sections import Limits, SectionAsk, operation_limits
from parity.judge import confidence
from tests.parity.graph_stack import small_case
from tests.parity.judge.summation_orders import ORDERS

BFLOAT16 = torch.bfloat16
CASE = small_case()
PLAN = CASE.plan.model_copy(update={"dtype": "bfloat16"})
RIGHT = CASE.in_dtype("bfloat16")
EMBEDDING, BLOCK = (SectionAsk(case=CASE, plan=PLAN, section=section).given() for section in ("embedding", "layers.1"))
Product = Callable[[Tensor, Tensor], Tensor]


def limits(section: str, given: Mapping[str, np.ndarray]) -> Limits:
    return operation_limits(RIGHT, section, given, 1.0, confidence.FALSE_ALARM)


OF_EMBEDDING, OF_BLOCK = limits("embedding", EMBEDDING), limits("layers.1", BLOCK)


def ratio(name: str, got: Tensor, of: Limits = OF_BLOCK) -> float:
    """The largest error over its limit."""
    exact, limit = of[0][name], of[1][name]
    error = np.abs(got.detach().double().numpy() - exact)
    return float(np.max(np.divide(error, limit, out=np.where(error > 0, np.inf, 0.0), where=limit > 0)))


def given(name: str) -> Tensor:
    """A tensor of the block's request, exactly, in float32."""
    return torch.tensor(BLOCK[name].astype(np.float32))


def weight(name: str) -> Tensor:
    return torch.tensor(RIGHT.weight(f"layers.1.{name}"))


def matrix(name: str) -> Tensor:
    """An adapter's master."""
    return torch.tensor(CASE.adapter[f"layers.1.{name}"])


def cast(x: Tensor) -> Tensor:
    """Rounded to bfloat16 once, and widened."""
    return x.bfloat16().float()


# Legal ways to compute an operation


@pytest.mark.parametrize("order", ORDERS)
def test_a_product_that_accumulates_in_float32_is_within_its_limit_in_any_order(order: str) -> None:
    terms = given("override.attention_norm")[..., None, :] * cast(matrix("q_proj.lora_a"))
    assert 0.9 < ratio("q_proj.lora_ax", cast(ORDERS[order](terms))) <= 1


@pytest.mark.parametrize("order", ORDERS)
def test_a_norm_in_float32_is_within_its_limit_in_any_order(order: str) -> None:
    x = given("input")
    mean = ORDERS[order](x * x)[..., None] / x.shape[-1]
    rate = 1 / torch.sqrt(mean + PLAN.layout.rms_norm_eps)  # type: ignore[union-attr]
    assert 0.9 < ratio("attention_norm", cast(x * rate * weight("attention_norm"))) <= 1


def softmax(scores: Tensor) -> Tensor:
    tokens = scores.shape[-1]
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    masked = scores.masked_fill(~seen, -math.inf)
    e = torch.exp(masked - masked.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def test_a_softmax_in_float32_is_within_its_limit() -> None:
    assert 0.9 < ratio("weights", cast(softmax(given("override.scores")))) <= 1


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, PLAN.layout.head_dim)).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_rope_may_round_each_product_and_the_sum_or_the_sum_alone(dtype: torch.dtype) -> None:
    q, cos, sin = (given(f"override.{name}").to(dtype) for name in ("q_proj", "rope.cos", "rope.sin"))
    assert ratio("q_rope", turned(heads(q), cos, sin).bfloat16()) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_a_scaled_adapter_may_be_rounded_before_it_is_added_or_not(dtype: torch.dtype) -> None:
    scaling = PLAN.lora.scaling_of("layers.1.q_proj")
    base, bax = (given(f"override.q_proj.{name}").to(dtype) for name in ("base", "lora_bax"))
    assert ratio("q_proj", (base + scaling * bax).bfloat16()) <= 1


def angles(dtype: torch.dtype) -> Tensor:
    layout = PLAN.layout
    exponents = torch.arange(0, layout.head_dim, 2, dtype=torch.float64) / layout.head_dim
    of = torch.arange(CASE.batch.ids.shape[1])[:, None].to(dtype) * (layout.rope_theta**-exponents).to(dtype)  # type: ignore[union-attr]
    return torch.cat([of, of], -1)


def test_rope_s_tables_are_cast_once() -> None:
    assert 0.8 < ratio("rope.cos", angles(torch.float64).cos().bfloat16(), OF_EMBEDDING) <= 1


# Planted errors


def narrow_norm() -> Tensor:
    x = given("input").bfloat16()
    rate = 1 / torch.sqrt((x * x).mean(-1, keepdim=True) + PLAN.layout.rms_norm_eps)  # type: ignore[union-attr]
    return x * rate * weight("attention_norm").bfloat16()


def narrow_accumulation() -> Tensor:
    """One product after the other, each partial sum in bfloat16."""
    x, a = given("override.gated"), cast(matrix("down_proj.lora_a"))
    total = torch.zeros(*x.shape[:-1], a.shape[0])
    for one in range(x.shape[-1]):
        total = cast(total + x[..., one, None] * a[:, one])
    return total


def by_product(x: str, a: Tensor) -> Tensor:
    return cast(given(x) @ a.T)


PLANTED: Mapping[str, tuple[str, Callable[[], Tensor], Limits, float]] = {
    "a norm in bfloat16": ("attention_norm", narrow_norm, OF_BLOCK, 1.4),
    "a softmax in bfloat16": ("weights", lambda: softmax(given("override.scores").bfloat16()), OF_BLOCK, 2.5),
    "a sum of 40 products in bfloat16": ("down_proj.lora_ax", narrow_accumulation, OF_BLOCK, 15),
    "a master cast to float16 first": (
        "q_proj.lora_ax", lambda: by_product("override.attention_norm", cast(matrix("q_proj.lora_a").half().float())), OF_BLOCK, 8,
    ),
    "a master cut off, not rounded": (
        "q_proj.lora_ax",
        lambda: by_product("override.attention_norm", (matrix("q_proj.lora_a").view(torch.int32) & -65536).view(torch.float32)),
        OF_BLOCK, 10,
    ),
    "a master that is not cast": ("q_proj.lora_ax", lambda: by_product("override.attention_norm", matrix("q_proj.lora_a")), OF_BLOCK, 7),
    "RoPE's angles in bfloat16": ("rope.cos", lambda: angles(BFLOAT16).cos(), OF_EMBEDDING, 200),
    "LoRA's scaling off by 1 %": (
        "q_proj",
        lambda: cast(given("override.q_proj.base") + 1.01 * PLAN.lora.scaling_of("layers.1.q_proj") * given("override.q_proj.lora_bax")),
        OF_BLOCK, 1.2,
    ),
}  # fmt: skip
"""Which tap it spoils, how, and by what factor it leaves the limit at least: half of what was measured, or less."""


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_leaves_the_limit_by_a_factor(name: str) -> None:
    tap, spoilt, of, factor = PLANTED[name]
    assert ratio(tap, spoilt(), of) > factor


def test_the_usual_tolerance_accepts_a_norm_in_bfloat16() -> None:
    """torch.testing.assert_close's own for bfloat16, 1.6e-2 relative and 1e-5 absolute: four roundings."""
    torch.testing.assert_close(narrow_norm(), torch.tensor(OF_BLOCK[0]["attention_norm"]).bfloat16())


def test_what_underflows_may_be_zero() -> None:
    """A weight of softmax under the smallest number is 0 in bfloat16 and in float32, and no limit relative to it can say so."""
    head = SectionAsk(case=CASE, plan=PLAN, section="head").given()
    far_apart = {**head, "override.logits": head["override.logits"] * head["override.logits"].dtype.type(400)}
    exact, limit = (part["grad.logits"] for part in limits("head", far_apart))
    lost = (exact != 0) & (np.abs(exact) < np.finfo(np.float32).smallest_subnormal)
    assert lost.any()
    assert (limit[lost] >= np.abs(exact[lost])).all()
    assert (limit[:, -1] == 0).all()  # the last token foretells none
    ordinary = np.abs(exact) > 2.0**-60
    assert (limit[ordinary] < np.abs(exact[ordinary]) / 64).all()
