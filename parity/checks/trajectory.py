"""Tier D: training, step by step. Each step starts from the reference's state, so that no error is the last step's (docs/theory.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

from contract.model.layout import Layout
from contract.run.spec import AdapterSpec, ExecSpec, Graph, QuantSpec
from contract.training.inputs import Run
from parity.checks import (
    trajectory_free,
    trajectory_judges,
    trajectory_laws,
    trajectory_packed,  # noqa: F401  (registers how a step travels)
    trajectory_resumed,
)
from parity.checks.check import Ask, Case, Check, GraphNeeds, Judge, Plan, Question
from parity.checks.trajectory_case import Dtype, StepAsk, StepCase, cases
from parity.checks.trajectory_free import FreeAsk, FreeCase
from parity.checks.trajectory_resumed import ResumedAsk, ResumedCase
from parity.checks.trajectory_run import GPT2, LLAMA, NARROW, PACKED, PACKED_GPT2, PROXY, RAGGED, TrainingRun

FEW = 8
"""Cases of the shortest profile: warm-up's end, clipped and free steps, what decays, the first short one; of a captured step, replays."""

_NO_FAST_PATH = "a session takes the paths that a run takes; c.llama_fused_lora and the like hold each of them against the plain one"
_NARROW = "two stacks round bfloat16 in places of their own; each is held against the reference, and other runs ask in float64"
_ALONE = {Question.SAME_FUNCTION: "a law: each stack alone", Question.FAST_PATH: _NO_FAST_PATH}


def needs(layout: Layout, graph: Graph, adapter: AdapterSpec, quant: QuantSpec, exec_: ExecSpec) -> GraphNeeds:
    """What a stack must declare to be asked of a run."""
    return GraphNeeds(
        model_types=(layout.model_type,), nf4=quant.base == "nf4", layout_options=layout.options, packing=exec_.packing,
        patterns=bool(adapter.rank_pattern or adapter.alpha_pattern), proxy=graph == "qlora_proxy_v1", session=True,
        dropout=adapter.dropout > 0,
    )  # fmt: skip


def needs_of(run: Run) -> GraphNeeds:
    """The same of a run that is ready to start."""
    contract = run.contract
    return needs(run.layout, contract.graph, contract.adapter, contract.quant, contract.exec)


def _needs(spec: TrainingRun) -> GraphNeeds:
    adapter, quant = AdapterSpec.model_validate(spec.fields["adapter"]), QuantSpec.model_validate(spec.fields["quant"])
    return needs(spec.layout, spec.graph, adapter, quant, ExecSpec.model_validate(spec.fields["exec"]))


def _of_both(one: GraphNeeds, other: GraphNeeds) -> GraphNeeds:
    """What two runs need that differ in their model."""
    types, options = (sorted({*getattr(one, name), *getattr(other, name)}) for name in ("model_types", "layout_options"))
    return dataclasses.replace(one, model_types=tuple(types), layout_options=tuple(options))


def step_asks(case: Case) -> tuple[Ask, ...]:
    """One step."""
    assert isinstance(case, StepCase)
    return (StepAsk(case=case),)


def _free_asks(case: Case) -> tuple[Ask, ...]:
    assert isinstance(case, FreeCase)
    return (FreeAsk(case=case),)


def _resumed_asks(case: Case) -> tuple[Ask, ...]:
    assert isinstance(case, ResumedCase)
    return (ResumedAsk(case=case),)


def _plan(
    spec: TrainingRun, question: Question, dtype: str, judge: Judge, asks: Callable[[Case], tuple[Ask, ...]] = step_asks, *,
    statistical: int = 1,
) -> Plan:  # fmt: skip
    return Plan(question=question, dtype=dtype, requests=asks, judge=judge, statistical=statistical, graph=_needs(spec))


def _both(spec: TrainingRun) -> tuple[Plan, ...]:
    return (
        _plan(spec, Question.SAME_FUNCTION, "float64", trajectory_judges.same_function),
        _plan(spec, Question.PRECISION, "float64", trajectory_judges.precision),
    )


def _steps(name: str, spec: TrainingRun, *, few: int | None = None) -> Check:
    """A run's steps in float64, both stacks against each other and each against the reference."""
    return Check(
        id=name, tier="D", title=f"steps of {spec.title}", operations=(), plans=_both(spec),
        not_applicable={Question.FAST_PATH: _NO_FAST_PATH}, cases=None, fixed_cases=partial(cases, spec, "float64"),
        fixed_count=spec.count, few=few,
    )  # fmt: skip


def _narrow(name: str, spec: TrainingRun, dtype: Dtype, *, asked: str, few: int | None = None, nightly: bool = False) -> Check:
    """The same in a user's dtype, each stack against the reference; asked: why not of one function."""
    return dataclasses.replace(
        _steps(name, spec, few=few), title=f"in {dtype}: steps of {spec.title}",
        plans=(_plan(spec, Question.PRECISION, dtype, trajectory_judges.precision),),
        not_applicable={Question.SAME_FUNCTION: asked, Question.FAST_PATH: _NO_FAST_PATH},
        fixed_cases=partial(cases, spec, dtype), nightly=nightly,
    )  # fmt: skip


def _checks() -> Iterator[Check]:
    """Checks of one run follow each other: a session that is open serves the next."""
    yield _steps("d.trajectory", LLAMA, few=FEW)
    yield Check(
        id="d.free_running", tier="D", title="steps that follow from each other, against the growth of rounding errors", operations=(),
        plans=(
            _plan(LLAMA, Question.SAME_FUNCTION, "float64", trajectory_free.same_function, _free_asks),
            _plan(LLAMA, Question.PRECISION, "float64", trajectory_free.precision, _free_asks),
        ),
        not_applicable={Question.FAST_PATH: _NO_FAST_PATH}, cases=None, fixed_cases=trajectory_free.cases,
        fixed_count=len(trajectory_free.LENGTHS), few=1,
    )  # fmt: skip
    yield _narrow("d.trajectory_float32", LLAMA, "float32", asked="asked in float64 by d.trajectory", few=FEW)
    yield _steps("d.trajectory_packed", PACKED)
    batches = _plan(RAGGED, Question.PRECISION, "float64", trajectory_laws.judge, trajectory_laws.asks)
    yield Check(
        id="d.law_batches", tier="D", title="laws: a step's rows packed, accumulated, or in one batch are one step", operations=(),
        plans=(dataclasses.replace(batches, graph=_of_both(_needs(PACKED), _needs(PACKED_GPT2))),), not_applicable=_ALONE,
        cases=None, fixed_cases=trajectory_laws.cases, fixed_count=3, few=2,
    )  # fmt: skip
    yield _steps("d.trajectory_gpt2", GPT2)
    yield Check(
        id="d.law_resumed", tier="D", title="law: a run that goes on from its checkpoint is the one that was never stopped", operations=(),
        plans=(_plan(GPT2, Question.PRECISION, "float32", trajectory_resumed.judge, _resumed_asks, statistical=0),), not_applicable=_ALONE,
        cases=None, fixed_cases=trajectory_resumed.cases, fixed_count=1,
    )  # fmt: skip
    yield _steps("d.trajectory_proxy", PROXY)
    for spec in (PACKED, GPT2, PROXY):
        by = f"asked in float64 by d.trajectory_{spec.name}"
        yield _narrow(f"d.trajectory_{spec.name}_float32", spec, "float32", asked=by, nightly=True)
    yield _narrow("d.trajectory_bfloat16", NARROW, "bfloat16", asked=_NARROW, nightly=True)


CHECKS: tuple[Check, ...] = tuple(_checks())
