"""The request `score`: one pass is the open graph's own, and the way through the cache is that pass; what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from contract.errors import ContractError
from contract.worker.score import LOGITS
from parity.checks import artifact_cache, artifact_judges
from parity.checks.artifact_case import ArtifactCase, on_disk
from parity.checks.graph_layouts import OPTIONS
from parity.judge.confidence import FALSE_ALARM
from stacks.torch_qlora.ops import TorchQlora
from tests.parity.graph_stack import CAPABILITIES, case_of


@pytest.fixture(scope="module")
def case() -> ArtifactCase:
    """Padded on the left, and longer than its window."""
    return next(artifact_cache.cases())


def score(case: ArtifactCase, **more: Any) -> np.ndarray:
    values = {"model": str(case.folder / "base"), "adapter": str(case.folder / "adapter"), "dtype": "float64"}
    tensors = {name: array for name, array in case.batch.tensors().items() if name != "labels"}
    return TorchQlora("CPU").score(tensors=tensors, **values | more).tensors[LOGITS]


def test_one_pass_is_the_open_graph_s_bit_for_bit() -> None:
    case, stack = on_disk(case_of(OPTIONS["llama"][0])), TorchQlora("CPU")
    stack.open("it", case.plan.model_dump(mode="json"), {**case.weights, **case.adapter})
    opened = stack.forward("it", [LOGITS], {"ids": case.batch.ids, "labels": case.batch.labels}).tensors[LOGITS]
    plain = dataclasses.replace(case, batch=dataclasses.replace(case.batch, positions=None, segments=None))
    for adapter in ("adapter", "v2", "peft"):
        assert np.array_equal(score(plain, adapter=str(case.folder / adapter)), opened)
    assert not np.array_equal(score(plain, adapter=None), opened)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_way_through_the_cache_is_the_one_pass(case: ArtifactCase, dtype: str) -> None:
    whole = score(case, dtype=dtype).astype(np.float64)
    declared = CAPABILITIES.elementary_on("CPU")
    for prompt in (1, 5, case.batch.ids.shape[1]):
        found = artifact_judges.logits(
            "cached", case, score(case, dtype=dtype, prompt=prompt), declared, dtype=dtype, false_alarm=FALSE_ALARM,
            expected=whole[:, prompt - 1 :], sides=2, first=prompt - 1,
        )  # fmt: skip
        assert found.passed, found


def test_bfloat16_logits_are_bfloat16(case: ArtifactCase) -> None:
    assert score(case, dtype="bfloat16", prompt=5).dtype.name == "bfloat16"


def test_what_can_t_be_scored_is_refused(case: ArtifactCase) -> None:
    with pytest.raises(ValueError, match="got no tensors; give ids"):
        TorchQlora("CPU").score(model=str(case.folder / "base"))
    with pytest.raises(ValueError, match="prompt is 99; allowed"):
        score(case, prompt=99)
    with pytest.raises(ContractError, match="nowhere"):
        score(case, adapter=str(case.folder / "nowhere"))
