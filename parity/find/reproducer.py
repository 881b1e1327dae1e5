"""A snippet that shows one failure again and needs no knowledge of the check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from contract.errors import UserError
from contract.worker.discover import StackInfo, discover
from contract.worker.files import FileReference
from contract.worker.process import StackProcess
from parity.cells import Cell
from parity.checks.check import Answered, Ask, Case, Question, Request
from parity.judge import confidence
from parity.judge.verdict import Comparison
from parity.mutants import catalogue

MAX_LITERAL_ELEMENTS = 600
"""A tensor of more elements is given by its check's draw, not spelled out."""


DIRECT = ("absolute difference", "elements that differ")
"""Units in which two elements of answers can be held against each other as they are."""


def ask(
    stack: str,
    device: str,
    op: str,
    attrs: Mapping[str, object],
    tensors: Mapping[str, np.ndarray | FileReference],
    mutants: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """One operation of one stack, in a worker of its own (what a snippet calls)."""
    with _started(_known(stack), device, mutants) as process:
        return process.request("compute", {"op": op, "attrs": dict(attrs)}, tensors).tensors


def judged(
    check: str,
    question: str,
    dtype: str,
    tensor: str,
    stacks: Mapping[str, str],
    attrs: Mapping[str, object],
    inputs: Mapping[str, np.ndarray],
    mutants: Sequence[str] = (),
) -> None:
    """A check's verdict on one input, where more than one element decides: a law, a mean, a bound in ulp (what a snippet calls).

    Args:
        tensor: the comparison that is printed.
        stacks: the device by stack.

    Raises:
        AssertionError: the comparison fails.
    """
    from parity.checks.registry import CHECKS  # half a second of strategies, which a run has loaded and most snippets never need

    (plan,) = (plan for one in CHECKS if one.id == check for plan in one.plans if (plan.question, plan.dtype) == (question, dtype))
    case, answered = Case(name="the snippet's input", inputs={dtype: inputs}, attrs=attrs), []
    for stack, device in stacks.items():
        info = _known(stack)
        requests = [ask for ask in plan.requests(case) if isinstance(ask, Request)]
        with _started(info, device, mutants) as process:
            answers = [request.send(process).result().tensors for request in requests]
        answered.append(Answered(stack=stack, device=device, capabilities=info.capabilities, answers=answers))
    with np.errstate(all="ignore"):
        found = {one.tensor: one for one in plan.judge(case, answered, confidence.FALSE_ALARM)}[tensor]
    print(f"{tensor}{list(found.where or ())}: got", found.got, "wanted", found.wanted, found.unit, found.observed, "allowed", found.bound)
    assert found.passed


def _known(stack: str) -> StackInfo:
    known = discover()
    if stack not in known:
        raise UserError(f"there is no stack {stack!r} here; run this in the folder whose parity.toml names it")
    return known[stack]


def _started(info: StackInfo, device: str, mutants: Sequence[str]) -> StackProcess:
    mutations = [mutation for name in mutants for mutation in catalogue.read(name).mutations_of(info.name)]
    return StackProcess(info.name, info.command, device, mutations=mutations)


def snippet(cell: Cell, case: Case, comparison: Comparison, asked: Sequence[Ask], *, rerun: str, mutants: Sequence[str]) -> str:
    """A Python program: the inputs, the question put to each stack, and an assertion that fails; none for a whole graph."""
    requests = [ask for ask in asked if isinstance(ask, Request)]
    if len(requests) < len(asked):
        return ""
    lines = [
        f"# {cell.key}",
        f"# {case.name}",
        f"# {comparison.tensor}: {comparison.unit} {comparison.observed:.6g}, allowed {comparison.bound:.6g} ({comparison.bound_source})",
    ]
    element = _element(cell, comparison, requests)
    spelt = [(request.tensors, request.references) for request in requests] if element else [(case.inputs.get(cell.dtype, {}), {})]
    if not all(_spellable(tensors, references) for tensors, references in spelt):
        again = command(cell, rerun=rerun, mutants=mutants)
        return "\n".join([*lines, f"# too large to spell out; run: {again}"])
    planted = [f"    mutants={list(mutants)!r},"] if mutants else []
    lines += ["import numpy as np"]
    if not element:
        return "\n".join([*lines, *_whole(cell, case, comparison, planted)])
    lines += ["from contract.worker.files import FileReference"] if any(request.references for request in requests) else []
    lines += ["from parity.find.reproducer import ask", ""]
    for stack, device in zip(cell.stacks, cell.devices, strict=True):
        for name, request in _names(stack, requests):
            lines += [f"{name} = ask(", f'    "{stack}", "{device}", "{request.op}", {dict(request.attrs)!r},']
            lines += [*_dictionary(request.tensors, request.references), *planted, ")"]
    return "\n".join([*lines, *element])


def command(cell: Cell, *, rerun: str, mutants: Sequence[str]) -> str:
    """The command that asks a cell again: of its stacks, with the same draws, and with the mutants of those stacks."""
    devices = [f"--device {stack}={device}" for stack, device in zip(cell.stacks, cell.devices, strict=True) if device != "CPU"]
    planted = [f"--mutant {name}" for name in catalogue.changing(mutants, cell.stacks)]
    return " ".join(["parity run --only", cell.check.id, "--stacks", ",".join(cell.stacks), *devices, *planted, rerun])


def _names(stack: str, requests: Sequence[Request]) -> list[tuple[str, Request]]:
    """Each request with the variable that holds its answer."""
    ops = [one.op for one in requests]
    several = {op for op in ops if ops.count(op) > 1}
    return [(f"{stack}_{one.op}" + (f"_{index}" if one.op in several else ""), one) for index, one in enumerate(requests)]


def _element(cell: Cell, comparison: Comparison, requests: Sequence[Request]) -> list[str]:
    """The values where they differ most, and an assertion that fails as the check did; nothing where no two elements can show it."""
    tensor, _, only = comparison.tensor.partition(" of ")
    alike = comparison.unit == "elements that differ" and comparison.got == comparison.wanted  # two zeros, of which the signs differ
    if comparison.where is None or not tensor.isidentifier() or comparison.unit not in DIRECT or alike:
        return []
    names = [(stack, name) for stack in cell.stacks for name, _ in _names(stack, requests)]
    values = [f'float({name}["{tensor}"][{comparison.where or ()}])' for stack, name in names if only in ("", stack)]
    if only or cell.question is Question.PRECISION:
        values = [values[0], "None" if comparison.wanted is None else _number(comparison.wanted)]
    first, second = ("got", "wanted") if only or cell.question is not Question.SAME_FUNCTION else cell.stacks
    allowed = _number(comparison.bound)
    return [
        f"got, wanted = {values[0]}, {values[1]}",
        f'print("{tensor}{list(comparison.where)}: {first}", got, "{second}", wanted, "allowed difference", {allowed})',
        f"assert abs(got - wanted) <= {allowed}",
    ]


def _whole(cell: Cell, case: Case, comparison: Comparison, planted: Sequence[str]) -> list[str]:
    """Has the check judge its input again."""
    stacks = dict(zip(cell.stacks, cell.devices, strict=True))
    return [
        "from parity.find.reproducer import judged",
        "",
        "judged(",
        f'    "{cell.check.id}", "{cell.question}", "{cell.dtype}", {comparison.tensor!r}, {stacks!r}, {dict(case.attrs)!r},',
        *_dictionary(case.inputs[cell.dtype], {}),
        *planted,
        ")",
    ]


def _dictionary(tensors: Mapping[str, np.ndarray], references: Mapping[str, FileReference]) -> list[str]:
    return ["    {", *(f'        "{name}": {_spell(array, references.get(name))},' for name, array in tensors.items()), "    },"]


def _spellable(tensors: Mapping[str, np.ndarray], references: Mapping[str, FileReference]) -> bool:
    return all(array.size <= MAX_LITERAL_ELEMENTS for name, array in tensors.items() if name not in references)


def _spell(array: np.ndarray, reference: FileReference | None = None) -> str:
    if reference is not None:
        fields = reference.fields()
        return f"FileReference({', '.join(f'{field}={value!r}' for field, value in fields.items())})"
    if array.dtype.kind == "f":
        nested = _nested_hex(array.astype(np.float64))
        return f"np.array({nested}, dtype='{array.dtype.name}').reshape({array.shape})"
    return f"np.array({array.reshape(-1).tolist()}, dtype='{array.dtype.name}').reshape({array.shape})"


def _nested_hex(array: np.ndarray) -> str:
    """repr of a float64 round-trips, for float32 values too."""
    return "[" + ", ".join(_number(float(value)) for value in array.reshape(-1)) + "]"


def _number(value: float) -> str:
    """A number as Python reads it: infinities and NaN have no literal."""
    return repr(value) if math.isfinite(value) else f'float("{value}")'
