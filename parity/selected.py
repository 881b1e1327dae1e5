"""All that a run has settled before anything is started: checks, stacks, and a user's own run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from contract.errors import UserError
from contract.worker import discover
from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import gating, selection
from parity.checks import own_run
from parity.checks.check import Check
from parity.gating import Gated
from parity.options import Options


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Whom a run asks what.

    known:  every stack there is. chosen: those that are started, each with its device.
    absent: witnesses that would be asked and are not installed: name -> why.
    gated:  the user's own run.
    """

    checks: tuple[Check, ...]
    known: Mapping[str, StackInfo]
    chosen: Mapping[str, tuple[StackInfo, str]]
    absent: Mapping[str, str]
    gated: Gated | None


def select(options: Options, doing: Callable[[str], None]) -> Selected:
    """Settles it.

    Raises:
        UserError: a usage error, a contract that is refused, or something missing (see its subclasses).
    """
    known = discover.discover()
    gated, stacks, devices = None, options.stacks, dict(options.devices or {})
    if options.contract is not None:
        selection.require_known(known, (*stacks, *devices))
        gated = gating.read(options.contract, known, stacks, devices, doing)
        stacks, devices = tuple(gated.devices), {**gated.devices, **devices}
        if options.rerun is not None and options.rerun.contract != gated.digest:
            raise UserError(
                f"{options.contract.file} has changed since the run of {options.rerun.started} (its digest is {gated.digest}, "
                f"was {options.rerun.contract}); ask all of it: parity run {options.contract.flags}"
            )
    checks = selection.select_checks(options.tiers, options.checks, options.model, None if gated is None else gated.own)
    selection.require_sound(options.model, checks)
    chosen = selection.select_stacks(known, stacks, devices, witnesses=selection.need_witnesses(checks))
    absent = selection.absent_witnesses(known, stacks, checks)
    selection.require_stacks_of_mutants(options.mutants, chosen)
    return Selected(checks=checks, known=known, chosen=chosen, absent=absent, gated=gated)


def with_paths(selected: Selected, options: Options, processes: Mapping[str, StackProcess]) -> Selected:
    """Asks the stacks, which run by now, for the production paths of a user's run; its checks then are of those.

    Raises:
        HarnessError: a stack does not say.
    """
    if selected.gated is None:
        return selected
    own = selected.gated.own
    try:
        own = own_run.with_paths(own, processes, {name: info.capabilities for name, (info, _) in selected.chosen.items()})
    except RequestFailed as error:
        raise HarnessError(f"a stack does not say which paths the contract's run takes: {error}") from None
    checks = selection.select_checks(options.tiers, options.checks, options.model, own)
    return dataclasses.replace(selected, checks=checks, gated=dataclasses.replace(selected.gated, own=own))
