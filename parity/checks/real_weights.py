"""Every linear of a real checkpoint's first, middle and last block, and its head."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from contract.errors import MissingError
from contract.model import zoo
from contract.worker import files
from contract.worker.files import FileNeeded, FileReference
from parity.reference import nf4

MODEL = "smollm2-135m"
BLOCK_SIZE = 64
COUNT = 22
"""How many weights `references` gives: seven linears of three blocks, and the head."""

_LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
_HEAD = "model.embed_tokens"
"""SmolLM2 ties its head to the embedding."""


def references() -> Iterator[FileReference]:
    """The weights, smallest blocks first.

    Raises:
        MissingError: the checkpoint was not fetched.
    """
    model = zoo.locate(MODEL)
    last = int(model.config["num_hidden_layers"]) - 1
    names = [f"model.layers.{layer}.{linear}" for layer in (0, last // 2, last) for linear in _LINEARS]
    for name in [*names, _HEAD]:
        yield FileReference(sha256=model.sha256, tensor=f"{name}.weight", path=str(model.weights))


@lru_cache(maxsize=1)
def weight(reference: FileReference) -> np.ndarray:
    """The weight, float32 [out_features, in_features].

    Raises:
        MissingError: the file's content is not what was fetched.
    """
    try:
        return files.load(reference)
    except FileNeeded:
        raise MissingError(f"{reference.path} is damaged (its SHA-256 is another); run: finetune fetch {MODEL} --force") from None


@lru_cache(maxsize=32)
def quantized(reference: FileReference) -> nf4.Quantized:
    """The weight's NF4 codes by the reference, for checks that begin with quantised weights."""
    return nf4.quantize(weight(reference), BLOCK_SIZE)


@lru_cache(maxsize=32)
def dequantized(reference: FileReference) -> np.ndarray:
    """The weight after NF4 by the reference, float32 [out_features, in_features]."""
    codes, rows_columns = quantized(reference), weight(reference).shape
    return nf4.dequantize(codes.packed, codes.absmax, BLOCK_SIZE, (rows_columns[0], rows_columns[1]))
