"""Where a graph's frozen weights come from, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from contract.model import checkpoint
from contract.model.checkpoint import Checkpoint
from contract.worker.plan import GraphPlan
from stacks.torch_qlora.attributes import DTYPES
from stacks.torch_qlora.linear import FrozenLinear
from stacks.torch_qlora.nf4_linear import Linear4bit

Weights = Mapping[str, np.ndarray]
"""A base's weights by their names in contract/worker/graph.py; float32, or narrower and then widened exactly."""

_MAPPED = ("embedding", "position_embedding")
"""Looked up row by row, so that most of it need never be read."""


class CheckpointWeights(Weights):
    """The weights of a checkpoint: each is read when it is asked for, and not kept.

    An embedding that lies in float32 is mapped into memory in place: pages that nobody looks at are never read, and the system may
    drop the others.

    Raises, when asked:
        ContractError: there is no such weight, or its file has changed since the checkpoint was opened.
    """

    def __init__(self, opened: Checkpoint) -> None:
        self._checkpoint = opened

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._checkpoint.placed:
            raise KeyError(name)
        in_place = checkpoint.mapped(self._checkpoint, name) if name in _MAPPED else None
        return checkpoint.load(self._checkpoint, name) if in_place is None else in_place

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.placed)

    def __len__(self) -> int:
        return len(self._checkpoint.placed)


class CountedWeights(Weights):
    """Weights, each told of as it is read: how many were, and of how many."""

    def __init__(self, weights: Weights, report: Callable[[int, int], None]) -> None:
        self._weights, self._report, self._read = weights, report, 0

    def __getitem__(self, name: str) -> np.ndarray:
        weight = self._weights[name]
        self._read += 1
        self._report(min(self._read, len(self)), len(self))
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class Loader:
    """The weights of a plan, one at a time: in its dtype, or quantised from float32; then on the device."""

    def __init__(self, plan: GraphPlan, weights: Weights, device: torch.device) -> None:
        self._plan, self._weights, self._device = plan, weights, device

    def tensor(self, name: str) -> nn.Parameter:
        """A frozen weight in the plan's dtype."""
        return nn.Parameter(self._read(name, DTYPES[self._plan.dtype]), requires_grad=False)

    def ones(self, width: int) -> nn.Parameter:
        """The weight of a norm that has none: 1 x is x, bit by bit."""
        return nn.Parameter(torch.ones(width, dtype=DTYPES[self._plan.dtype], device=self._device), requires_grad=False)

    def linear(self, name: str) -> nn.Module:
        """A frozen linear of a block, with its bias where the layout has one."""
        biased = name.rpartition(".")[2] in self._plan.layout.biased
        return self.frozen(name, name, self._read(f"{name}.bias", DTYPES[self._plan.dtype]) if biased else None)

    def frozen(self, name: str, weight: str, bias_O: torch.Tensor | None = None) -> nn.Module:
        """A frozen linear with a weight by that weight's own name: plain, NF4, or plain with the values that NF4 keeps."""
        dtype, base = DTYPES[self._plan.dtype], self._plan.base
        if base is None:
            return FrozenLinear(self._read(weight, dtype), bias_O)
        given_offset = self._read(f"{name}.offset", torch.float32) if base.offsets_given else None
        quantized = Linear4bit(
            self._read(weight, torch.float32), bias_O, block_size=base.block_size, double_quant=base.double_quant, given_offset=given_offset
        )
        if "nf4_linear" in self._plan.paths:
            return quantized
        return FrozenLinear(quantized.dequantized().to(dtype), bias_O)

    def _read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        array = self._weights[name]
        if isinstance(array, np.memmap) and dtype == torch.float32 and self._device.type == "cpu":
            return torch.from_numpy(array)
        return to_tensor(array, dtype, self._device)


def to_tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A copy in memory of torch's own: what arrived may be read-only, and NumPy's alignment varies, by which a product's bits may."""
    # bfloat16, in which a weight may lie, is no dtype that torch takes from NumPy
    return torch.tensor(array if array.dtype.kind == "f" else array.astype(np.float32)).to(device, dtype)
