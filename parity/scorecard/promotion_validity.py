"""Whether the evidence can be judged at all: each reason why it can't, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from parity.scorecard.cycle import Cycle, Lane
from parity.scorecard.promotion_metrics import in_order
from parity.scorecard.promotion_rule import Rule, Validity
from parity.scorecard.statistics.pairs import mcnemar

PARITY_PASSED = 0


def unsound(cycles: Sequence[Cycle], rule: Rule) -> tuple[str, ...]:
    """Why these cycles, as they were made, can't be compared; nothing here looks at what they scored."""
    needs = rule.validity
    reasons = [f"{len(cycles)} cycle(s), {needs.cycles} needed"] if len(cycles) < needs.cycles else []
    for cycle in cycles:
        for find in _OF_A_CYCLE:
            reasons += [f"cycle {cycle.name}: {reason}" for reason in find(cycle, needs)]
    reasons += _between(cycles)
    reasons += _used_twice(cycles)
    return tuple(dict.fromkeys(reasons))


def _seeds(cycle: Cycle, needs: Validity) -> Iterator[str]:
    baseline = {one.seed: one for one in cycle.baseline.trained}
    if len(baseline) < needs.seeds:
        yield f"{len(baseline)} training seed(s), {needs.seeds} needed"
    for name, lane in cycle.lanes().items():
        runs = {one.seed: one for one in lane.trained}
        if len({one.adapter_sha256 for one in lane.trained}) < len(lane.trained):
            yield f"{name} has one adapter for two training seeds"
        if runs.keys() != baseline.keys():
            yield f"{name} has training seeds {_listed(runs)}, baseline {_listed(baseline)}; they are pairs"
            continue
        for seed, one in runs.items():
            if one.initial_sha256 != baseline[seed].initial_sha256:
                yield f"{name} began seed {seed} from another initial adapter than baseline"
            if one.order_sha256 != baseline[seed].order_sha256:
                yield f"{name} took seed {seed}'s samples in another order than baseline"
    same = {one.adapter_sha256 for one in cycle.baseline.trained} & {one.adapter_sha256 for one in cycle.candidate.trained}
    if same:
        yield "candidate and baseline share a trained adapter; one of them was not trained"


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def _hashes(cycle: Cycle, needs: Validity) -> Iterator[str]:
    for name, lane in cycle.lanes().items():
        if missing := [one for one in needs.same if one not in lane.hashes]:
            yield f"{name} has no hash of {', '.join(missing)}"
        if name != "baseline" and (differs := _differs(lane.hashes, cycle.baseline.hashes)):
            yield f"{name} differs from baseline in {', '.join(differs)}"
    if cycle.changed:
        yield f"changed or gone since it was judged: {', '.join(cycle.changed)}"
    if not cycle.evidence:
        yield "it names no file of evidence"


