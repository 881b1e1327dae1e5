"""Verdicts on artifacts: what files say, bit for bit; what a stack makes of them, by the response to perturbation (docs/theory.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from contract.artifacts.saved import ADAPTER, PEFT
from contract.data.batches import PADDING
from contract.worker.capabilities import Elementary
from contract.worker.score import LOGITS
from parity.checks import graph_judges
from parity.checks.artifact_case import AFTER, BEFORE, FILES, MERGED, ArtifactCase, read_files
from parity.checks.artifact_files import AS_PEFT, AS_V2, AS_V3, BACK_TO_V2, FULL_CIRCLE, V2
from parity.checks.check import Answered, Arrays, Case
from parity.checks.graph_case import GraphCase
from parity.judge import perturb, verdict
from parity.judge.verdict import Comparison
from parity.reference import artifact
from parity.reference.artifact import Linear, Meaning

_PEFTS = ("adapter_config.json", "adapter_model.safetensors")

SAME_BYTES = "the same bytes for the same adapter (docs/artifacts.md)"
SAVED = "what is saved is the adapter, to the last bit"
SAME_MERGE = "the bits of the merge of files (docs/artifacts.md, The merge)"


def logits(
    label: str, case: GraphCase, observed: np.ndarray, declared: Sequence[Elementary], *, dtype: str, false_alarm: float,
    expected: np.ndarray | None = None, sides: int | None = None, first: int = 0,
) -> Comparison:  # fmt: skip
    """Logits within what rounding does to the case's graph.

    Args:
        expected: None: the reference's, which in float64 errs as much as what it judges.
        sides: how many graphs' errors lie between the two; 2 of two stacks.
        first: the token that the first row belongs to.
    """
    trace, response = graph_judges.reference(case, declared)
    if expected is None:
        expected, sides = trace.taps[LOGITS][:, first:], 2 if dtype == "float64" else 1
    own = _own_tokens(case)[:, first:]
    limits = perturb.row_limits(
        response.rows[LOGITS][:, first:][own], dtype=dtype, runs=response.runs, false_alarm=false_alarm / own.sum(), sides=sides or 2
    )
    source = f"{response.runs} perturbed runs of the float64 reference, false alarm {false_alarm:.1e} (docs/theory.md)"
    return dataclasses.replace(verdict.rows(label, observed[own], expected[own], limits, source), place=f"{LOGITS} of {label}")


def _own_tokens(case: GraphCase) -> np.ndarray:
    """True where a token is no padding, [B, T]."""
    segments = case.batch.segments
    own: np.ndarray = np.ones(case.batch.ids.shape, bool) if segments is None else segments != PADDING
    return own


def same_bytes(name: str, observed: np.ndarray, expected: np.ndarray, source: str = SAME_BYTES) -> Comparison:
    """Two files; a shorter one goes on with what no byte is."""
    longest = max(observed.size, expected.size, 1)
    first, second = (np.pad(one.astype(np.int16), (0, longest - one.size), constant_values=-1) for one in (observed, expected))
    return verdict.identical(name, first, second, source)


def same_meaning(label: str, observed: Meaning, expected: Meaning) -> list[Comparison]:
    """The same linears with the same scale and matrices, bit for bit."""
    found = [verdict.at_most(f"{label}: linears missing or extra", float(len(set(observed) ^ set(expected))), 0.0, "linears", SAVED)]
    for part in ("scale", "a_RI", "b_OR"):
        first = {path: _values(observed.get(path), part, one) for path, one in expected.items()}
        second = {path: _values(one, part, one) for path, one in expected.items()}
        found.append(_identical(f"{label}: {part.partition('_')[0]}", first, second, SAVED))
    return found


def _identical(label: str, observed: Arrays, expected: Arrays, source: str) -> Comparison:
    """Arrays by path, bit for bit, in one comparison; its place is the path of the first that differs."""
    paths = sorted(expected)
    first, second = (np.concatenate([one[path].reshape(-1) for path in paths]) for one in (observed, expected))
    found = verdict.identical(label, first, second, source)
    if found.where is None:
        return found
    ends = np.cumsum([expected[path].size for path in paths])
    number = int(np.searchsorted(ends, found.where[0], side="right"))
    path = paths[number]
    inside = np.unravel_index(found.where[0] - int(ends[number]) + expected[path].size, expected[path].shape)
    return dataclasses.replace(found, place=f"{label} of {path}", where=tuple(int(one) for one in inside))


def _values(linear: Linear | None, part: str, expected: Linear) -> np.ndarray:
    """A part of what lies on a linear; NaN, which is equal to nothing, where it is missing or of another shape."""
    wanted = np.asarray(getattr(expected, part))
    if linear is None or np.shape(found := np.asarray(getattr(linear, part))) != wanted.shape:
        return np.full(wanted.shape, np.nan, wanted.dtype)
    return found


# What the checks ask


def saved(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Each file of one stack: what it means, and its bytes."""
    assert isinstance(case, ArtifactCase)
    (answer,) = answered[0].answers
    return [*meanings(case, answer), *(same_bytes(name, answer[name], case.files()[name]) for name in FILES)]


