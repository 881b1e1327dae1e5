"""The bytes that bitsandbytes itself made (tests/stacks/golden/make_nf4_golden.py), reproduced by this stack."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from stacks.torch_qlora.ops import TorchQlora

GOLDEN = Path(__file__).parents[1] / "golden" / "nf4_bitsandbytes.safetensors"


def _load() -> tuple[dict[str, np.ndarray], dict[str, int]]:
    with safe_open(GOLDEN, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["block_sizes"])  # noqa: SIM118


TENSORS, BLOCK_SIZES = _load()
NESTED = sorted({name.split(".")[0] for name in TENSORS if name.startswith("nested")})


def test_golden_file_covers_what_hides_bugs() -> None:
    assert {32, 64, 128, 4096} <= set(BLOCK_SIZES.values())
    assert any(TENSORS[f"{case}.weight"].size % block_size for case, block_size in BLOCK_SIZES.items())
    assert max(TENSORS[f"{case}.absmax"].size for case in NESTED) > 256


@pytest.mark.parametrize("case", sorted(BLOCK_SIZES))
def test_single_quantisation_is_bitsandbytes_own(case: str) -> None:
    stack = TorchQlora("CPU")
    got = stack.compute("nf4_quantize", {"block_size": BLOCK_SIZES[case]}, {"weight": TENSORS[f"{case}.weight"]}).tensors
    np.testing.assert_array_equal(got["packed"], TENSORS[f"{case}.packed"])
    np.testing.assert_array_equal(got["absmax"], TENSORS[f"{case}.absmax"])


@pytest.mark.parametrize("case", NESTED)
def test_nested_statistics_are_bitsandbytes_own(case: str) -> None:
    stack = TorchQlora("CPU")
    absmax, offset = TENSORS[f"{case}.absmax"], TENSORS[f"{case}.offset"]
    got = stack.compute("nf4_nest", {}, {"absmax": absmax, "offset": offset}).tensors
    np.testing.assert_array_equal(got["absmax_codes"], TENSORS[f"{case}.absmax_codes"])
    np.testing.assert_array_equal(got["nested_absmax"], TENSORS[f"{case}.nested_absmax"])
