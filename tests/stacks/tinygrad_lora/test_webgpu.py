"""The tinygrad stack on WebGPU: on a machine without a GPU, Mesa's lavapipe (see ci/system-packages.sh)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from contract.worker.discover import discover
from contract.worker.process import RequestFailed, StackProcess
from parity.reference import nf4

pytestmark = pytest.mark.webgpu


@pytest.fixture(scope="module")
def webgpu() -> Iterator[StackProcess]:
    with StackProcess("tinygrad_lora", discover()["tinygrad_lora"].command, "WEBGPU") as process:
        yield process


def near_midpoints(generator: np.random.Generator, shape: tuple[int, int], block_size: int) -> np.ndarray:
    """Weights on the midpoints and one ulp to either side, with an absmax of its own per block; one block is zero."""
    elements = shape[0] * shape[1]
    absmax = generator.uniform(0.1, 3, -(-elements // block_size)).astype(np.float32)
    scale = np.repeat(absmax, block_size)[:elements]
    weight = (generator.choice(nf4.MIDPOINTS, elements) * scale).astype(np.float32)
    toward = generator.choice(np.array([-np.inf, 0, np.inf], np.float32), elements)
    weight = np.where(toward == 0, weight, np.nextafter(weight, toward)).astype(np.float32)
    weight[::block_size] = absmax * generator.choice(np.array([-1, 1], np.float32), absmax.size)
    weight[block_size : 2 * block_size] = 0
    return weight.reshape(shape)


def test_the_probe_says_that_float64_is_absent(webgpu: StackProcess) -> None:
    values = webgpu.request("probe").values
    assert values["device"] == "WEBGPU"
    assert "float32" in values["dtypes"]
    assert "float64" not in values["dtypes"]


def test_float64_is_refused(webgpu: StackProcess) -> None:
    with pytest.raises(RequestFailed, match="float64") as caught:
        webgpu.compute("matmul", {"dtype": "float64"}, {"a": np.ones((2, 3)), "b": np.ones((3, 4))})
    assert caught.value.error_class == "NotSupported"


@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 1, 1), (7, 64, 33), (40, 257, 12)])
@pytest.mark.parametrize("swapped", [False, True])
def test_matmul_of_integers_is_exact(webgpu: StackProcess, rows: int, inner: int, columns: int, swapped: bool) -> None:
    """Odd integers of 13 bits times +-1: every partial sum is below 2^24, so no order of summation rounds."""
    generator = np.random.default_rng(rows)
    a = (2 * generator.integers(-(2**12), 2**12, (rows, inner)) + 1).astype(np.float32)
    b = generator.choice(np.array([-1, 1], np.float32), (inner, columns))
    expected = a.astype(np.int64) @ b.astype(np.int64)
    assert np.abs(a).max() * inner < 2**24
    if swapped:
        a, b, expected = b.T.copy(), a.T.copy(), expected.T
    np.testing.assert_array_equal(webgpu.compute("matmul", {}, {"a": a, "b": b}).tensors["y"], expected)


@pytest.mark.parametrize(("shape", "block_size"), [((5, 39), 64), ((64, 66), 32), ((60, 160), 64), ((3, 4097), 4096)])
def test_nf4_quantize_is_bit_exact(webgpu: StackProcess, shape: tuple[int, int], block_size: int) -> None:
    weight = near_midpoints(np.random.default_rng(shape[1]), shape, block_size)
    got = webgpu.compute("nf4_quantize", {"block_size": block_size}, {"weight": weight}).tensors
    want = nf4.quantize(weight, block_size)
    assert len(np.unique(want.codes)) == 16
    np.testing.assert_array_equal(got["codes"], want.codes)
    np.testing.assert_array_equal(got["packed"], want.packed)
    np.testing.assert_array_equal(got["absmax"].view(np.uint32), want.absmax.view(np.uint32))


def test_a_nan_stays_in_its_row_of_a_softmax(webgpu: StackProcess) -> None:
    """WGSL may take it that there are no NaN (section 15.7): a choice by sum == 0 takes one for 0 on lavapipe."""
    x = np.array([[1, np.nan, 2, 3], [1, 2, -np.inf, 4], [np.nan] * 4], np.float32)
    given = {"x": x, "y_bar": np.ones_like(x)}
    answer = webgpu.compute("softmax", {}, given).tensors
    for name in ("y", "x_grad"):
        np.testing.assert_array_equal(np.isnan(answer[name]).all(axis=-1), [True, False, True])
        np.testing.assert_array_equal(np.isnan(answer[name]).any(axis=-1), [True, False, True])


def test_a_key_that_is_nan_shows_in_each_token_that_sees_it(webgpu: StackProcess) -> None:
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((1, heads, 5, 6)).astype(np.float32) for name, heads in (("q", 4), ("k", 2), ("v", 2))}
    given["k"][0, 0, 2, 3] = np.nan
    context = webgpu.compute("attention", {}, given).tensors["context"]
    # two heads of the query look at the first key head; tokens 0 and 1 come before the key
    assert np.isnan(context[0, :2, 2:]).all()
    assert np.isfinite(context[0, :2, :2]).all()
    assert np.isfinite(context[0, 2:]).all()


def test_the_probe_tells_the_largest_tensor(webgpu: StackProcess) -> None:
    notes = webgpu.request("probe").values["notes"]
    assert any(note.startswith("no tensor on WEBGPU may take over ") for note in notes)


def test_a_tensor_past_the_limit_is_refused_and_the_device_goes_on() -> None:
    """In a process of its own: without the check, Dawn makes a buffer that is none, and a later kernel finds its binding invalid."""
    program = (
        "from stacks.tinygrad_lora.device import open_device\n"
        "open_device('WEBGPU')\n"
        "from tinygrad import Tensor, dtypes\n"
        "from tinygrad.device import Buffer\n"
        "from stacks.tinygrad_lora.memory import largest_tensor\n"
        "try:\n"
        "    Buffer('WEBGPU', largest_tensor('WEBGPU')[0] + 4, dtypes.uint8).allocate()\n"
        "except MemoryError as error:\n"
        "    print(error)\n"
        "print((Tensor([1.0, 2.0]) + 1).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    refused, answered = done.stdout.splitlines()
    assert refused.startswith("a tensor of ")
    assert " is past the device's limit of " in refused
    assert answered == "[2.0, 3.0]"
