"""The matrix of check x stack x question x device: what is asked of whom, and why the rest is not.

`coverage.json` holds the matrix that the project has; a cell that is there and that a run could not find is reported as
not covered, so that deleting a check is as red as breaking one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.errors import UserError
from contract.worker.discover import StackInfo
from contract.worker.files import replacing
from contract.worker.operations import OPERATIONS
from parity.checks.check import Check, GraphNeeds, Plan, Question

COVERAGE_FILE = Path(__file__).with_name("coverage.json")


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
    """Cell -> "run", or why it is not applicable."""
    return {cell.key: cell.reason or "run" for cell in cells}


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


def lost(recorded: Mapping[str, str], cells: Iterable[Cell], devices: Sequence[Device]) -> list[str]:
    """Recorded cells that run, of the given stacks on default devices, that are not among `cells` as cells that run."""
    present = {cell.key for cell in cells if cell.plan is not None}
    here = {f"{device.info.name} on {device.name}" for device in devices}
    return [
        key for key, state in recorded.items() if state == "run" and key not in present and set(key.split(" | ")[3].split(" + ")) <= here
    ]


def _groups(question: Question, devices: Sequence[Device]) -> list[tuple[Device, ...]]:
    if question is Question.SAME_FUNCTION:
        return list(itertools.combinations(devices, 2))
    return [(device,) for device in devices]


def _asked(check: Check, devices: Sequence[Device]) -> list[Cell]:
    cells = []
    for plan in check.plans:
        if plan.question is Question.SAME_FUNCTION and len(devices) == 1:
            alone = devices[0]
            cells.append(
                Cell(
                    check=check, question=plan.question, dtype=plan.dtype, stacks=(alone.info.name,), devices=(alone.name,),
                    reason="needs two stacks, and this run has one",
                )
            )  # fmt: skip
        for group in _groups(plan.question, devices):
            reasons = [reason for device in group if (reason := unable(check, plan, device))]
            cells.append(
                Cell(
                    check=check, question=plan.question, dtype=plan.dtype, stacks=tuple(device.info.name for device in group),
                    devices=tuple(device.name for device in group), plan=None if reasons else plan, reason="; ".join(reasons),
                )
            )  # fmt: skip
    return cells


def _explained(check: Check, devices: Sequence[Device]) -> list[Cell]:
    return [
        Cell(
            check=check, question=question, dtype="-", stacks=tuple(device.info.name for device in group),
            devices=tuple(device.name for device in group), reason=reason,
        )
        for question, reason in check.not_applicable.items()
        for group in _groups(question, devices)
    ]  # fmt: skip


def unable(check: Check, plan: Plan, device: Device) -> str:
    """Why a stack on a device can't be asked a plan's question; empty where it can."""
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
    for model_type in needs.model_types:
        if graphs is None or dtype not in graphs.architectures.get(model_type, ()):
            return f"{info.name} declares no {model_type} graph in {dtype}"
    if graphs is None or (needs.proxy and dtype not in graphs.proxy):
        return f"{info.name} declares no graph qlora_proxy_v1 in {dtype}"
    lacking = [
        *([] if graphs.nf4 or not needs.nf4 else ["graph with an NF4 base"]),
        *([] if needs.path is None or needs.path in graphs.paths else [f"path {needs.path}"]),
        *(f"layout option {option}" for option in needs.layout_options if option not in graphs.layout_options),
        *([] if graphs.packing or not needs.packing else ["packing"]),
        *([] if graphs.patterns or not needs.patterns else ["patterns of rank and alpha"]),
        *(
            [f"training session of {', '.join(needs.model_types)} in {dtype}"]
            if needs.session and not _has_session(needs, dtype, info)
            else []
        ),
    ]
    return f"{info.name} declares no {', no '.join(lacking)}" if lacking else ""


def _has_session(needs: GraphNeeds, dtype: str, info: StackInfo) -> bool:
    training = info.capabilities.training
    return training is not None and dtype in training.sessions and set(needs.model_types) <= set(training.graphs.get("full_causal", ()))
