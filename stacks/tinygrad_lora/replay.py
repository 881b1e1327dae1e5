"""Functions of tensors by name, captured when they are first repeated, and replayed from then on.

Scheduling a small graph costs tens of milliseconds in Python, its kernels microseconds. TinyJit runs a function twice and then replays
the kernels that the second run captured. What it asks for:

- The inputs are buffers of their own, told apart by their place: each function keeps a set of buffers, which every call writes anew. So
  an output that is an input itself is right in a replay too.
- A replay writes its outputs over the last one's: they are copied to the host at once.
- Nothing that a request brings may be a number in the graph: it would be replayed for the next request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from tinygrad import Device, Tensor, TinyJit
from tinygrad.device import Buffer, LRUAllocator
from tinygrad.uop.ops import UOp, buffers

from stacks.tinygrad_lora.host import to_device, write

COMPILING = 2
"""Calls that are slow: TinyJit runs a function when it is first called, and captures its kernels when it is called again."""

KEPT = 64
"""Captured functions that are kept: each holds the buffers of its inputs and outputs."""

LARGEST = 2**24
"""Bytes of inputs over which nothing is kept, unless said otherwise: such kernels take longer than their scheduling, and much memory."""

Function = Callable[..., dict[str, Tensor]]
"""(tensors by name, then hashable arguments by keyword) -> tensors by name."""
Signature = tuple[tuple[str, tuple[int, ...], str], ...]


class Replays:
    """The captured functions of one device.

    Args:
        device: tinygrad's name of it.
        largest: bytes of inputs over which nothing is kept.
    """

    def __init__(self, device: str, *, largest: int = LARGEST) -> None:
        self._device, self._largest = device, largest
        self._captured = lru_cache(KEPT)(self._new)

    def run(self, function: Function, given: Mapping[str, np.ndarray], **static: Any) -> dict[str, np.ndarray]:
        """What `function` answers, on the host; a tensor of shape [] is given and answered as one of shape [1].

        Args:
            function: the same object in each call, of which the kernels depend on names, shapes, dtypes and `static` alone.
        """
        arrays = {name: np.atleast_1d(np.ascontiguousarray(given[name])) for name in sorted(given)}
        signature = tuple((name, array.shape, array.dtype.name) for name, array in arrays.items())
        # an empty tensor has no buffer that could be written anew
        kept = all(array.size for array in arrays.values()) and sum(array.nbytes for array in arrays.values()) <= self._largest
        made = self._captured if kept else self._new
        return made(function, tuple(static.items()), signature)(arrays)

    def _new(self, function: Function, static: tuple[tuple[str, Any], ...], signature: Signature) -> Replay:
        return Replay(lambda tensors: function(tensors, **dict(static)), self._device)


class Replay:
    """One function for one set of names, shapes and dtypes.

    Args:
        device: tinygrad's name of it.
        state: tensors beside the inputs that the function assigns to, and that outlive a call.

    Attributes:
        calls: that were made; the first COMPILING of them compile.
    """

    def __init__(self, function: Function, device: str, *, state: Sequence[Tensor] = ()) -> None:
        self._function, self._device, self._state = TinyJit(function), device, state
        self.calls = 0
        self._inputs: dict[str, Tensor] = {}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The function's answer, on the host.

        Args:
            arrays: by the same names in the same order in each call; none of them without dimensions or elements.
        """
        if not self._inputs:
            self._inputs = {name: to_device(array, self._device) for name, array in arrays.items()}
        else:
            for name, array in arrays.items():
                write(self._inputs[name], array)
        self.calls += 1
        return {name: tensor.numpy() for name, tensor in self._function(self._inputs).items()}

    def release(self) -> None:
        """Gives back what the kernels between inputs and outputs work on; the next call takes it anew."""
        captured = self._function.captured
        if captured is not None:
            # tinygrad would take all that is written for such; and it asks for this set again only to tell inputs that are written
            captured._written_uops.difference_update(tensor.uop.base for tensor in self._state)
            for view in _views(captured.linear):
                view.deallocate()  # tinygrad would leave it where it lies, in memory that is another's by the next call
            captured.free_intermediates()
        allocator = Device[self._device].allocator
        if isinstance(allocator, LRUAllocator):
            allocator.free_cache()


def _views(linear: UOp) -> Iterator[Buffer]:
    """The parts of larger buffers that a captured function's kernels work on, where they have a place in memory."""
    for uop in linear.toposort():
        buffer = buffers.get(uop)
        if isinstance(buffer, Buffer) and buffer.base is not buffer and buffer.is_initialized():
            yield buffer
