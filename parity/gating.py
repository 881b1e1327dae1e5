"""A user's contract, read and gated as `finetune` does it, and the stacks that take its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from contract.errors import ContractErrors, MissingError, UserError
from contract.model.preflight import locate_files
from contract.run.digest import digest
from contract.run.facts import Refusal
from contract.run.gates import refusals
from contract.run.planner import Refused, plan
from contract.run.source import read_contract
from contract.run.spec import FineTuneContract, Method, ModelSpec
from contract.run.survey import Options as SurveyOptions
from contract.run.survey import survey
from contract.training.inputs import prepare
from contract.worker.discover import StackInfo
from parity.checks import own_run, own_run_batch
from parity.checks.check import Check
from parity.checks.own_run import OwnRun
from parity.options import ContractOptions
from parity.report.record import ContractRecord

_SURVEY = SurveyOptions()

OF_CHOICE = ("no_stack", "forced_stack", "research_lane")
"""Gates that say which one stack a run goes to, and not what a stack can do."""

CASES = 2
"""Micro-batches that c.run takes."""


@dataclass(frozen=True, kw_only=True)
class Gated:
    """A contract that every gate lets through.

    devices: of each stack that takes the run. declined: stack -> why it does not.
    """

    own: OwnRun
    digest: str
    devices: Mapping[str, str]
    declined: Mapping[str, str]


def read(
    given: ContractOptions, known: Mapping[str, StackInfo], names: Sequence[str], devices: Mapping[str, str], doing: Callable[[str], None]
) -> Gated:  # fmt: skip
    """Reads a contract, asks every gate of the planner, and finds the stacks that take the run.

    Args:
        names: the stacks that may be asked; none: all that are known.
        devices: stack -> a device in place of the contract's.

    Raises:
        UserError: the contract can't be read, a gate refuses it, or no stack takes it.
        MissingError: its checkpoint, or the stack that it leads to, is not here.
    """
    doing("reading the contract")
    contract = _read(given)
    locate_files(contract.model)  # what was not fetched is missing, and no fault of the contract
    _require_planned(contract, known)
    declined, taken = {}, {}
    for name in names or known:
        if known[name].capabilities.training is not None or names:  # others are no stacks of runs, and were not asked for
            device = devices.get(name, contract.exec.device)
            if why := why_not(contract, known[name], device):
                declined[name] = why
            else:
                taken[name] = device
    if not taken:
        told = "; ".join(f"{name}: {why}" for name, why in declined.items())
        raise UserError(f"no stack takes this run ({told or 'none is known'}); change the contract, or name others with --stacks")
    for name in devices:
        if name in declined:
            raise UserError(f"--device names {name}, which does not take this run: {declined[name]}")
    run = prepare(contract, progress=lambda stage, done, total: doing(f"preparing the contract's rows: {stage}"))
    cuts = own_run_batch.first(run.steps, own_run_batch.affordable(run.plan), CASES)
    own = OwnRun(run=run, cuts=cuts, stacks=tuple(sorted(taken)))
    return Gated(own=own, digest=digest(contract), devices=taken, declined=declined)


def why_not(contract: FineTuneContract, info: StackInfo, device: str) -> str:
    """Why a stack does not take a run on a device; empty where it does.

    Whether it is the stack that lane and method lead to does not matter: it is to compute the same. QLoRA is LoRA on an NF4 base
    (arXiv:2305.14314), one graph with two names: a stack that takes either takes both.
    """
    methods: tuple[Method, ...] = ("qlora", "lora") if contract.quant.base == "nf4" else (contract.adapter.method,)
    told = ""
    for method in sorted(methods, key=lambda method: method != contract.adapter.method):
        candidate = contract.model_copy(
            update={
                "lane": "research", "stack": info.name, "exec": contract.exec.model_copy(update={"device": device}),
                "adapter": contract.adapter.model_copy(update={"method": method}),
            }
        )  # fmt: skip
        found = survey(candidate, {info.name: info}, _SURVEY)
        against = [one for one in (*found.faults, *refusals(found.facts)) if one.gate not in OF_CHOICE]
        if not against:
            return ""
        told = told or _told(against)
    return told


def _read(given: ContractOptions) -> FineTuneContract:
    try:
        contract = read_contract(given.file, preset=given.preset, overrides=given.settings)
    except ContractErrors as errors:
        raise UserError(f"{given.file}: {len(errors.faults)} faults: " + " | ".join(map(str, errors.faults))) from None
    return contract if given.model is None else contract.model_copy(update={"model": ModelSpec(hf_repo=given.model)})


def _require_planned(contract: FineTuneContract, known: Mapping[str, StackInfo]) -> None:
    planned = plan(contract, known, _SURVEY)
    if not isinstance(planned, Refused):
        return
    absent = all(refusal.gate == "not_installed" for refusal in planned.refusals)
    count = len(planned.refusals)
    message = f"the contract is refused, for {count} reason{'s' * (count > 1)}: {_told(planned.refusals)}"
    raise MissingError(message) if absent else UserError(message)


def _told(against: Sequence[Refusal]) -> str:
    return " | ".join(f"{one.gate}: got {one.got}; allowed: {one.allowed}; {one.remedy}" for one in against)


def contract_record(given: ContractOptions | None, gated: Gated | None, checks: Sequence[Check]) -> ContractRecord | None:
    """What a run's record says of its contract; None where it has none.

    Args:
        checks: of the run.
    """
    if given is None or gated is None:
        return None
    paths = {stack: (*found.opened, *found.beyond) for stack, found in gated.own.paths.items()}
    asked = {check.id: _asked(check, gated.own) for check in checks if check.id in own_run.IDS}
    return ContractRecord(
        file=str(given.file), preset=given.preset, settings=given.settings, model=given.model, digest=gated.digest, asked=asked,
        paths=paths, declined=dict(gated.declined),
    )  # fmt: skip


def _asked(check: Check, own: OwnRun) -> tuple[str, ...]:
    """What of the run a check takes; why it takes nothing, if so."""
    if check.id == own_run.GRAPH:
        return tuple(cut.told for cut in own.cuts)
    return (check.title,) if check.plans else tuple({f"nothing: {why}": None for why in check.not_applicable.values()})
