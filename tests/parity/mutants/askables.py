"""Mutants, facts and cells for the tests of campaigns."""

from __future__ import annotations

from contract.worker.answers import HarnessError
from parity.mutants.catalogue import Mutant, Patch
from parity.mutants.facts import Cell, Ended, Facts
from parity.report.record import Status

MODULE = "tests.parity.mutants.planted_arithmetic"
FIND = "return a @ b"


def mutant(name: str = "m", *, check: str = "a.matmul", stacks: tuple[str, ...] = ("one",), replace: str = "return -(a @ b)") -> Mutant:
    """A change of the product of a stack in NumPy."""
    patches = tuple(Patch(stack=stack, module=MODULE, find=FIND, replace=replace) for stack in stacks)
    return Mutant(name=name, what="a test's", bug=None, check=check, patches=patches)


def cell(status: Status, *, check: str = "a.matmul", stacks: tuple[str, ...] = ("one",), reason: str = "", tap: str = "") -> Cell:
    """A cell of precision in float32."""
    return Cell(
        check=check, question="precision", dtype="float32", stacks=stacks, status=status, reason=reason, tap=tap, examples=5, seconds=1.0
    )  # fmt: skip


def done(*cells: Cell) -> Facts:
    """Of a run that came to its end."""
    return Facts(ended=Ended.DONE, cells=cells, seconds=2.0)


GREEN = done(cell(Status.PASS))
RED = done(cell(Status.FAIL, reason="y[0]: got 1, wanted 2", tap="y"))
BROKEN = done(cell(Status.ERROR, reason="one: the worker ended with exit code 7"))
CRASHED = Facts(ended=Ended.CRASHED, message="its process was killed by signal 11: nothing", seconds=2.0)
HUNG = Facts(ended=Ended.HUNG, message="took over its deadline of 300 s, and was killed", seconds=300.0)


def error_of(kind: HarnessError) -> Facts:
    """Of a run in which a stack's worker failed like that."""
    return done(cell(Status.ERROR, reason=f"{kind} (on 2 x 2)"))
