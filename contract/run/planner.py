"""May a run be, and how: a plan, or every reason why not."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from contract.run import digest
from contract.run.device_memory import format_size
from contract.run.facts import Facts, Refusal
from contract.run.gates import refusals
from contract.run.memory import Estimate
from contract.run.proxy import middle_blocks
from contract.run.spec import Base, FineTuneContract, Graph, Objective
from contract.run.survey import Options, Survey, survey
from contract.worker.discover import StackInfo


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ProxyPlan(_Frozen):
    """The proxy graph's middle blocks: whether they will be trained, and what of them the checkpoint has."""

    eligible: bool
    complete: bool
    keys_matched: int
    keys_expected: int


class RowPlan(_Frozen):
    """Rows of the train file, those that the filters leave, and those of them that are held back for validation."""

    total: int
    kept: int
    held_back: int
    left_out: dict[str, int] = Field(description="reason -> rows")


class MemoryPlan(_Frozen):
    """Bytes: what the run takes at its peak, by share, and what the device has; None where that is not known."""

    shares: Estimate | None
    total: int | None
    device_total: int | None
    device_free: int | None
    device_source: str | None


class ExecutionPlan(_Frozen):
    """A run that every gate lets through.

    compat_mode: the graph is no whole transformer. steps: optimiser steps; None with packing, which needs every row's length.
    """

    stack: str
    digest: str
    parity_digest: str
    graph: Graph
    objective: Objective
    base: Base
    device: str
    model_type: str
    parameters: int
    compat_mode: bool
    proxy_stack: ProxyPlan | None
    rows: RowPlan
    steps: int | None
    memory: MemoryPlan
    notes: tuple[str, ...]


class Refused(_Frozen):
    """A run that may not be, and all the reasons."""

    refusals: tuple[Refusal, ...] = Field(min_length=1)


_NO_OPTIONS = Options()


def plan(contract: FineTuneContract, stacks: Mapping[str, StackInfo], options: Options = _NO_OPTIONS) -> ExecutionPlan | Refused:
    """Asks every gate; no weight is read, but for the hash that a promotion record is held against.

    Raises:
        EnvironmentUnfit: the cache folder can't be written.
    """
    found = survey(contract, stacks, options)
    refused = found.faults + refusals(found.facts)
    return Refused(refusals=refused) if refused else _plan(found)


def _plan(found: Survey) -> ExecutionPlan:
    facts, contract = found.facts, found.facts.contract
    assert facts.stack is not None
    assert facts.inspected is not None
    assert facts.rows is not None
    assert found.index is not None
    return ExecutionPlan(
        stack=facts.stack,
        digest=digest.digest(contract),
        parity_digest=digest.parity_digest(contract),
        graph=contract.graph,
        objective=contract.objective,
        base=contract.quant.base,
        device=contract.exec.device,
        model_type=facts.inspected.layout.model_type,
        parameters=facts.inspected.parameters,
        compat_mode=contract.graph == "qlora_proxy_v1",
        proxy_stack=_proxy(facts),
        rows=RowPlan(
            total=facts.rows.total, kept=facts.rows.kept, held_back=facts.rows.held_back, left_out=dict(found.index.left_out)
        ),
        steps=facts.steps,
        memory=_memory(facts),
        notes=tuple(_notes(facts)),
    )  # fmt: skip


def _proxy(facts: Facts) -> ProxyPlan | None:
    run = facts.contract.exec
    if facts.contract.graph != "qlora_proxy_v1" or facts.proxy is None:
        return None
    return ProxyPlan(
        eligible=middle_blocks(run, expected=facts.proxy.expected, matched=facts.proxy.matched) > 0,
        complete=facts.proxy.matched == facts.proxy.expected,
        keys_matched=facts.proxy.matched,
        keys_expected=facts.proxy.expected,
    )


def _memory(facts: Facts) -> MemoryPlan:
    device = facts.device_memory
    return MemoryPlan(
        shares=facts.estimate,
        total=None if facts.estimate is None else facts.estimate.total,
        device_total=None if device is None else device.total,
        device_free=None if device is None else device.available,
        device_source=None if device is None else device.source,
    )


def _notes(facts: Facts) -> list[str]:
    """What is true of the run and no reason to refuse it."""
    contract, memory = facts.contract, facts.device_memory
    assert facts.capabilities is not None
    assert facts.layout is not None
    notes = list(facts.layout.notes)
    if "train" not in facts.capabilities.requests:
        notes.append(f"stack {facts.stack} does not answer the request `train` yet: the run can be planned and not started")
    if facts.estimate is None:
        notes.append(f"stack {facts.stack} declares nothing of its memory for this run on {contract.exec.device}: not checked")
    elif memory is None:
        notes.append(f"the memory of {contract.exec.device} is not known, and was not checked; --device-memory tells it")
    elif memory.available is not None and facts.estimate.total > memory.available:
        notes.append(f"now only {format_size(memory.available)} are free on {contract.exec.device}, less than the run takes")
    if memory is None:
        notes.append(f"whether {contract.exec.device} is here was not looked at: parity doctor does, and so does the run when it begins")
    if facts.proxy is not None and contract.graph == "qlora_proxy_v1" and facts.proxy.matched < facts.proxy.expected:
        notes.append(f"{facts.proxy.matched} of {facts.proxy.expected} middle keys: the LM head alone is trained")
    if contract.data.tokenizer_mode == "vox" and facts.has_tokenizer:
        notes.append("tokenizer vox, and the model has a tokenizer.json: its embedding knows that one's ids; take data.tokenizer_mode hf")
    if contract.exec.packing:
        notes.append("with packing the number of steps depends on the rows' lengths: the warm-up is checked when the run begins")
    if contract.artifact.deployment_target == "mobile_edge":
        notes.append("deployment target mobile_edge: its limits are kept; conversion for a phone is no part of this program")
    if contract.artifact.allow_placeholder_attention_merge:
        notes.append("allow_placeholder_attention_merge: the artifacts will say that they claim no full attention fidelity")
    return notes
