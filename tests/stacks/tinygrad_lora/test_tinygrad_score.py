"""The request `score`: one pass is the open graph's own, and the way through the cache is that pass; what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from contract.worker.score import LOGITS
from contract.worker.stack import NotSupported
from parity.checks import artifact_cache, artifact_judges
from parity.checks.artifact_case import ArtifactCase, on_disk
from parity.checks.graph_layouts import OPTIONS
from parity.judge.confidence import FALSE_ALARM
from stacks.tinygrad_lora.ops import TinygradLora
from tests.parity.graph_stack import CAPABILITIES, case_of


def score(stack: TinygradLora, case: ArtifactCase, **more: Any) -> np.ndarray:
    values = {"model": str(case.folder / "base"), "adapter": str(case.folder / "adapter"), "dtype": "float64"}
    tensors = {name: array for name, array in case.batch.tensors().items() if name != "labels"}
    return stack.score(tensors=tensors, **values | more).tensors[LOGITS]


def test_one_pass_is_the_open_graph_s_bit_for_bit(cpu: TinygradLora) -> None:
    case = on_disk(case_of(OPTIONS["llama"][0]))
    cpu.open("it", case.plan.model_dump(mode="json"), {**case.weights, **case.adapter})
    opened = cpu.forward("it", [LOGITS], {"ids": case.batch.ids}).tensors[LOGITS]
    plain = dataclasses.replace(case, batch=dataclasses.replace(case.batch, positions=None, segments=None))
    assert np.array_equal(score(cpu, plain), opened)


def test_what_can_t_be_scored_is_refused(cpu: TinygradLora, monkeypatch: pytest.MonkeyPatch) -> None:
    case = on_disk(case_of(OPTIONS["llama"][0]))
    with pytest.raises(ValueError, match="got no tensors; give ids"):
        cpu.score(model=str(case.folder / "base"))
    with pytest.raises(ValueError, match="prompt is 99; allowed"):
        score(cpu, case, prompt=99)
    monkeypatch.setattr(cpu, "_dtypes", ["float32"])
    with pytest.raises(NotSupported, match="no graph in float64"):
        score(cpu, case)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_way_through_the_cache_is_the_one_pass(cpu: TinygradLora, dtype: str) -> None:
    case = next(artifact_cache.cases())
    whole, declared = score(cpu, case, dtype=dtype).astype(np.float64), CAPABILITIES.elementary_on("CPU")
    for prompt in (1, 5, case.batch.ids.shape[1]):
        found = artifact_judges.logits(
            "cached", case, score(cpu, case, dtype=dtype, prompt=prompt), declared, dtype=dtype, false_alarm=FALSE_ALARM,
            expected=whole[:, prompt - 1 :], sides=2, first=prompt - 1,
        )  # fmt: skip
        assert found.passed, found
