"""The stack in NumPy as a worker whose product mutants can change: `python planted_stack.py --device CPU`."""

from __future__ import annotations

import sys
from pathlib import Path

from contract.worker.serve import Channel, serve
from contract.worker.stack import Attributes, Reply, Tensors

if __name__ == "__main__":  # a script finds its own folder alone
    sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.parity.mutants import planted_arithmetic
from tests.parity.numpy_stack import NumpyStack


class PlantedStack(NumpyStack):
    """As NumpyStack."""

    def compute(self, op: str, attrs: Attributes, tensors: Tensors) -> Reply:
        """One operation."""
        reply = super().compute(op, attrs, tensors)
        if op == "matmul":
            reply.tensors["y"] = planted_arithmetic.product(tensors["a"], tensors["b"])
        return reply


def make(device: str, channel: Channel) -> PlantedStack:
    """The stack."""
    return PlantedStack(device)


if __name__ == "__main__":
    serve("tests.parity.mutants.planted_stack:make")
