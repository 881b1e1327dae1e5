"""What a stack declares before it is started."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from contract.worker import discover
from contract.worker.capabilities import Capabilities

PLAIN: dict[str, Any] = {
    "protocol": 1, "lane": "research", "extra": "", "packages": [], "devices": ["CPU", "GPU"], "requests": [], "operations": {},
}  # fmt: skip


def test_the_declarations_of_a_device() -> None:
    everywhere = {"function": "exp", "dtype": "float32", "low": -1, "high": 0, "ulp": 1, "absolute": 0}
    on_gpu = {**everywhere, "ulp": 2, "devices": ["GPU"]}
    capabilities = Capabilities.model_validate({**PLAIN, "elementary": [everywhere, on_gpu]})
    assert [one.ulp for one in capabilities.elementary_on("CPU")] == [1]
    assert [one.ulp for one in capabilities.elementary_on("GPU")] == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"lane": "main"}, {"protocol": 2}, {"devices": []}, {"operations": {"conv": ["float32"]}}, {"operations": {"matmul": ["int4"]}},
        {"strange": 1}, {"training": {}}, {"graphs": {"architectures": {}, "nf4": True}},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_declaration_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Capabilities.model_validate({**PLAIN, **wrong})


def test_a_stack_trains_only_what_it_opens() -> None:
    """A model type is in `training` only where tier C can pass for it: where the stack opens its graph."""
    for stack in discover.installed().values():
        training, graphs = stack.capabilities.training, stack.capabilities.graphs
        if stack.capabilities.lane == "witness":
            assert (training, graphs, stack.capabilities.operations) == (None, None, {})
            continue
        assert training is not None
        assert graphs is not None
        assert set(training.graphs.get("full_causal", ())) <= set(graphs.architectures)
        assert not any("nf4" in bases for bases in training.bases.values()) or graphs.nf4
        for compute_dtype in training.compute_dtypes:
            assert all(compute_dtype in dtypes for dtypes in graphs.architectures.values())
