"""A graph's weights out of a checkpoint: the same bits as the arrays, one at a time, and an embedding that stays in its file."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from contract.model.checkpoint import Checkpoint, load, mapped, open_checkpoint
from contract.worker import graph
from contract.worker.plan import GraphPlan
from stacks.torch_qlora.graph import Graph, GraphBatch
from stacks.torch_qlora.weights import CheckpointWeights
from tests.contract.model import tiny_checkpoint
from tests.stacks.torch_qlora.tiny_torch_graph import weights as drawn

CPU = torch.device("cpu")


def folder(path: Path, *, narrow: bool = False, tied: bool = True) -> Path:
    tensors = tiny_checkpoint.weights(tie_word_embeddings=tied)
    dtype = ml_dtypes.bfloat16 if narrow else np.float32
    tiny_checkpoint.write(path, {name: tensor.astype(dtype) for name, tensor in tensors.items()}, tie_word_embeddings=tied)
    return path


def plan(layout: object, dtype: str) -> GraphPlan:
    return GraphPlan.model_validate({"layout": layout, "dtype": dtype, "lora": {"rank": 2, "alpha": 3.0}})


class Watched(CheckpointWeights):
    """Keeps what it gave."""

    def __init__(self, opened: Checkpoint) -> None:
        super().__init__(opened)
        self.given: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        self.given[name] = super().__getitem__(name)
        return self.given[name]


def shared(parameter: torch.Tensor, given: np.ndarray) -> bool:
    """Whether what is written to the one is in the other."""
    with torch.no_grad():
        before = parameter.flatten()[0].item()
        given.flat[0] = before + 1
        found = parameter.flatten()[0].item() != before
        given.flat[0] = before
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("narrow", "dtype"), [(False, "float32"), (False, "float64"), (True, "float32"), (False, "bfloat16")])
def test_a_checkpoint_gives_the_graph_of_its_arrays(tmp_path: Path, narrow: bool, dtype: str, tied: bool) -> None:
    opened = open_checkpoint(folder(tmp_path, narrow=narrow, tied=tied))
    wanted = plan(opened.layout, dtype)
    adapter = {name: array for name, array in drawn(wanted).items() if name in graph.adapter(wanted)}
    weights = Watched(opened)
    held = Graph(wanted, weights, adapter, CPU)
    same = Graph(wanted, {name: load(opened, name) for name in graph.weights(wanted)}, adapter, CPU)
    state, other = held.state_dict(), same.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    ids = torch.tensor([[3, 0, 13, 7]])
    assert torch.equal(held.loss_sum(GraphBatch(ids_BT=ids, labels_BT=ids)), same.loss_sum(GraphBatch(ids_BT=ids, labels_BT=ids)))
    assert held.embedding is not None
    in_place = isinstance(weights.given["embedding"], np.memmap)
    assert in_place == (not narrow)
    assert shared(held.embedding.weight, weights.given["embedding"]) == (in_place and dtype == "float32")
    norm = held.layers["0"].get_parameter("attention_norm.weight")
    assert not shared(norm, weights.given["layers.0.attention_norm"])


def test_what_is_written_to_a_mapped_weight_stays_in_this_process(tmp_path: Path) -> None:
    opened = open_checkpoint(folder(tmp_path))
    before = (tmp_path / tiny_checkpoint.WEIGHTS).read_bytes()
    first = mapped(opened, "embedding")
    assert first is not None
    first[0] = 7
    assert (tmp_path / tiny_checkpoint.WEIGHTS).read_bytes() == before
    second = mapped(opened, "embedding")
    assert second is not None
    assert (second[0] != 7).all()


@pytest.mark.parametrize("shift", [1, 2, 3, 4])
def test_a_weight_that_is_not_aligned_is_read_and_not_mapped(tmp_path: Path, shift: int) -> None:
    """A header may end in spaces, so that values start anywhere."""
    before = load(open_checkpoint(folder(tmp_path)), "embedding")
    file = tmp_path / tiny_checkpoint.WEIGHTS
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes((end - 8 + shift).to_bytes(8, "little") + content[8:end] + b" " * shift + content[end:])
    opened = open_checkpoint(tmp_path)
    assert (mapped(opened, "embedding") is None) == (shift % 4 != 0)
    np.testing.assert_array_equal(CheckpointWeights(opened)["embedding"], before)


def test_weights_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    weights = CheckpointWeights(open_checkpoint(folder(tmp_path)))
    assert len(weights) == len(list(weights)) > 0
    assert "layers.0.q_proj" in weights
    assert "layers.9.q_proj" not in weights
    with pytest.raises(KeyError):
        weights["layers.9.q_proj"]
    save_file(tiny_checkpoint.weights(), tmp_path / tiny_checkpoint.WEIGHTS)
    for name in ("embedding", "layers.0.q_proj"):
        with pytest.raises(ValueError, match="was changed"):
            weights[name]
