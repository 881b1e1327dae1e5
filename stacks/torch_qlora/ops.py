"""The stack on one device: requests on an open graph, and operations one by one (entries.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from contract.worker.operation import Operation, expected_answer
from contract.worker.operations import OPERATIONS
from contract.worker.serve import Channel
from contract.worker.stack import Attributes, NotSupported, Reply, Tensors
from stacks.torch_qlora import cuda, probe, vml
from stacks.torch_qlora.entries import ENTRIES, Entry, TorchTensors

if TYPE_CHECKING:
    from contract.training.stepwise import Stepwise
    from stacks.torch_qlora.session import Session

DEVICES = {"CPU": "cpu", "CUDA": "cuda"}


class TorchQlora:
    """The torch stack on one device.

    Args:
        device: CPU or CUDA.
        channel: the worker's progress channel; nothing here is long enough to use it.

    Raises:
        NotSupported: an unknown device, CUDA where torch finds none, or settings of CUDA's libraries that give other bits each time.
    """

    def __init__(self, device: str, channel: Channel | None = None) -> None:
        if device not in DEVICES:
            raise NotSupported(f"torch_qlora has no device {device!r}; allowed: {', '.join(DEVICES)}")
        if device == "CUDA" and not torch.cuda.is_available():
            raise NotSupported(
                f"torch {torch.__version__} finds no CUDA device; install a CUDA build of torch and an NVIDIA driver, or use device CPU"
            )
        self._device = torch.device(DEVICES[device])
        cuda.start(self._device)
        self._channel = channel
        # A float32 product must be one: TF32 and bfloat16 passes keep 10 and 7 bits of the operands.
        torch.set_float32_matmul_precision("highest")
        vml.start()

    def probe(self) -> Reply:
        """What this machine's device can do; see `stacks.torch_qlora.probe`."""
        return Reply(values=probe.describe(self._device))

    def compute(self, op: str, attrs: Attributes, tensors: Tensors) -> Reply:
        """One operation of `contract.worker.operations`, with gradients where cotangents are given.

        Raises:
            NotSupported: an operation or dtype that this stack lacks.
            ValueError: attributes or tensors that are not the operation's.
        """
        entry, operation = self._entry(op, attrs), OPERATIONS[op]
        answer = expected_answer(operation, attrs, tensors)
        inputs = {name: torch.as_tensor(np.asarray(tensor, order="C"), device=self._device) for name, tensor in tensors.items()}
        wanted = [name for name in operation.gradients if f"{name}_grad" in answer]
        for name in wanted:
            inputs[name].requires_grad_()
        with torch.set_grad_enabled(bool(wanted)):
            outputs = entry.compute(attrs, inputs)
        outputs |= _gradients(operation, wanted, inputs, outputs)
        return Reply(tensors={name: tensor.detach().cpu().numpy() for name, tensor in outputs.items()})

    def open(self, graph: str, plan: Attributes, tensors: Tensors) -> Reply:
        """See `stacks.torch_qlora.session.Session.open`."""
        return self._session.open(graph, plan, tensors)

    def state(self, graph: str, tensors: Tensors | None = None) -> Reply:
        """See `stacks.torch_qlora.session.Session.state`."""
        return self._session.state(graph, tensors)

    def forward(self, graph: str, taps: Sequence[str], tensors: Tensors) -> Reply:
        """See `stacks.torch_qlora.session.Session.forward`."""
        return self._session.forward(graph, taps, tensors)

    def gradients(self, graph: str, taps: Sequence[str], tensors: Tensors) -> Reply:
        """See `stacks.torch_qlora.session.Session.gradients`."""
        return self._session.gradients(graph, taps, tensors)

    def block(self, graph: str, section: str, tensors: Tensors) -> Reply:
        """See `stacks.torch_qlora.session.Session.block`."""
        return self._session.block(graph, section, tensors)

    def merge(self, graph: str, linears: Sequence[str] | None = None) -> Reply:
        """See `stacks.torch_qlora.merge.merge_graph`."""
        return self._session.merge(graph, linears)

    def save(self, graph: str, folder: str) -> Reply:
        """See `stacks.torch_qlora.merge.save_graph`."""
        return self._session.save(graph, folder)

    def generate(self, **values: Any) -> Reply:
        """See `stacks.torch_qlora.load.respond`."""
        from stacks.torch_qlora.load import respond

        return respond(values, self._device, self._channel)

    def score(self, tensors: Tensors | None = None, **values: Any) -> Reply:
        """See `stacks.torch_qlora.score.respond`."""
        from stacks.torch_qlora.score import respond

        return respond(values, tensors or {}, self._device)

    def train(self, **values: Any) -> Reply:
        """A whole run: see `contract.training.session.train`, and `stacks.torch_qlora.train.TorchTrainer` for its computation."""
        from stacks.torch_qlora.train import respond

        return respond(values, self._device, self._channel)

    def train_open(self, **values: Any) -> Reply:
        """See `contract.training.stepwise.Stepwise.open`."""
        return self._stepwise.open(**values)

    def train_state(self, **values: Any) -> Reply:
        """See `contract.training.stepwise.Stepwise.state`."""
        return self._stepwise.state(**values)

    def train_step(self, **values: Any) -> Reply:
        """See `contract.training.stepwise.Stepwise.step`."""
        return self._stepwise.step(**values)

    def train_paths(self, contract: Attributes) -> Reply:
        """See `contract.training.paths.respond`."""
        from contract.training.paths import respond
        from stacks.torch_qlora import paths

        return respond(contract, lambda run: paths.chosen(run, self._device)[0].paths)

    @cached_property
    def _stepwise(self) -> Stepwise:
        from contract.training.stepwise import Stepwise
        from stacks.torch_qlora.train import TorchTrainer

        return Stepwise(lambda run: TorchTrainer(run, self._device))

    @cached_property
    def _session(self) -> Session:
        # Imported here: peft brings transformers, seconds that a worker without a graph need not wait.
        from stacks.torch_qlora.session import Session

        return Session(self._device)

    def _entry(self, op: str, attrs: Attributes) -> Entry:
        if op not in ENTRIES:
            raise NotSupported(f"torch_qlora does not compute {op!r}; allowed: {', '.join(ENTRIES)}")
        entry, dtype = ENTRIES[op], attrs.get("dtype", "float32")
        if dtype not in entry.dtypes:
            raise NotSupported(f"torch_qlora does not compute {op} in {dtype}; allowed: {', '.join(entry.dtypes)}{entry.why_not_others}")
        return entry


def _gradients(operation: Operation, wanted: list[str], inputs: TorchTensors, outputs: TorchTensors) -> dict[str, torch.Tensor]:
    """`<name>_grad` = (d outputs / d name)^T of the cotangents, by torch's autograd."""
    if not wanted:
        return {}
    gradients = torch.autograd.grad(
        [outputs[name] for name in operation.outputs],
        [inputs[name] for name in wanted],
        [inputs[f"{name}_bar"] for name in operation.outputs],
    )
    return {f"{name}_grad": gradient for name, gradient in zip(wanted, gradients, strict=True)}
