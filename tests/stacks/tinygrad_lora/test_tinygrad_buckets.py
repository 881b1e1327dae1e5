"""Micro-batches as arrays of a few shapes: which rows carry loss, what padding is, and whose masks they bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.data import dropout
from contract.data.batches import Batch, collate
from contract.data.row import IGNORE_INDEX
from stacks.tinygrad_lora.buckets import Buckets, chunk_rows
from stacks.tinygrad_lora.models.build import build
from stacks.tinygrad_lora.step import COUNTED, INDEX, KEEP, LABEL, PLACE
from tests.stacks.tinygrad_lora.tiny_tinygrad_run import VOCABULARY, examples, run_in

WIDTH = 10
"""hidden_size of the tiny model."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


def buckets(folder: Path, **sections: Any) -> Buckets:
    run = run_in(folder, **sections)
    table = np.arange(1, VOCABULARY * WIDTH + 1, dtype=np.float32).reshape(VOCABULARY, WIDTH)
    return Buckets(run, build(run.plan), {"embedding": table})


def batch_of(count: int) -> Batch:
    return collate([[one] for one in examples(count)], 1)


@pytest.mark.parametrize(
    ("seq_len", "tokens", "width"), [(16, 4, 16), (12, 6, 12), (100, 6, 16), (100, 14, 16), (40, 14, 16), (100, 17, 32), (100, 70, 100)]
)  # fmt: skip
def test_widths_are_a_few(folder: Path, seq_len: int, tokens: int, width: int) -> None:
    (first, *_) = examples(1)
    row = collate([[first]], 1, width=tokens)
    arrays = buckets(folder, exec={"seq_len": seq_len}).arrays(row, step=None)
    assert arrays["token_rows"].shape == (3, width, WIDTH), "rows too are those of a whole batch"


def test_padding_is_zeros_and_carries_no_loss(folder: Path) -> None:
    batch = batch_of(2)
    arrays = buckets(folder).arrays(batch, step=None)
    there = np.zeros((3, 16), bool)
    there[:2, : batch.ids_BT.shape[1]] = batch.attention_BT
    assert (arrays["token_rows"] != 0).any(axis=-1).tolist() == there.tolist()
    found = arrays[INDEX][arrays[COUNTED][:, 0]]
    expected = [(row, at) for row in range(2) for at in range(batch.ids_BT.shape[1] - 1) if batch.labels_BT[row, at + 1] != IGNORE_INDEX]
    assert [divmod(int(index), 16) for index in found] == expected
    assert arrays[LABEL][arrays[COUNTED]].tolist() == [int(batch.labels_BT[row, at + 1]) for row, at in expected]
    placed = arrays[PLACE][found]
    assert placed.tolist() == list(range(len(found)))
    assert (np.delete(arrays[PLACE], found) == -1).all()


def test_masks_are_the_contracts(folder: Path) -> None:
    """Of each linear's layer and name, of the step, the rows and the positions."""
    own = buckets(folder, adapter={"dropout": 0.3})
    batch = batch_of(3)
    arrays = own.arrays(batch, step=4)
    widths = {"o_proj": 24, "down_proj": 20}
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    masks = {name: array.shape for name, array in arrays.items() if name.startswith(KEEP)}
    assert masks == {f"{KEEP}layers.{layer}.{name}": (3, 16, widths.get(name, WIDTH)) for layer in range(2) for name in linears}
    expected = dropout.mask(
        seed=42, step=4, samples=batch.samples_BT, positions=batch.positions_BT, layer=1, site="o_proj", width=24, probability=0.3
    )
    np.testing.assert_array_equal(arrays[f"{KEEP}layers.1.o_proj"][:, : batch.ids_BT.shape[1]], expected)
    assert not any(name.startswith(KEEP) for name in own.arrays(batch, step=None)), "a validation has none"


def test_a_packed_batch_brings_positions_and_who_sees_whom(folder: Path) -> None:
    first, second = examples(2)
    packed = collate([[first, second]], 1)
    arrays = buckets(folder, exec={"batch_size": 1}).arrays(packed, step=None)
    seen = arrays["seen.None"][0, 0]
    lengths = len(first.ids), len(second.ids)
    expected = np.zeros((16, 16), bool)
    for start, length in ((0, lengths[0]), (lengths[0], lengths[1])):
        expected[start : start + length, start : start + length] = np.tri(length, dtype=bool)
    np.testing.assert_array_equal(seen, expected)
    alone = buckets(folder, exec={"batch_size": 1}).arrays(collate([[second]], 1), step=None)
    np.testing.assert_array_equal(arrays["rope.cos"][0, lengths[0] : sum(lengths)], alone["rope.cos"][: lengths[1]])


@pytest.mark.parametrize(("rows", "vocabulary", "chunk"), [(512, 49152, 256), (512, 2**17, 128), (512, 2**30, 16), (40, 30, 48)])
def test_chunks_hold_their_logits(rows: int, vocabulary: int, chunk: int) -> None:
    assert chunk_rows(rows, vocabulary) == chunk
