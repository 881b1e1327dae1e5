"""The stack in its own process: what it answers, what it finds wrong with bitsandbytes, and its guards switched off."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from contract.worker.process import Mutation, RequestFailed, StackProcess
from stacks.torch_qlora import probe

COMMAND = (sys.executable, "-m", "stacks.torch_qlora.worker")
SHAPE = {"block_size": 64, "out_features": 60, "in_features": 160}
GUARDS_OFF = [
    Mutation(
        "stacks.torch_qlora.nf4",
        'return device.type == "cpu" and in_features % block_size != 0',
        "return False",
    ),
]


@pytest.fixture(scope="module")
def stack() -> Iterator[StackProcess]:
    with StackProcess("torch_qlora", COMMAND, "CPU") as process:
        yield process


def _quantized(stack: StackProcess) -> dict[str, np.ndarray]:
    weight = np.random.default_rng(0).standard_normal((60, 160)).astype(np.float32)
    tensors = stack.compute("nf4_quantize", {"block_size": 64}, {"weight": weight}).tensors
    return {name: tensors[name] for name in ("packed", "absmax")}


def test_probe_is_quick_and_names_every_known_defect(stack: StackProcess) -> None:
    started = time.monotonic()
    values = stack.request("probe").values
    assert time.monotonic() - started < 2.0
    assert sorted(values) == ["defects", "device", "dtypes", "name", "notes", "threads", "versions"]
    assert values["device"] == "CPU"
    assert sorted(values["defects"]) == sorted(probe.DEFECTS)
    assert all(isinstance(shows, bool) for shows in values["defects"].values())


def test_starting_writes_nothing_to_the_log(stack: StackProcess) -> None:
    stack.start()
    assert stack.log_tail() == ""


def test_float64_is_refused_through_the_pipe(stack: StackProcess) -> None:
    with pytest.raises(RequestFailed, match="NotSupported: torch_qlora does not compute nf4_linear in float64"):
        stack.compute("nf4_linear", {**SHAPE, "dtype": "float64"}, {"x": np.ones((1, 160)), **_quantized(stack)})


def test_without_its_guard_the_kernels_defect_comes_through(stack: StackProcess) -> None:
    """Both ways to a dequantised weight go wrong exactly where the probe says that the kernel is."""
    quantized, x = _quantized(stack), np.ones((2, 160), np.float32)
    with StackProcess("torch_qlora", COMMAND, "CPU", mutations=GUARDS_OFF) as unguarded:
        shows = unguarded.request("probe").values["defects"]["bitsandbytes-cpu-dequantize-shape"]
        for op, tensors in (("nf4_dequantize", quantized), ("nf4_linear", {"x": x, **quantized})):
            (guarded,) = stack.compute(op, SHAPE, tensors).tensors.values()
            (raw,) = unguarded.compute(op, SHAPE, tensors).tensors.values()
            assert (not np.array_equal(guarded, raw)) == shows
