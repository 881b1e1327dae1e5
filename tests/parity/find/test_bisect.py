"""Bisect names the operation that was changed, in the sections where it was, and no other; in either direction."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from contract.worker import taps
from contract.worker.process import StackProcess
from parity.find import bisect
from parity.find.fault import Fault
from tests.parity.graph_stack import CAPABILITIES, GraphStack, small_case, with_layout, with_lora

TINY = 1e-7
"""Less than a float32 comparison could see."""


def found(stack: GraphStack, *, which: int = 0, dtype: str = "float64") -> list[Fault]:
    case = small_case(which=which)
    plan = case.plan.model_copy(update={"dtype": dtype})
    return bisect.faults(case, plan, cast(StackProcess, stack), CAPABILITIES.elementary)


def by_operation(faults: list[Fault]) -> dict[str, tuple[str, ...]]:
    assert len({fault.operation for fault in faults}) == len(faults)
    return {fault.operation: fault.sections for fault in faults}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_right_stack_has_no_fault(which: int, dtype: str) -> None:
    assert found(GraphStack("right"), which=which, dtype=dtype) == []


def test_a_field_of_the_layout_is_named_by_the_operations_that_read_it() -> None:
    eps = found(GraphStack("wrong", change=with_layout(rms_norm_eps=0.02 * (1 + TINY))))
    assert by_operation(eps) == {
        "attention_norm": ("layers.0", "layers.1"),
        "mlp_norm": ("layers.0", "layers.1"),
        "final_norm": ("head",),
    }
    assert {fault.direction for fault in eps} == {"both"}
    theta = found(GraphStack("wrong", change=with_layout(rope_theta=70.0 * (1 + TINY))))
    assert by_operation(theta) == {"rope.cos": ("embedding",), "rope.sin": ("embedding",)}


def test_one_weight_of_one_layer() -> None:
    def weigh(name: str, weight: np.ndarray) -> np.ndarray:
        return weight.astype(np.float64) * (1 + TINY) if name == "layers.1.up_proj" else weight

    (fault,) = found(GraphStack("wrong", weigh=weigh))
    assert (fault.operation, fault.sections, fault.direction) == ("up_proj.base", ("layers.1",), "both")
    assert fault.stack == "wrong"
    assert fault.tensor == "up_proj.base"
    assert 0 < abs(fault.got / fault.wanted - 1) < TINY * 2
    assert TINY / 10 < fault.relative < TINY * 10
    assert fault.observed > fault.bound


def test_the_scale_of_lora_is_not_its_matrices() -> None:
    operations = by_operation(found(GraphStack("wrong", change=with_lora(alpha=7.5 * (1 + TINY)))))
    assert operations == dict.fromkeys(taps.LINEARS, ("layers.0", "layers.1"))


def test_independent_faults_are_all_listed() -> None:
    def weigh(name: str, weight: np.ndarray) -> np.ndarray:
        return weight.astype(np.float64) * (1 + TINY) if name in ("layers.0.v_proj", "final_norm") else weight

    stack = GraphStack("wrong", change=with_layout(rope_theta=70.0 * (1 + TINY)), weigh=weigh)
    assert set(by_operation(found(stack))) == {"rope.cos", "rope.sin", "v_proj.base", "final_norm"}


def test_a_tap_that_is_shown_and_not_used_is_no_single_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deceiver(GraphStack):
        def _block(self, values, tensors):  # type: ignore[no-untyped-def]
            answer = super()._block(values, tensors)
            if values["section"] == "layers.1" and not any(name.startswith("override.q_rope") for name in tensors):
                answer["output"] = answer["output"] * (1 + TINY)
            return answer

    (fault,) = found(Deceiver("wrong"))
    assert fault.operation == bisect.NO_SINGLE_OPERATION
    assert fault.sections == ("layers.1",)


def test_one_section_at_a_time_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bisect, "_free_bytes", lambda: 0)
    stack = GraphStack("wrong", change=with_layout(rms_norm_eps=0.021))
    assert "attention_norm" in by_operation(found(stack))
    sections = len(taps.sections(2))
    assert stack.asked.count("open") == sections
    monkeypatch.setattr(bisect, "_free_bytes", lambda: 2**40)
    stack = GraphStack("wrong", change=with_layout(rms_norm_eps=0.021))
    found(stack)
    assert stack.asked.count("open") == 1
