"""The verdict on two backends, from cycles of evidence: INVALID, else REJECT, else HOLD, else PROMOTE."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from contract.artifacts.promotion import Decision
from contract.worker.discover import version
from parity.scorecard import promotion_evidence as evidence
from parity.scorecard.cycle import Cycle
from parity.scorecard.promotion_metrics import Paired, paired
from parity.scorecard.promotion_needed import Needed, needed
from parity.scorecard.promotion_questions import answer
from parity.scorecard.promotion_rule import Rule
from parity.scorecard.promotion_validity import unsound
from parity.scorecard.promotion_verdict import EXIT_CODES, POOLED, Control, Family, Flips, Measured, Verdict
from parity.scorecard.statistics.sums import pooled


def judge(cycles: Sequence[Cycle], rule: Rule) -> Verdict:
    """Judges cycles, at least one, by the rule. Nothing is read or written here."""
    reasons = unsound(cycles, rule)
    if reasons:
        return _verdict("INVALID", reasons, cycles, rule, invalid=reasons)
    pairs = [paired(cycle, cycle.baseline, cycle.candidate) for cycle in cycles]
    controls = evidence.controls(cycles)
    measured = evidence.measured(cycles, pairs, rule)
    flips = tuple(evidence.flips(cycle, one, control) for cycle, one, control in zip(cycles, pairs, controls, strict=True))
    families, control = evidence.families(pairs), evidence.control(controls)
    found = {"measured": measured, "flips": flips, "families": families, "control": control, "questions": answer(cycles, rule)}
    if invalid := _control_failed(control, rule):
        return _verdict("INVALID", invalid, cycles, rule, invalid=invalid, **found)
    if vetoes := (*_incidents(cycles), *_vetoes(flips, families, rule)):
        return _verdict("REJECT", (*vetoes, *_shown(measured)), cycles, rule, vetoes=vetoes, **found)
    if shown := _shown(measured):
        return _verdict("REJECT", shown, cycles, rule, **found)
    open_ = [one for one in measured if one.passed is False]
    if open_:
        lacks = _lacks(open_, cycles, pairs, rule)
        reasons = (*(_not_shown(one) for one in open_), _words(lacks, len(cycles[0].tasks)))
        return _verdict("HOLD", reasons, cycles, rule, tasks_needed=lacks.tasks, seeds_needed=lacks.seeds, **found)
    return _verdict("PROMOTE", tuple(_within(one) for one in measured if one.scope == POOLED and one.passed), cycles, rule, **found)


def _verdict(decision: Decision, reasons: Sequence[str], cycles: Sequence[Cycle], rule: Rule, **found: object) -> Verdict:
    bindings = [cycle.binding for cycle in cycles]
    binding = bindings[0] if all(one == bindings[0] for one in bindings) else None
    files = {f"{cycle.name}/{file}": digest for cycle in cycles for file, digest in cycle.evidence.items()}
    return Verdict.model_validate({
        "twostack": version("twostack") or "not installed", "decision": decision, "exit_code": EXIT_CODES[decision],
        "reasons": tuple(reasons), "binding": binding, "cycles": tuple(cycle.name for cycle in cycles), "tasks": len(cycles[0].tasks),
        "rule_sha256": rule_sha256(rule), "evidence": files, **found,
    })  # fmt: skip


def rule_sha256(rule: Rule) -> str:
    """SHA-256 of the rule as canonical JSON."""
    return hashlib.sha256(json.dumps(rule.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _control_failed(control: Sequence[Control], rule: Rule) -> tuple[str, ...]:
    return tuple(
        f"A/A: the production backend differs from itself in {one.metric} by {one.loss:+.4f} (p = {one.p:.2g} < {rule.validity.control})"
        for one in control
        if one.p < rule.validity.control
    )


def _incidents(cycles: Sequence[Cycle]) -> tuple[str, ...]:
    """What a candidate must not do even once."""
    found = []
    for cycle in cycles:
        lane = cycle.candidate
        for count, what in ((lane.escapes, "left the sandbox"), (lane.nans, "met NaN or infinity"), (lane.parity_breaks, "broke parity")):
            if count:
                found.append(f"cycle {cycle.name}: the candidate {what} {count} time(s)")
    return tuple(found)


def _vetoes(flips: Sequence[Flips], families: Sequence[Family], rule: Rule) -> tuple[str, ...]:
    veto = rule.veto
    against = [
        f"cycle {one.scope}: McNemar against the candidate: {one.lost} tasks lost, {one.won} won (p = {one.mcnemar:.2g} < {veto.mcnemar})"
        for one in flips
        if one.mcnemar < veto.mcnemar
    ]
    down = [
        f"family {one.family} lost {one.loss:.1%} in semantics, over {veto.family_loss:.0%} (Holm: p = {one.p:.2g} < {veto.family_alpha})"
        for one in families
        if one.loss > veto.family_loss and one.p < veto.family_alpha
    ]
    return (*against, *down)


def _shown(measured: Sequence[Measured]) -> tuple[str, ...]:
    """Losses that the pooled evidence shows to be over the margin."""
    return tuple(
        f"{one.metric}: the loss is {one.loss:+.4f}, at least {one.lower:+.4f}, over the margin of {one.margin}"
        for one in measured
        if one.scope == POOLED and one.margin is not None and one.lower > one.margin
    )


def _lacks(open_: Sequence[Measured], cycles: Sequence[Cycle], pairs: Sequence[Paired], rule: Rule) -> Needed:
    sums = [(cycle.name, one.sums) for cycle, one in zip(cycles, pairs, strict=True)]
    sums.append((POOLED, pooled([one.sums for one in pairs])))
    return needed(open_, sums, tasks=len(cycles[0].tasks), seeds=len(cycles[0].baseline.trained), rule=rule)


def _words(lacks: Needed, tasks: int) -> str:
    if lacks.tasks is not None:
        return f"about {lacks.tasks} tasks would decide, if loss and spread stay as they are; there are {tasks}"
    if lacks.seeds is not None:
        return f"no number of tasks would decide, since training seeds differ too much; about {lacks.seeds} seeds a cycle would"
    return "neither tasks nor training seeds would decide: the loss lies too close to a margin"


def _not_shown(one: Measured) -> str:
    return f"{one.scope}: {one.metric}: the loss is {one.loss:+.4f}, at most {one.upper:+.4f}; allowed: below {one.margin}"


def _within(one: Measured) -> str:
    return f"{one.metric}: the loss is {one.loss:+.4f}, at most {one.upper:+.4f}, below {one.margin}"
