"""Each reason why cycles can't be judged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest

from parity.scorecard.cycle import Cycle, Gate, Lane
from parity.scorecard.promotion import judge
from parity.scorecard.promotion_rule import read_rule
from tests.parity.scorecard import made_cycles as made

RULE = read_rule()
FIRST, SECOND = made.pair()
NARROW = made.cycle("first", tasks=200)


def lane(name: str, **changes: object) -> list[Cycle]:
    return [made.with_lane(FIRST, name, **changes), SECOND]


def both(**changes: object) -> list[Cycle]:
    return [dataclasses.replace(cycle, **changes) for cycle in (FIRST, SECOND)]


def of_first(**changes: object) -> list[Cycle]:
    return [dataclasses.replace(FIRST, **changes), SECOND]


def trained(name: str, number: int, **changes: object) -> list[Cycle]:
    runs = list(getattr(FIRST, name).trained)
    runs[number] = dataclasses.replace(runs[number], **changes)
    return lane(name, trained=tuple(runs))


def spoiled(name: str, *, lost: int = 0, infra: int = 0) -> list[Cycle]:
    """Outcomes that never came about, or that the machine spoiled."""
    scores = getattr(FIRST, name).scores
    complete, broken = scores.complete.copy(), scores.infra.copy()
    complete.flat[: lost + infra] = False
    broken.flat[:infra] = True
    return [made.with_scores(FIRST, name, complete=complete, infra=broken), SECOND]


def two_seeds() -> list[Cycle]:
    def cut(one: Lane) -> Lane:
        scores = {field.name: getattr(one.scores, field.name)[:2] for field in dataclasses.fields(one.scores)}
        return dataclasses.replace(one, trained=one.trained[:2], scores=dataclasses.replace(one.scores, **scores))

    return [dataclasses.replace(FIRST, **{name: cut(one) for name, one in FIRST.lanes().items()}), SECOND]


def fewer_families() -> list[Cycle]:
    families = tuple(made.FAMILIES[number % 19] for number in range(800))
    return both(families=families)


def a_differing_control() -> list[Cycle]:
    return [made.with_lane(cycle, "control", scores=made.scores(np.zeros((3, 800), dtype=bool))) for cycle in (FIRST, SECOND)]


def no_tokens() -> list[Cycle]:
    return [made.with_scores(FIRST, "baseline", tokens=np.zeros((3, 800))), SECOND]


OTHER = made.sha("another")
CASES: dict[str, tuple[Callable[[], list[Cycle]], str]] = {
    "one cycle": (lambda: [FIRST], r"1 cycle\(s\), 2 needed"),
    "one cycle twice": (lambda: [FIRST, FIRST], "share a trained adapter"),
    "adapters of the other cycle": (
        lambda: [FIRST, made.with_lane(SECOND, "candidate", trained=FIRST.candidate.trained)],
        "share an initial adapter",
    ),
    "names": (lambda: [FIRST, dataclasses.replace(SECOND, name="first")], "one name"),
    "two seeds": (two_seeds, r"2 training seed\(s\), 3 needed"),
    "other seeds": (lambda: trained("candidate", 0, seed=99), "candidate has training seeds 12, 13, 99, baseline 11, 12, 13"),
    "other start": (lambda: trained("candidate", 1, initial_sha256=OTHER), "seed 12 from another initial adapter"),
    "other start of the control": (lambda: trained("control", 1, initial_sha256=OTHER), "control began seed 12"),
    "other order": (lambda: trained("candidate", 2, order_sha256=OTHER), "seed 13's samples in another order"),
    "one adapter twice": (
        lambda: trained("candidate", 1, adapter_sha256=FIRST.candidate.trained[0].adapter_sha256),
        "one adapter for two training seeds",
    ),
    "baseline's adapter": (
        lambda: trained("candidate", 1, adapter_sha256=FIRST.baseline.trained[1].adapter_sha256),
        "candidate and baseline share a trained adapter",
    ),
    "other data": (lambda: lane("candidate", hashes={**made.HASHES, "data": OTHER}), "candidate differs from baseline in data"),
    "other runtime of the control": (lambda: lane("control", hashes={**made.HASHES, "runtime": OTHER}), "control differs .* in runtime"),
    "a hash of one lane": (lambda: lane("candidate", hashes={**made.HASHES, "prompts": OTHER}), "differs from baseline in prompts"),
    "no hash": (
        lambda: lane("baseline", hashes={name: value for name, value in made.HASHES.items() if name != "suite"}),
        "baseline has no hash of suite",
    ),
    "hashes between cycles": (
        lambda: [FIRST, dataclasses.replace(SECOND, **{
            name: dataclasses.replace(one, hashes={**made.HASHES, "suite": OTHER}) for name, one in SECOND.lanes().items()
        })],
        "first and second differ in suite",
    ),
    "tasks between cycles": (lambda: [NARROW, SECOND], "differ in tasks"),
    "limits between cycles": (lambda: of_first(max_attempts=4), "differ in limits"),
    "binding between cycles": (
        lambda: of_first(binding=made.BINDING.model_copy(update={"suite": "another 1"})),
        "differ in binding",
    ),
    "digest between cycles": (lambda: of_first(digest=OTHER, gate=Gate(digest=OTHER, exit_code=0)), "differ in parity digest"),
    "baseline between cycles": (
        lambda: [dataclasses.replace(FIRST, **{
            name: dataclasses.replace(getattr(FIRST, name), packages={"twostack": "0.2.0"}) for name in ("baseline", "control")
        }), SECOND],
        "differ in baseline",
    ),
    "changed evidence": (lambda: of_first(changed=("events.jsonl",)), r"changed or gone since it was judged: events\.jsonl"),
    "no evidence": (lambda: of_first(evidence={}), "names no file of evidence"),
    "another candidate": (lambda: lane("candidate", stack="mlx_lora"), "the candidate is mlx_lora, the binding tinygrad_lora"),
    "one stack": (lambda: lane("baseline", stack=made.RESEARCH), "candidate and baseline are both"),
    "other packages": (lambda: lane("candidate", packages={"twostack": "0.1.0", "tinygrad": "0.15.0"}), "the binding's: tinygrad"),
    "another base": (
        lambda: both(binding=made.BINDING.model_copy(update={"base_sha256": OTHER})),
        "the base that was trained on is not the binding's",
    ),
    "no control": (lambda: of_first(control=None), r"no control: .* \(A/A\)"),
    "another control": (lambda: lane("control", stack="mlx_lora"), "the control is mlx_lora"),
    "few families": (fewer_families, "19 task families, 20 needed"),
    "no gate": (lambda: both(gate=None), "no run of the parity gate"),
    "another digest's gate": (lambda: both(gate=Gate(digest=OTHER, exit_code=0)), "the parity gate ran for"),
    "a red gate": (lambda: both(gate=Gate(digest=made.sha("digest"), exit_code=1)), r"not green \(exit code 1\)"),
    "a gate not covered": (lambda: both(gate=Gate(digest=made.sha("digest"), exit_code=4)), r"not green \(exit code 4\)"),
    "canaries": (lambda: of_first(canaries_failed=("task 7",)), "1 reference solution.* the first task 7"),
    "NaN of the baseline": (lambda: lane("baseline", nans=1), "baseline met NaN"),
    "escape of the control": (lambda: lane("control", escapes=2), "control left the sandbox 2"),
    "incomplete pairs": (lambda: spoiled("candidate", lost=25), "2375 of 2400 pairs of baseline and candidate are complete"),
    "infrastructure": (lambda: spoiled("baseline", infra=25), "baseline has 25 infrastructure errors in 2400 tasks"),
    "unbalanced": (lambda: spoiled("candidate", infra=10), "unevenly: 10 and 0"),
    "no tokens": (no_tokens, "baseline wrote no token"),
    "A/A": (a_differing_control, "A/A: the production backend differs from itself in semantics"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_reason(case: str) -> None:
    make, said = CASES[case]
    verdict = judge(make(), RULE)
    assert (verdict.decision, verdict.exit_code) == ("INVALID", 12)
    assert verdict.invalid == verdict.reasons
    assert any(re.search(said, reason) for reason in verdict.invalid), verdict.invalid


@pytest.mark.parametrize(("lost", "infra"), [(24, 0), (0, 7)])
def test_just_inside_the_limits(lost: int, infra: int) -> None:
    """99 % of 2,400 pairs; 7 errors against none: p = 2 / 2^7 > 0.01."""
    assert judge(spoiled("candidate", lost=lost, infra=infra), RULE).decision == "PROMOTE"


def test_seeds_in_another_order_are_the_same_pairs() -> None:
    def turned(one: Lane) -> Lane:
        scores = {field.name: getattr(one.scores, field.name)[::-1] for field in dataclasses.fields(one.scores)}
        return dataclasses.replace(one, trained=one.trained[::-1], scores=dataclasses.replace(one.scores, **scores))

    assert judge([dataclasses.replace(FIRST, candidate=turned(FIRST.candidate)), SECOND], RULE) == judge([FIRST, SECOND], RULE)
