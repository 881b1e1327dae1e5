"""What the checks of one kind have in common to be told to a person: where their bounds come from, and what usually breaks them.

A check's own words (`Check.bound`, `Check.theory`, `Check.breaks`) come first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parity.checks.check import Check


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of check.

    bound:  how far a right answer may be off, and why
    theory: the page and section that derive it
    breaks: what it went red of
    """

    holds: Callable[[Check], bool]
    bound: str
    theory: str
    breaks: str


def _graph(check: Check) -> bool:
    return any(plan.graph is not None for plan in check.plans)


def _law(check: Check) -> bool:
    return ".law_" in check.id


def _product(check: Check) -> bool:
    return check.tier == "A" and set(check.operations) <= {"matmul", "linear"}


KINDS: tuple[Kind, ...] = (
    Kind(
        holds=lambda check: _law(check) and _graph(check),
        bound="the same numbers where the law leaves the arithmetic as it was; else the response of the float64 reference to "
        "rounding errors",
        theory="docs/theory.md, Laws",
        breaks="a mask, position or segment that is off by one; padding that is looked at; a mean over the wrong count; what "
        "both stacks have wrong alike",
    ),
    Kind(
        holds=_law,
        bound="both sides of an equation, each with the error that the stack's own arithmetic may have there; bit for bit where"
        " it is the same",
        theory="docs/theory.md, Laws",
        breaks="a scale left out, an axis mistaken, a count that is that of another row; what both stacks have wrong alike",
    ),
    Kind(
        holds=lambda check: check.id.endswith("_exact") and _product(check),
        bound="none: every sum of these integers is exact, in any order",
        theory="docs/theory.md, Products and sums: exact integers",
        breaks="an operand that is cast to a narrower dtype on the way: bfloat16, TF32 or float16 in a tensor core",
    ),
    Kind(
        holds=lambda check: check.id.endswith("_random") and _product(check),
        bound="the root mean square error over u (|A| |B|), with the scatter of this data's partial sums",
        theory="docs/theory.md, Products and sums: root mean square on random data",
        breaks="a narrower accumulator, whose errors a hard bound for a long sum still allows",
    ),
    Kind(
        holds=_product,
        bound="gamma_k (|A| |B|) of the accumulation's dtype, and one rounding of the result",
        theory="docs/theory.md, Products and sums: hard bounds",
        breaks="a transposed operand, a bias left out, a gradient of the wrong operand; an accumulator narrower than the dtype",
    ),
    Kind(
        holds=lambda check: check.operations == ("elementary",),
        bound="the worst error that the stack declares of the function in its capabilities.json; more than 8 ulp needs a waiver",
        theory="docs/theory.md, Elementary functions",
        breaks="fast-math in a compiler, an approximation outside of its range, flushed subnormal numbers, a function computed "
        "in a narrower dtype",
    ),
    Kind(
        holds=lambda check: check.tier == "A",
        bound="the reference's running error, for what the stack declares of its elementary functions, and the reference's own",
        theory="docs/theory.md, Primitives: running error analysis",
        breaks="a norm or softmax in float32 inside float64; eps at the wrong place; a sum over the wrong axis; heads paired wrongly",
    ),
    Kind(
        holds=lambda check: check.tier == "B",
        bound="bit for bit for codes, packing, absmax and the dequantised weight; the offset and the linear within their sums' bounds",
        theory="docs/theory.md, NF4",
        breaks="a division where the rule multiplies by a reciprocal, nibbles in the other order, rows that are no whole number "
        "of blocks, a fused multiply-add in the dequantising kernel",
    ),
    Kind(
        holds=lambda check: check.tier == "C",
        bound="each row of each tap and gradient: the response of the float64 reference to rounding errors at every operation; "
        "0 where the structure says zero",
        theory="docs/theory.md, Graphs",
        breaks="float32 inside float64 (RoPE's angles, a norm), a mask or position off by one, grouped heads in another order, a"
        " scale of LoRA, a transposed square weight, a tied head",
    ),
    Kind(
        holds=lambda check: check.tier == "D",
        bound="ledgers exactly; loss, norm, m, v and weights: the response of one whole step of the float64 reference to rounding errors",
        theory="docs/theory.md, Trajectories",
        breaks="the divisor of a ragged accumulation, eps inside the root, a correction off by one step, decay where there is "
        "none, a schedule off by one, clipping before the mean",
    ),
    Kind(
        holds=lambda check: check.tier == "E",
        bound="bit for bit for what is written and read; logits after loading: the response of the float64 reference to rounding errors",
        theory="docs/theory.md, Artifacts",
        breaks="a matrix written transposed, alpha or rslora lost on the way, a tied weight saved twice, a merge onto another base",
    ),
)


def kind_of(check: Check) -> Kind:
    """The first kind that a check is of."""
    return next(kind for kind in KINDS if kind.holds(check))