def _differs(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _who(cycle: Cycle, needs: Validity) -> Iterator[str]:
    candidate, binding = cycle.candidate, cycle.binding
    if candidate.stack != binding.stack:
        yield f"the candidate is {candidate.stack}, the binding {binding.stack}"
    if candidate.stack == cycle.baseline.stack:
        yield f"candidate and baseline are both {candidate.stack}"
    if dict(candidate.packages) != dict(binding.packages):
        yield f"the candidate's packages differ from the binding's: {', '.join(_differs(candidate.packages, binding.packages))}"
    if candidate.hashes.get("base", binding.base_sha256) != binding.base_sha256:
        yield "the base that was trained on is not the binding's"
    if cycle.control is None:
        yield "no control: the production backend was not held against itself (A/A)"
    elif cycle.control.stack != cycle.baseline.stack or dict(cycle.control.packages) != dict(cycle.baseline.packages):
        yield f"the control is {cycle.control.stack}, the baseline {cycle.baseline.stack}, or of other packages"
    if len(set(cycle.families)) < needs.families:
        yield f"{len(set(cycle.families))} task families, {needs.families} needed"


def _harness(cycle: Cycle, needs: Validity) -> Iterator[str]:
    if cycle.gate is None:
        yield "no run of the parity gate"
    elif cycle.gate.digest != cycle.digest:
        yield f"the parity gate ran for {cycle.gate.digest[:16]}, the candidate's runs are {cycle.digest[:16]}"
    elif cycle.gate.exit_code != PARITY_PASSED:
        yield f"the parity gate is not green (exit code {cycle.gate.exit_code})"
    if cycle.canaries_failed:
        yield f"{len(cycle.canaries_failed)} reference solution(s) did not pass their own task, the first {cycle.canaries_failed[0]}"
    for name, lane in cycle.lanes().items():
        if name == "candidate":
            continue  # in a candidate these are a veto
        if lane.nans:
            yield f"{name} met NaN or infinity {lane.nans} time(s)"
        if lane.escapes:
            yield f"{name} left the sandbox {lane.escapes} time(s)"


def _counts(cycle: Cycle, needs: Validity) -> Iterator[str]:
    baseline = cycle.baseline.scores
    total = baseline.complete.size
    if not baseline.tokens[baseline.complete].sum() > 0:
        yield "baseline wrote no token, so that nothing can be said relative to it"
    for name, lane in cycle.lanes().items():
        infra = int(lane.scores.infra.sum())
        if infra > needs.infra_errors * lane.scores.infra.size:
            yield f"{name} has {infra} infrastructure errors in {lane.scores.infra.size} tasks, {needs.infra_errors:.2%} allowed"
        if name == "baseline" or lane.scores.complete.shape != baseline.complete.shape:
            continue
        pairs = int((baseline.complete[in_order(cycle.baseline)] & lane.scores.complete[in_order(lane)]).sum())
        if pairs < needs.complete_pairs * total:
            yield f"{pairs} of {total} pairs of baseline and {name} are complete, {needs.complete_pairs:.2%} needed"
        p = mcnemar(infra, int(baseline.infra.sum()))
        if p < needs.infra_balance:
            yield f"infrastructure errors fall on {name} and baseline unevenly: {infra} and {int(baseline.infra.sum())} (p = {p:.2g})"


_OF_A_CYCLE: tuple[Callable[[Cycle, Validity], Iterator[str]], ...] = (_seeds, _hashes, _who, _harness, _counts)


def _between(cycles: Sequence[Cycle]) -> Iterator[str]:
    """What must be the same from cycle to cycle."""
    same: dict[str, Callable[[Cycle], object]] = {
        "binding": lambda cycle: cycle.binding,
        "parity digest": lambda cycle: cycle.digest,
        "tasks": lambda cycle: (cycle.tasks, cycle.families),
        "limits of the repair loop": lambda cycle: (cycle.max_attempts, cycle.max_milliseconds),
        "baseline": lambda cycle: (cycle.baseline.stack, dict(cycle.baseline.packages)),
    }
    for first, second in pairwise(cycles):
        differs = [name for name, of in same.items() if of(first) != of(second)]
        differs += _differs(first.baseline.hashes, second.baseline.hashes)
        if differs:
            yield f"cycles {first.name} and {second.name} differ in {', '.join(differs)}"
    if len({cycle.name for cycle in cycles}) < len(cycles):
        yield "two cycles have one name"


def _used_twice(cycles: Sequence[Cycle]) -> Iterator[str]:
    """Each cycle has fresh adapters: what was trained or scored for one is no evidence for another."""
    fresh: dict[str, Callable[[Lane], set[str]]] = {
        "an initial adapter": lambda lane: {one.initial_sha256 for one in lane.trained},
        "a trained adapter": lambda lane: {one.adapter_sha256 for one in lane.trained},
    }
    for number, first in enumerate(cycles):
        for second in cycles[number + 1 :]:
            for what, of in fresh.items():
                if any(of(one) & of(other) for one in first.lanes().values() for other in second.lanes().values()):
                    yield f"cycles {first.name} and {second.name} share {what}"
