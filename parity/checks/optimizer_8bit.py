"""Tier A: one step of AdamW in 8 bits against the same stack's plain step from the same m and v (the path `adamw_8bit` of a run).

Domain: as of a.adamw_step; m and v are what an 8-bit state kept; betas are float32's, since that is what such an optimiser computes with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from contract.worker.capabilities import Elementary
from parity.checks import strategies
from parity.checks.check import Answered, Arrays, Ask, Case, Check, Plan, Question, Request
from parity.checks.optimizer import SMALL_AND_LARGE, WEIGHTS
from parity.checks.primitive import SOURCE
from parity.judge import bounds
from parity.judge.verdict import Comparison, within
from parity.reference.adamw import adamw_step
from parity.reference.adamw_8bit import BLOCK_SIZE, MAPS, SMALLEST, adamw_8bit_step
from parity.reference.primitive import Reference
from parity.reference.running_error import Arithmetic

OP, PLAIN = "adamw_8bit_step", "adamw_step"
LENGTHS = (SMALLEST + 4, SMALLEST - 1)
"""17 blocks, the last of 4; and the longest that keeps its moments in float32."""
MAGNITUDES = (1.0, 1e-6)
"""Of gradients and moments together; a block's absmax lies around it, over six decades."""
COST = 3

KEPT = f"{SOURCE}, of both paths, and the distance to the nearest value of the 8-bit map times the block's absmax (arXiv:2110.02861)"


@st.composite
def _steps(draw: st.DrawFn) -> Case:
    length, seed, step = draw(st.sampled_from(LENGTHS)), draw(strategies.SEEDS), draw(st.sampled_from((0, 1, 1000)), label="step")
    kind = draw(st.sampled_from(("gaussian", "some zero", "zero")), label="gradient")
    weight_kind = draw(st.sampled_from(list(WEIGHTS)), label="weight")
    magnitude = draw(st.sampled_from(MAGNITUDES), label="magnitude")
    attrs = {
        "lr": draw(st.sampled_from((1e-3, 0.5)), label="lr"),
        "beta1": float(np.float32(draw(st.sampled_from((0.9, 0.75)), label="beta1"))),
        "beta2": float(np.float32(draw(st.sampled_from((0.999, 0.95)), label="beta2"))),
        "eps": draw(st.sampled_from((1e-8, 1e-2)), label="eps"),
        "weight_decay": draw(st.sampled_from((0.0, 0.1)), label="weight_decay"),
    }
    rng = np.random.default_rng(seed)
    gradient = (magnitude * SMALL_AND_LARGE[kind](rng, (length,))).astype(np.float32)
    weight = WEIGHTS[weight_kind](rng, (length,)).astype(np.float32)
    sizes = {"m": magnitude, "v": magnitude**2}
    m, v = (_kept(rng, length, sizes[name], name) if step else np.zeros(length, np.float32) for name in sizes)
    inputs = {"float32": {"weight": weight, "gradient": gradient, "m": m, "v": v, "step": np.asarray(step)}}
    name = f"AdamW in 8 bits [{length}], step {step}, gradient {kind} times {magnitude:g}, weight {weight_kind}, {attrs}, seed {seed}"
    return Case(name=name, inputs=inputs, attrs=attrs)


def _kept(rng: np.random.Generator, length: int, size: float, name: str) -> np.ndarray:
    """Moments that 8-bit codes stand for: any code, an end of the map in each block, and a block of zeros."""
    table, blocks = MAPS[name], -(-length // BLOCK_SIZE)
    codes = rng.integers(0, 256, (blocks, BLOCK_SIZE))
    codes[:, 0] = 255
    if name == "m":
        codes[::2, 0] = np.where(codes[::2, 1:].max(axis=1) == 255, codes[::2, 0], 0)  # the map has 1, and no -1
    absmax = size * 10.0 ** rng.uniform(-6, 0, (blocks, 1))
    absmax[1] = 0.0
    kept = table[codes] * absmax.astype(np.float32)
    return kept.reshape(-1)[:length]


def _requests(case: Case) -> tuple[Ask, ...]:
    return tuple(Request(op=op, attrs={**case.attrs, "dtype": "float32"}, tensors=case.inputs["float32"]) for op in (OP, PLAIN))


def _judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """m and v before the weight, which they lead to."""
    (stack,) = answered
    narrow, plain = stack.answers
    of_narrow, of_plain = (_errors(case, reference, stack.elementary) for reference in (adamw_8bit_step, adamw_step))
    return [
        within(name, narrow[name], plain[name], bounds.Bound(of_narrow[name] + of_plain[name], KEPT))
        for name in ("m_next", "v_next", "weight_next", "step_next")
    ]


def _errors(case: Case, reference: Reference, declared: Sequence[Elementary]) -> Arrays:
    """What a stack that declares so much may err by; made once a case, reference and declaration."""
    every = tuple(declared)

    def made() -> Arrays:
        found = reference(case.inputs["float32"], case.attrs, Arithmetic("float32", every))
        return {name: one.error for name, one in found.items()}

    return case.once(f"{reference.__name__} {every}", made)


CHECKS: tuple[Check, ...] = (
    Check(
        id="a.adamw_8bit_step", tier="A", title="one AdamW step with m and v in 8 bits", operations=(PLAIN, OP), cost=COST, cases=_steps(),
        plans=(Plan(question=Question.FAST_PATH, dtype="float32", requests=_requests, judge=_judge),),
        not_applicable={
            Question.SAME_FUNCTION: "8 bits keep m and v in float32 alone; the step itself is a.adamw_step's, asked in float64",
            Question.PRECISION: "the plain step's, against the reference, is a.adamw_step's",
        },
    ),
)  # fmt: skip
