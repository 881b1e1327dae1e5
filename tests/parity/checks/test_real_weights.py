"""The real checkpoint's weights among the inputs, and what a damaged one is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from contract.errors import MissingError
from contract.worker.files import FileReference, sha256_of
from parity.checks import real_weights
from parity.reference import nf4


def test_seven_linears_of_three_blocks_and_the_head() -> None:
    references = list(real_weights.references())
    assert len({reference.tensor for reference in references}) == len(references) == real_weights.COUNT
    assert [name for name in ("layers.0.", "layers.14.", "layers.29.") if any(name in one.tensor for one in references)] == [
        "layers.0.", "layers.14.", "layers.29.",
    ]  # fmt: skip
    assert references[-1].tensor == "model.embed_tokens.weight"


def test_a_damaged_file_is_named_with_the_command_that_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((2, 2), dtype=np.float32)}, path)
    reference = FileReference(sha256=sha256_of(path), tensor="w", path=str(path))
    assert real_weights.weight(reference).shape == (2, 2)
    real_weights.weight.cache_clear()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(MissingError, match=r"model\.safetensors is damaged .* run: finetune fetch smollm2-135m --force"):
        real_weights.weight(reference)


def test_what_follows_from_a_weight_is_the_references(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weight = np.random.default_rng(0).standard_normal((5, 33)).astype(np.float32)
    save_file({"w": weight}, path)
    reference = FileReference(sha256=sha256_of(path), tensor="w", path=str(path))
    codes = nf4.quantize(weight, real_weights.BLOCK_SIZE)
    np.testing.assert_array_equal(real_weights.quantized(reference).packed, codes.packed)
    np.testing.assert_array_equal(
        real_weights.dequantized(reference), nf4.dequantize(codes.packed, codes.absmax, real_weights.BLOCK_SIZE, (5, 33))
    )
