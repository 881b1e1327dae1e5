"""A snippet that shows one failure again and needs no knowledge of the check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from contract.errors import UserError
from contract.worker.discover import discover
from contract.worker.files import FileReference
from contract.worker.process import StackProcess
from parity.cells import Cell
from parity.checks.check import Ask, Case, Question, Request
from parity.judge.verdict import Comparison
from parity.mutants import catalogue

MAX_LITERAL_ELEMENTS = 600
"""A tensor of more elements is given by its check's draw, not spelled out."""


def ask(
    stack: str,
    device: str,
    op: str,
    attrs: Mapping[str, object],
    tensors: Mapping[str, np.ndarray | FileReference],
    mutants: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """One operation of one stack, in a worker of its own (what a snippet calls)."""
    known = discover()
    if stack not in known:
        raise UserError(f"there is no stack {stack!r} here; run this in the folder whose parity.toml names it")
    mutations = [catalogue.read(name).mutation for name in mutants if catalogue.read(name).stack == stack]
    with StackProcess(stack, known[stack].command, device, mutations=mutations) as process:
        return process.request("compute", {"op": op, "attrs": dict(attrs)}, tensors).tensors


def snippet(cell: Cell, case: Case, comparison: Comparison, asked: Sequence[Ask], *, rerun: str, mutants: Sequence[str]) -> str:
    """A Python program: the inputs, the question put to each stack, and what to look at; none for a whole graph."""
    requests = [ask for ask in asked if isinstance(ask, Request)]
    if len(requests) < len(asked):
        return ""
    lines = [
        f"# {cell.key}",
        f"# {case.name}",
        f"# {comparison.tensor}: {comparison.unit} {comparison.observed:.6g}, allowed {comparison.bound:.6g} ({comparison.bound_source})",
    ]
    again = command(cell, rerun=rerun, mutants=mutants)
    if not all(_spellable(request) for request in requests):
        return "\n".join([*lines, f"# too large to spell out; run: {again}"])
    lines += ["import numpy as np"]
    lines += ["from contract.worker.files import FileReference"] if any(request.references for request in requests) else []
    lines += ["from parity.find.reproducer import ask", ""]
    names: list[tuple[str, str]] = []
    for stack, device in zip(cell.stacks, cell.devices, strict=True):
        for index, request in enumerate(requests):
            name = f"{stack}_{request.op}" + (f"_{index}" if [one.op for one in requests].count(request.op) > 1 else "")
            names.append((stack, name))
            lines += [f"{name} = ask(", f'    "{stack}", "{device}", "{request.op}", {dict(request.attrs)!r},', "    {"]
            lines += [f'        "{key}": {_spell(request, key)},' for key in request.tensors]
            lines += ["    },", *([f"    mutants={list(mutants)!r},"] if mutants else []), ")"]
    return "\n".join([*lines, *_verdict(cell, comparison, names, again)])


def command(cell: Cell, *, rerun: str, mutants: Sequence[str]) -> str:
    """The command that asks a cell again: of its stacks, with the same draws, and with the mutants of those stacks."""
    devices = [f"--device {stack}={device}" for stack, device in zip(cell.stacks, cell.devices, strict=True) if device != "CPU"]
    planted = [f"--mutant {name}" for name in mutants if catalogue.read(name).stack in cell.stacks]
    return " ".join(["parity run --only", cell.check.id, "--stacks", ",".join(cell.stacks), *devices, *planted, rerun])


def _verdict(cell: Cell, comparison: Comparison, names: Sequence[tuple[str, str]], again: str) -> list[str]:
    """The last lines of a snippet: the values where they differ most, and an assertion that fails as the check did."""
    tensor, _, only = comparison.tensor.partition(" of ")
    if comparison.where is None or " " in tensor:  # judged as a whole, or as an error
        return [*(f'print("{name}", {name})' for _, name in names), f"# judged by: {again}"]
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


def _spellable(request: Request) -> bool:
    return all(array.size <= MAX_LITERAL_ELEMENTS for name, array in request.tensors.items() if name not in request.references)


def _spell(request: Request, name: str) -> str:
    if name in request.references:
        fields = request.references[name].fields()
        return f"FileReference({', '.join(f'{field}={value!r}' for field, value in fields.items())})"
    array = request.tensors[name]
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