def meanings(case: ArtifactCase, files: Arrays) -> list[Comparison]:
    """v2, v3 and PEFT's files against the adapter that was drawn."""
    expected = artifact.drawn(case.plan.lora, case.adapter)
    tensors, v2, v3, config, peft = (files[name].tobytes() for name in FILES)
    return [
        *same_meaning("v2", artifact.ours(v2, tensors), expected),
        *same_meaning("v3", artifact.ours(v3, tensors), expected),
        *same_meaning("PEFT", artifact.pefts(config, peft), expected),
    ]


def saved_alike(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Two stacks' files, byte for byte."""
    (first,), (second,) = (stack.answers for stack in answered)
    return [same_bytes(name, first[name], second[name]) for name in FILES]


def conversions(case: ArtifactCase) -> list[Comparison]:
    """Round trips: the same bytes where the format says so, the same meaning everywhere."""
    files, expected = read_files(case.folder), artifact.drawn(case.plan.lora, case.adapter)
    v3, v2 = ("populi_adapter_manifest_v3.json", "candle_qlora_adapter_meta.json")
    names = ("candle_qlora_adapter.safetensors", v2, v3)
    found = [same_bytes(f"v3 -> v2 -> v3: {name}", files[f"{AS_V3}/{name}"], files[f"{ADAPTER}/{name}"]) for name in names]
    found += [same_bytes(f"v3 -> v2: {name}", files[f"{AS_V2}/{name}"], files[f"{V2}/{name}"]) for name in names[:2]]
    found += [same_bytes(f"v3 -> v2 -> PEFT: {name}", files[f"{AS_PEFT}/{name}"], files[f"{PEFT}/{name}"]) for name in _PEFTS]
    for label, folder, description in (("v3", FULL_CIRCLE, v3), ("v2", BACK_TO_V2, v2)):
        read = artifact.ours(files[f"{folder}/{description}"].tobytes(), files[f"{folder}/{names[0]}"].tobytes())
        found += same_meaning(f"v3 -> v2 -> PEFT -> {label}", artifact.by_part(read), expected)
    return found


def merged(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """W' in the bits of the formula and of the merge of files; the merged graph's logits are those of W', and of the adapter."""
    assert isinstance(case, ArtifactCase)
    (answer,), declared = answered[0].answers, answered[0].elementary
    dtype = answer[f"{BEFORE}{LOGITS}"].dtype.name
    wanted, of_files = case.merged(), case.merged_files()
    observed = {name.removeprefix(MERGED): array for name, array in answer.items() if name.startswith(MERGED)}
    found = [
        same_weights("W'", observed, wanted),
        *(same_weights(f"W' and {layout}", {path: observed[path] for path in one}, one) for layout, one in of_files.items()),
    ]
    after = case.after_merge(wanted)
    found.append(logits("after merging", after, answer[f"{AFTER}{LOGITS}"], declared, dtype=dtype, false_alarm=false_alarm / 2))
    return [*found, _as_with_the_adapter(case, after, answer, declared, dtype, false_alarm / 2)]


def same_weights(label: str, observed: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> Comparison:
    """Matrices by path, bit for bit."""
    return _identical(label, observed, expected, SAME_MERGE)


def _as_with_the_adapter(
    case: ArtifactCase, after: GraphCase, answer: Arrays, declared: Sequence[Elementary], dtype: str, false_alarm: float
) -> Comparison:
    """Merging changes the logits by what the rounding of W' to float32 does, which the reference tells, and by nothing else."""
    with_adapter, _ = graph_judges.reference(case, declared)
    without, _ = graph_judges.reference(after, declared)
    rounding = without.taps[LOGITS] - with_adapter.taps[LOGITS]
    expected = answer[f"{BEFORE}{LOGITS}"].astype(np.float64) + rounding
    return logits(
        "merged as with the adapter", case, answer[f"{AFTER}{LOGITS}"].astype(np.float64), declared, dtype=dtype, false_alarm=false_alarm,
        expected=expected, sides=4 if dtype == "float64" else 2,
    )  # fmt: skip


def merged_alike(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Two stacks' W' bit for bit, and their merged graphs' logits."""
    assert isinstance(case, ArtifactCase)
    (first,), (second,) = (stack.answers for stack in answered)
    names = [name for name in first if name.startswith(MERGED)]
    declared = [one for stack in answered for one in stack.elementary]
    after = case.after_merge({name.removeprefix(MERGED): case.merged()[name.removeprefix(MERGED)] for name in names})
    return [
        same_weights("W'", {name: first[name] for name in names}, {name: second[name] for name in names}),
        logits(
            "after merging", after, first[f"{AFTER}{LOGITS}"], declared, dtype="float64", false_alarm=false_alarm,
            expected=second[f"{AFTER}{LOGITS}"], sides=2,
        ),
    ]  # fmt: skip
