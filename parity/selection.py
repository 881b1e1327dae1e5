"""Which checks and stacks a run has, and what is refused before anything is started."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from contract.errors import MissingError, UserError
from contract.model import checkpoint
from contract.worker.discover import StackInfo
from parity.checks import graph, own_run, registry
from parity.checks.check import Check
from parity.checks.own_run import OwnRun
from parity.mutants import catalogue


def select_checks(tiers: Sequence[str], ids: Sequence[str], model: str = graph.MODEL, own: OwnRun | None = None) -> tuple[Check, ...]:
    """The checks of some tiers and ids; of a user's own run its own, in any case but where ids name others.

    Raises:
        UserError: an unknown tier or check, or one of a user's own run where there is none.
    """
    every = registry.checks(model) if own is None else registry.checks(model, own)
    for tier in tiers:
        if tier not in registry.TIERS:
            raise UserError(f"there is no tier {tier!r}; allowed: {', '.join(registry.TIERS)}")
    known = [check.id for check in every]
    for check_id in ids:
        if check_id in own_run.IDS and own is None:
            raise UserError(f"check {check_id} is of a run of yours; name its contract: parity run --contract run.yaml --only {check_id}")
        if check_id not in known:
            raise no_such_check(check_id, known)
    for check in every:
        if check.id in ids and tiers and check.tier not in tiers and check.id not in own_run.IDS:
            raise UserError(f"check {check.id} is of tier {check.tier}; --tier names {', '.join(tiers)}")
    if ids:
        return tuple(check for check in every if check.id in ids)
    if own is None:
        return tuple(check for check in every if not tiers or check.tier in tiers)
    return tuple(check for check in every if check.tier in tiers or check.id in own_run.IDS)


def no_such_check(check_id: str, known: Sequence[str]) -> UserError:
    """The error that names the checks that are spelt alike."""
    close = difflib.get_close_matches(check_id, known, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "no check is spelt like that."
    return UserError(f"there is no check {check_id!r}; {hint} All of them: parity explain")


def select_stacks(
    known: Mapping[str, StackInfo], names: Sequence[str], devices: Mapping[str, str], *, witnesses: bool = False
) -> dict[str, tuple[StackInfo, str]]:
    """Stack -> what it is, and the device to run it on.

    Args:
        names: empty: all that are known. A witness that is not named is among them only where it is asked for and its packages are here.
        witnesses: whether there is anything to ask a witness.

    Raises:
        UserError: an unknown stack or device.
        MissingError: a stack that is known and not installed.
    """
    require_known(known, (*names, *devices))
    chosen = {}
    for name, info in known.items():  # in their order, not the user's: a pair of stacks is one cell, whichever is named first
        if (name not in names) if names else (is_witness(info) and (not witnesses or info.missing_packages())):
            continue
        device = devices.get(name, info.capabilities.devices[0])
        if device not in info.capabilities.devices:
            raise UserError(f"stack {name} has no device {device!r}; allowed: {', '.join(info.capabilities.devices)}")
        chosen[name] = (info, device)
    for name in devices:
        if name not in chosen:
            raise UserError(f"--device names {name}, which --stacks leaves out; add it there or drop it here")
    for info, _ in chosen.values():
        info.require_installed()
    return chosen


def require_known(known: Mapping[str, StackInfo], names: Iterable[str]) -> None:
    """Raises UserError for a name of no stack."""
    for name in names:
        if name not in known:
            raise UserError(f"there is no stack {name!r}; allowed: {', '.join(known) or 'none is installed'}")


def is_witness(info: StackInfo) -> bool:
    """Whether a stack is no lane, but a third opinion on files: docs/protocol.md, Witnesses."""
    return info.capabilities.lane == "witness"


def need_witnesses(checks: Sequence[Check]) -> bool:
    """Whether a check has something to ask a witness."""
    return any(plan.witness for check in checks for plan in check.plans)


def absent_witnesses(known: Mapping[str, StackInfo], names: Sequence[str], checks: Sequence[Check]) -> dict[str, str]:
    """The witnesses that the checks would ask, that `names` does not leave out, and that are not installed: name -> why, and what to do."""
    found = {}
    for name, info in known.items() if not names and need_witnesses(checks) else ():
        if is_witness(info):
            try:
                info.require_installed()
            except MissingError as error:
                found[name] = str(error)
    return found


def require_sound(model: str, checks: Sequence[Check]) -> None:
    """Refuses a checkpoint that tier C could not mean, before anything is started; one that is not here is the check's to say.

    Raises:
        UserError: a folder that is no sound checkpoint, an architecture or a config field that is not honoured, NaN in a weight.
    """
    if not needs_model(checks):
        return
    try:
        checkpoint.require_finite(checkpoint.locate(model))
    except MissingError:
        if model != graph.MODEL:
            raise


def needs_model(checks: Sequence[Check]) -> bool:
    """Whether one of the checks is of a real checkpoint."""
    return any(check.id in graph.OF_A_MODEL for check in checks)


def require_stacks_of_mutants(names: Sequence[str], chosen: Mapping[str, object], *, whole: bool = True) -> None:
    """A mutant whose stack does not run would plant nothing, and the run would look as if it had survived.

    Args:
        whole: every stack that a mutant changes must run, not one of them.

    Raises:
        UserError: such a mutant, one that there is none of, or one that is named twice.
    """
    if len(set(names)) < len(names):
        raise UserError(f"--mutant names {', '.join(names)}: each can be planted once; leave the second one out")
    for name in names:
        stacks = [stack for stack in catalogue.read(name).stacks if stack != catalogue.CONTRACT]
        left_out = [stack for stack in stacks if stack not in chosen]
        if left_out and (whole or left_out == stacks):
            which = " and ".join(left_out)
            raise UserError(f"mutant {name} is of the stack {which}, which this run leaves out; add it to --stacks, or drop the mutant")
