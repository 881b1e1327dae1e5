"""The contract's mutants in the gate's own process: it makes inputs of tier D with the same contract that the stacks run with.

An unchanged contract here would be an oracle that no run has: stacks that share a mistake share it with the gate, too. So a command that is
given such a mutant begins anew, in a process that plants before it imports anything else of parity (parity/mutants/planted_process.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from contract.errors import UserError
from contract.worker import mutation
from contract.worker.mutation import Mutation
from parity.mutants import catalogue

PLANTED: list[str] = []
"""The mutants whose patches of the contract this process has."""

MODULE = "parity.mutants.planted_process"


def of_contract(names: Sequence[str]) -> list[Mutation]:
    """What mutants change of the contract.

    Raises:
        UserError: there is none of that name.
    """
    return [one for name in names for one in catalogue.read(name).mutations_of(catalogue.CONTRACT)]


def missing(names: Sequence[str]) -> list[str]:
    """Those of some mutants that change the contract, and that this process has not planted."""
    return [name for name in names if name not in PLANTED and of_contract([name])]


def begin_anew(names: Sequence[str]) -> None:
    """Replaces this process by one with the same arguments that has planted what mutants change of the contract.

    Returns where there is nothing to plant, or where it is planted.

    Raises:
        UserError: there is no mutant of that name.
    """
    if missing(names):
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-m", MODULE, *(f"--plant={name}" for name in names), *sys.argv[1:]])


def require(names: Sequence[str]) -> None:
    """Refuses mutants of the contract that stacks would have and the gate would not.

    Raises:
        UserError: this process has not planted one.
    """
    if lacking := missing(names):
        raise UserError(
            f"mutant {lacking[0]} changes the contract, and this process has the unchanged one; ask it by the command: parity run"
        )


def plant(names: Sequence[str]) -> None:
    """Plants what mutants change of the contract: every module of contract and parity is imported anew after that.

    Raises:
        UserError: there is no mutant of that name, or one that no longer applies.
    """
    for change in of_contract(names):
        try:
            mutation.plant(catalogue.CONTRACT, change.module, change.find, change.replace, importers=("parity",))
        except (ValueError, SyntaxError) as error:
            raise UserError(f"a mutant can't be planted: {error}") from None
