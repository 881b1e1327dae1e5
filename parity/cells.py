"""The matrix of check x stack x question x device: what is asked of whom, and why the rest is not.

`coverage.json` holds the matrix that the project has; a cell that is there and that a run could not find is reported as
not covered, so that deleting a check is as red as breaking one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.errors import UserError
from contract.worker.discover import StackInfo
from contract.worker.files import replacing
from contract.worker.operations import OPERATIONS
from parity.checks.check import Check, GraphNeeds, Plan, Question

COVERAGE_FILE = Path(__file__).with_name("coverage.json")
NO_DTYPE = "-"
"""The dtype of a question that a check does not ask at all."""
RUN, NIGHTLY = "run", "nightly"
"""What coverage.json says of a cell that every profile asks, and of one that the longest alone does."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A stack on a device, and the dtypes that it computes in there."""

    info: StackInfo
    name: str
    dtypes: frozenset[str]

    @property
    def is_default(self) -> bool:
        """Whether this is the device that the stack runs on unless told otherwise."""
        return self.name == self.info.capabilities.devices[0]

    @property
    def is_witness(self) -> bool:
        """Whether it is no lane, but a third opinion, which few checks ask for."""
        return self.info.capabilities.lane == "witness"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One question of one check, asked of one stack or of two in one dtype; `reason` says why it is not asked."""

    check: Check
    question: Question
    dtype: str
    stacks: tuple[str, ...]
    devices: tuple[str, ...]
    plan: Plan | None = None
    reason: str = ""

    @property
    def key(self) -> str:
        """Names the cell in reports and in coverage.json."""
        who = " + ".join(f"{stack} on {device}" for stack, device in zip(self.stacks, self.devices, strict=True))
        return f"{self.check.id} | {self.question} | {self.dtype} | {who}"


def matrix(checks: Iterable[Check], devices: Sequence[Device]) -> list[Cell]:
    """Every cell, asked or not applicable."""
    return [cell for check in checks for cell in (*_asked(check, devices), *_explained(check, devices))]


def coverage(cells: Iterable[Cell]) -> dict[str, str]:
    """Cell -> RUN or NIGHTLY, or why it is not applicable."""
    return {cell.key: cell.reason or (NIGHTLY if cell.check.nightly else RUN) for cell in cells}


def read_coverage() -> dict[str, str]:
    """The matrix that the project has, for its own stacks on their default devices."""
    try:
        recorded: dict[str, str] = json.loads(COVERAGE_FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{COVERAGE_FILE} can't be read ({error}); restore it, or write it anew: parity coverage --write") from None
    return recorded


def write_coverage(cells: Mapping[str, str]) -> None:
    """Records the matrix."""
    with replacing(COVERAGE_FILE) as file:
        file.write((json.dumps(dict(cells), indent=2) + "\n").encode())


def lost(recorded: Mapping[str, str], cells: Iterable[Cell], devices: Sequence[Device], gone: Collection[str] = ()) -> list[str]:
    """Recorded cells that run, of the given stacks on default devices, that are not among `cells` as cells that run.

    Args:
        gone: stacks that there should be, and are not.
    """
    present = {cell.key for cell in cells if cell.plan is not None}
    here = {f"{device.info.name} on {device.name}" for device in devices}
    return [
        key
        for key, state in recorded.items()
        if state in (RUN, NIGHTLY) and key not in present
        and all(who in here or who.partition(" on ")[0] in gone for who in key.split(" | ")[3].split(" + "))
    ]  # fmt: skip


def stacks_of(recorded: Mapping[str, str]) -> set[str]:
    """The stacks that recorded cells are of."""
    return {who.partition(" on ")[0] for key in recorded for who in key.split(" | ")[3].split(" + ")}


def _groups(question: Question, devices: Sequence[Device]) -> list[tuple[Device, ...]]:
    if question is Question.SAME_FUNCTION:
        return list(itertools.combinations(devices, 2))
    return [(device,) for device in devices]


def takes_part(plan: Plan, device: Device) -> bool:
    """Whether a stack is one of those that a plan is for, able or not."""
    return (plan.stacks is None or device.info.name in plan.stacks) and (plan.witness or not device.is_witness)


def _asked(check: Check, every: Sequence[Device]) -> list[Cell]:
    cells = []
    for plan in check.plans:
        devices = [device for device in every if takes_part(plan, device)]
        if plan.question is Question.SAME_FUNCTION and len(devices) == 1:
            alone = devices[0]
            cells.append(
                Cell(
                    check=check, question=plan.question, dtype=plan.dtype, stacks=(alone.info.name,), devices=(alone.name,),
                    reason="needs two stacks, and this run has one",
                )
            )  # fmt: skip
        for group in _groups(plan.question, devices):
            if plan.witness and len(group) > 1 and not any(device.is_witness for device in group):
                continue  # another plan of the check compares stacks
            reasons = [reason for device in group if (reason := unable(check, plan, device))]
            cells.append(
                Cell(
                    check=check, question=plan.question, dtype=plan.dtype, stacks=tuple(device.info.name for device in group),
                    devices=tuple(device.name for device in group), plan=None if reasons else plan, reason="; ".join(reasons),
                )
            )  # fmt: skip
    return cells


def _explained(check: Check, every: Sequence[Device]) -> list[Cell]:
    devices = [device for device in every if not device.is_witness]
    return [
        Cell(
            check=check, question=question, dtype=NO_DTYPE, stacks=tuple(device.info.name for device in group),
            devices=tuple(device.name for device in group), reason=reason,
        )
        for question, reason in check.not_applicable.items()
        for group in _groups(question, devices)
    ]  # fmt: skip


def unable(check: Check, plan: Plan, device: Device) -> str:
    """Why a stack on a device can't be asked a plan's question; empty where it can."""
    if plan.unasked:
        return plan.unasked
    if plan.dtype not in device.dtypes:
        return f"{device.name} of {device.info.name} has no {plan.dtype}"
    if plan.graph is not None and (reason := _unable_to_open(plan.graph, plan.dtype, device.info)):
        return reason
    needed = check.operations[-1:] if plan.question is Question.SAME_FUNCTION else check.operations
    for op in needed:
        assert op in OPERATIONS, f"{check.id} needs {op}, which is no operation"
        if plan.dtype not in device.info.capabilities.operations.get(op, ()):
            return f"{device.info.name} declares no {op} in {plan.dtype}"
    return ""


def _unable_to_open(needs: GraphNeeds, dtype: str, info: StackInfo) -> str:
    graphs = info.capabilities.graphs
    if needs.score:
        return _unable_to_score(needs, dtype, info)
    for model_type in needs.model_types:
        if graphs is None or dtype not in graphs.architectures.get(model_type, ()):
            return f"{info.name} declares no {model_type} graph in {dtype}"
    if graphs is None or (needs.proxy and dtype not in graphs.proxy):
        return f"{info.name} declares no graph qlora_proxy_v1 in {dtype}"
    lacking = [
        *([] if graphs.nf4 or not needs.nf4 else ["graph with an NF4 base"]),
        *(f"path {path}" for path in needs.paths if path not in graphs.paths),
        *(f"layout option {option}" for option in needs.layout_options if option not in graphs.layout_options),
        *([] if graphs.packing or not needs.packing else ["packing"]),
        *([] if graphs.patterns or not needs.patterns else ["patterns of rank and alpha"]),
        *(_lacking_of_sessions(needs, dtype, info) if needs.session else []),
        *(f"request {name}" for name in needs.requests if name not in info.capabilities.requests),
    ]
    return f"{info.name} declares no {', no '.join(lacking)}" if lacking else ""


def _unable_to_score(needs: GraphNeeds, dtype: str, info: StackInfo) -> str:
    graphs, scores = info.capabilities.graphs, info.capabilities.scores
    lacking = [f"scores of a {model_type} in {dtype}" for model_type in needs.model_types if dtype not in scores.get(model_type, ())]
    if graphs is not None:  # a witness has none
        lacking += [f"layout option {option}" for option in needs.layout_options if option not in graphs.layout_options]
    if needs.nf4 and (graphs is None or not graphs.nf4):
        lacking.append("graph with an NF4 base")
    return f"{info.name} declares no {', no '.join(lacking)}" if lacking else ""


def _lacking_of_sessions(needs: GraphNeeds, dtype: str, info: StackInfo) -> list[str]:
    training = info.capabilities.training
    graphs = {} if training is None else training.graphs
    types = graphs.get("qlora_proxy_v1" if needs.proxy else "full_causal", ())
    if training is None or dtype not in training.sessions or not set(needs.model_types) <= set(types):
        return [f"training session of {', '.join(needs.model_types)} in {dtype}"]
    there = {"dropout": training.dropout, "packing": training.packing, "patterns": training.patterns}
    return [f"{name} in training" for name, has in there.items() if getattr(needs, name) and not has]
