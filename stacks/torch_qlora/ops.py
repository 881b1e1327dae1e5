"""The operations that this stack answers: each one a call into the file that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from contract.worker.operation import Operation, expected_answer
from contract.worker.operations import OPERATIONS
from contract.worker.serve import Channel
from contract.worker.stack import Attributes, NotSupported, Reply, Tensors
from stacks.torch_qlora import elementary, linear, loss, nf4, probe

if TYPE_CHECKING:
    from stacks.torch_qlora.session import Session

DEVICES = {"CPU": "cpu", "CUDA": "cuda"}
IGNORE_INDEX = -100
"""torch's own default for labels that carry no loss."""

TorchTensors = Mapping[str, torch.Tensor]
Compute = Callable[[Attributes, TorchTensors], dict[str, torch.Tensor]]


class TorchQlora:
    """The torch stack on one device.

    Args:
        device: CPU or CUDA.
        channel: the worker's progress channel; nothing here is long enough to use it.

    Raises:
        NotSupported: an unknown device, or CUDA where torch finds none.
    """

    def __init__(self, device: str, channel: Channel | None = None) -> None:
        if device not in DEVICES:
            raise NotSupported(f"torch_qlora has no device {device!r}; allowed: {', '.join(DEVICES)}")
        if device == "CUDA" and not torch.cuda.is_available():
            raise NotSupported(
                f"torch {torch.__version__} finds no CUDA device; install a CUDA build of torch and an NVIDIA driver, or use device CPU"
            )
        self._device = torch.device(DEVICES[device])
        self._channel = channel
        # A float32 product must be one: TF32 and bfloat16 passes keep 10 and 7 bits of the operands.
        torch.set_float32_matmul_precision("highest")

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

    @cached_property
    def _session(self) -> Session:
        # Imported here: peft brings transformers, seconds that a worker without a graph need not wait.
        from stacks.torch_qlora.session import Session

        return Session(self._device)

    def _entry(self, op: str, attrs: Attributes) -> _Entry:
        if op not in _ENTRIES:
            raise NotSupported(f"torch_qlora does not compute {op!r}; allowed: {', '.join(_ENTRIES)}")
        entry, dtype = _ENTRIES[op], attrs.get("dtype", "float32")
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


def _matmul(attrs: Attributes, tensors: TorchTensors) -> dict[str, torch.Tensor]:
    return {"y": linear.matmul(tensors["a"], tensors["b"])}


def _linear(attrs: Attributes, tensors: TorchTensors) -> dict[str, torch.Tensor]:
    return {"y": linear.linear(tensors["x"], tensors["weight"], tensors.get("bias"))}


def _cross_entropy(attrs: Attributes, tensors: TorchTensors) -> dict[str, torch.Tensor]:
    reduction, ignore_index = attrs.get("reduction", "mean"), int(attrs.get("ignore_index", IGNORE_INDEX))
    return {"loss": loss.cross_entropy(tensors["logits"], tensors["labels"], reduction=reduction, ignore_index=ignore_index)}


def _elementary(attrs: Attributes, tensors: TorchTensors) -> dict[str, torch.Tensor]:
    return {"y": elementary.elementary(str(attrs.get("function")), tensors["x"])}


def _nf4_quantize(attrs: Attributes, tensors: TorchTensors) -> dict[str, torch.Tensor]:
    quantized = nf4.quantize(tensors["weight"], int(attrs["block_size"]))
    codes = nf4.unpack(quantized.packed, tensors["weight"].numel())
    return {"codes": codes, "packed": quantized.packed, "absmax": quantized.absmax}


def _nf4_offset(attrs: Attributes, tensors: TorchTensors) -> dict[str, torch.Tensor]:
    return {"offset": nf4.offset(tensors["absmax"])}


def _nf4_nest(attrs: Attributes, tensors: TorchTensors) -> dict[str, torch.Tensor]:
    codes, nested_absmax = nf4.nest(tensors["absmax"], tensors["offset"])
    return {"absmax_codes": codes, "nested_absmax": nested_absmax}


def _nf4_unnest(attrs: Attributes, tensors: TorchTensors) -> dict[str, torch.Tensor]:
    return {"absmax": nf4.unnest(tensors["absmax_codes"], tensors["nested_absmax"], tensors["offset"])}


def _nf4_dequantize(attrs: Attributes, tensors: TorchTensors) -> dict[str, torch.Tensor]:
    return {"weight": nf4.dequantize(_quantized(tensors), **_shape(attrs))}


def _nf4_linear(attrs: Attributes, tensors: TorchTensors) -> dict[str, torch.Tensor]:
    return {"y": nf4.linear(tensors["x"], _quantized(tensors), tensors.get("bias"), **_shape(attrs))}


def _quantized(tensors: TorchTensors) -> nf4.Quantized:
    return nf4.Quantized(packed=tensors["packed"], absmax=tensors["absmax"])


def _shape(attrs: Attributes) -> dict[str, int]:
    return {name: int(attrs[name]) for name in ("block_size", "out_features", "in_features")}


@dataclass(frozen=True, kw_only=True)
class _Entry:
    compute: Compute
    dtypes: tuple[str, ...] = ("float32",)
    why_not_others: str = ""


_BOTH = ("float32", "float64")
_ENTRIES: Mapping[str, _Entry] = {
    "matmul": _Entry(compute=_matmul, dtypes=_BOTH),
    "linear": _Entry(compute=_linear, dtypes=_BOTH),
    "cross_entropy": _Entry(compute=_cross_entropy, dtypes=_BOTH),
    "elementary": _Entry(compute=_elementary, dtypes=_BOTH),
    "nf4_quantize": _Entry(compute=_nf4_quantize),
    "nf4_offset": _Entry(compute=_nf4_offset),
    "nf4_nest": _Entry(compute=_nf4_nest),
    "nf4_unnest": _Entry(compute=_nf4_unnest),
    "nf4_dequantize": _Entry(compute=_nf4_dequantize),
    "nf4_linear": _Entry(
        compute=_nf4_linear,
        why_not_others=" (bitsandbytes returns uninitialised memory for float64; use linear on the dequantised weight, widened)",
    ),
}
