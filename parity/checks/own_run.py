"""c.run and d.run: a user's own contract as checks. Its graph on its checkpoint and its rows, and its first optimiser steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from contract.training.inputs import Run
from contract.worker.answers import HarnessError
from contract.worker.capabilities import Capabilities
from contract.worker.plan import GraphPlan, Path
from contract.worker.process import StackProcess
from parity.checks import graph_plans, own_run_steps
from parity.checks.check import Check, GraphNeeds, Plan
from parity.checks.graph_case import GraphCase
from parity.checks.graph_draws import case_of
from parity.checks.own_run_batch import Cut

GRAPH = "c.run"
IDS = (GRAPH, *own_run_steps.IDS)
"""The checks of a user's own run: there are none without a contract."""

ASKED = "train_paths"
"""The request by which a stack says which production paths a run takes."""

RANDOM_B = 0.1
"""Standard deviation of the B that stands in for a trained one: the low-rank part is then a tenth of the base's, or more."""


@dataclass(frozen=True, kw_only=True)
class FastPaths:
    """The production paths that a run takes on one stack: those that a graph can be opened with, and those that a step alone has."""

    opened: tuple[Path, ...] = ()
    beyond: tuple[str, ...] = ()
    unknown: str = ""


@dataclass(frozen=True, kw_only=True)
class OwnRun:
    """A user's run, and the stacks that take it.

    cuts:  what of its micro-batches is asked, in order.
    paths: stack -> its production paths; empty as long as no stack runs.
    """

    run: Run
    cuts: tuple[Cut, ...]
    stacks: tuple[str, ...]
    paths: Mapping[str, FastPaths] = field(default_factory=dict)

    @property
    def plan(self) -> GraphPlan:
        """Its graph in float64, without production paths. No two programs sum the offset of a nested absmax alike: it is given."""
        base = self.run.plan.base
        given = None if base is None else base.model_copy(update={"offsets_given": base.double_quant})
        return self.run.plan.model_copy(update={"dtype": "float64", "base": given})

    @property
    def dtype(self) -> str:
        """In which the run computes."""
        return self.run.contract.exec.compute_dtype


def checks(own: OwnRun) -> tuple[Check, ...]:
    """c.run and d.run of a contract."""
    return _graph_check(own), *own_run_steps.checks(own.run)


def _graph_check(own: OwnRun) -> Check:
    needs = _needs(own)
    *in_float64, in_float32 = graph_plans.plain(needs)
    in_its_dtype = graph_plans.bfloat16(needs) if own.dtype == "bfloat16" else in_float32
    fast_paths = (_fast_path(own, stack, needs) for stack in own.stacks)
    adapter = "" if own.run.contract.adapter.dropout == 0 else ", without dropout"
    return Check(
        id=GRAPH, tier="C", title=f"the contract's graph on its checkpoint and its rows{adapter}", operations=(),
        plans=(*in_float64, in_its_dtype, *fast_paths), not_applicable={}, cases=None, fixed_cases=lambda: cases(own), fixed_count=2,
        whole=True, locate=graph_plans.locate,
    )  # fmt: skip


def cases(own: OwnRun) -> Iterator[GraphCase]:
    """The first micro-batch with the adapter that training starts from, and the next one (or the same) with any other B."""
    weights, plan = own.run.checkpoint.tensors, own.plan
    for seed, (cut, adapter) in enumerate(((own.cuts[0], "B = 0"), (own.cuts[-1], "random B"))):
        rng = np.random.default_rng(seed)
        matrices = {
            name: matrix if adapter == "B = 0" or not name.endswith("lora_b") else _any(rng, matrix)
            for name, matrix in own.run.initial.items()
        }
        case = case_of(f"{own.run.checkpoint.name}, {cut.told}, {adapter}", plan, weights, matrices, cut.batch, seed)
        yield dataclasses.replace(case, real=weights["embedding"])


def _any(rng: np.random.Generator, matrix: np.ndarray) -> np.ndarray:
    return (RANDOM_B * rng.standard_normal(matrix.shape)).astype(np.float32)


def _needs(own: OwnRun) -> GraphNeeds:
    layout, adapter, proxy = own.run.layout, own.run.contract.adapter, own.run.contract.graph == "qlora_proxy_v1"
    return GraphNeeds(
        model_types=() if proxy else (layout.model_type,), nf4=own.plan.base is not None, layout_options=() if proxy else layout.options,
        packing=any(cut.batch.segments is not None for cut in own.cuts), patterns=bool(adapter.rank_pattern or adapter.alpha_pattern),
        proxy=proxy,
    )  # fmt: skip


def _fast_path(own: OwnRun, stack: str, needs: GraphNeeds) -> Plan:
    """The graph with all production paths that the run takes on this stack, against the plain one."""
    paths = own.paths.get(stack, FastPaths(unknown=f"which paths its run takes is {stack}'s to say, and it was not asked"))
    unasked = paths.unknown
    if not unasked and not paths.opened:
        beyond = f"{', '.join(paths.beyond)}, which its steps have and its open graph has not" if paths.beyond else "the plain one"
        unasked = f"the path of this run on {stack} is {beyond}"
    plan = graph_plans.fast_path(needs, *paths.opened, dtype=own.dtype)
    return dataclasses.replace(plan, stacks=(stack,), unasked=unasked)


def with_paths(own: OwnRun, processes: Mapping[str, StackProcess], declared: Mapping[str, Capabilities]) -> OwnRun:
    """Asks each stack for the production paths that it takes for this run.

    Raises:
        HarnessError, RequestFailed: as StackProcess.request.
    """
    return dataclasses.replace(own, paths={stack: _paths(own, processes[stack], declared[stack]) for stack in own.stacks})


def _paths(own: OwnRun, process: StackProcess, declared: Capabilities) -> FastPaths:
    if ASKED not in declared.requests:
        return FastPaths(unknown=f"{process.name} does not say which paths its runs take (the request {ASKED}, docs/protocol.md)")
    said = process.request(ASKED, {"contract": own.run.contract.model_dump(mode="json")}).values.get("paths")
    if not isinstance(said, list) or not all(isinstance(path, str) for path in said):
        raise HarnessError(f"{process.name} answered {ASKED} with {said!r} for paths; a list of names is wanted (docs/protocol.md)")
    openable = () if declared.graphs is None else declared.graphs.paths
    opened = tuple(path for path in openable if path in said)
    return FastPaths(opened=opened, beyond=tuple(path for path in said if path not in openable))
