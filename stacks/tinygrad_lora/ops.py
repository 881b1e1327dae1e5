"""The operations that this stack answers: each one a call into the file that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tinygrad import Device, Tensor
from tinygrad.helpers import DEV, PARALLEL

from contract.errors import MissingError, UserError
from contract.worker.operation import expected_answer, wanted_gradients
from contract.worker.operations import OPERATIONS
from contract.worker.plan import GraphPlan
from contract.worker.serve import Channel
from contract.worker.stack import Attributes, NotSupported, Reply, Tensors
from stacks.tinygrad_lora import compiler, elementary, linear, loss, nf4, probe, webgpu
from stacks.tinygrad_lora.session import Session

DEVICES = ("CPU", "CUDA", "WEBGPU", "CL", "METAL")
PATHS = ("nf4_linear",)
"""The production paths that this stack has beside the plain one."""
IGNORE_INDEX = -100
"""The label of a row that does not count, where a request names none (as in PyTorch)."""


@dataclass(frozen=True)
class _Inputs:
    """What a request brought: as it came, and on the device."""

    host: Tensors
    device: Mapping[str, Tensor]


Compute = Callable[[Attributes, _Inputs], dict[str, Tensor]]


class TinygradLora:
    """The tinygrad stack on one device.

    Args:
        device: CPU, CUDA, WEBGPU, CL or METAL.
        channel: the worker's progress channel, for requests on a whole graph.

    Raises:
        UserError: an unknown device.
        MissingError: tinygrad can't open the device on this machine.
        EnvironmentUnfit: the CPU device has no working C compiler.
    """

    def __init__(self, device: str, channel: Channel | None = None) -> None:
        if device not in DEVICES:
            raise UserError(f"tinygrad_lora has no device {device!r}; allowed: {', '.join(DEVICES)}")
        # before the first kernel: tinygrad reads CC once
        self._compiler = compiler.prepare() if device == "CPU" else None
        if device == "WEBGPU":
            webgpu.prepare()
        DEV.value = device
        # kernels are compiled in this process: a pool starts cold, gains nothing on two cores, and outlives a worker that is killed
        PARALLEL.value = 0
        try:
            Device[device]
        except Exception as error:
            raise MissingError(f"tinygrad can't open {device} here ({error}); install its driver, or use the device CPU") from error
        self._device, self._channel = device, channel
        self._dtypes = probe.dtypes_of(device)
        self._name = ""
        self._session: Session | None = None

    def probe(self) -> Reply:
        """What this machine's device can do; see `stacks.tinygrad_lora.probe`."""
        return Reply(values=probe.describe(self._device, self._compiler))

    def compute(self, op: str, attrs: Attributes, tensors: Tensors) -> Reply:
        """One operation of `contract.worker.operations`, with gradients where cotangents are given.

        Raises:
            NotSupported: an operation or dtype that this stack, or this device, lacks.
            ValueError: attributes or tensors that are not the operation's.
        """
        entry, operation = self._entry(op, attrs), OPERATIONS[op]
        missing = sorted(entry.required - set(attrs))
        if missing:
            raise ValueError(f"{op}: attribute {missing[0]!r} is missing; give {sorted(entry.required)}")
        answer = expected_answer(operation, attrs, tensors)
        inputs = _Inputs(tensors, {name: self._to_device(array) for name, array in tensors.items() if array.dtype.name != "int64"})
        outputs = entry.compute(attrs, inputs)
        wanted = [name for name in wanted_gradients(operation, attrs) if f"{name}_grad" in answer]
        for name, gradient in _gradients(outputs, wanted, inputs.device).items():
            outputs[name] = gradient
        Tensor.realize(*outputs.values())
        return Reply(tensors={name: tensor.numpy().reshape(answer[name][0]) for name, tensor in outputs.items()})

    def open(self, graph: str, plan: Attributes, tensors: Tensors) -> Reply:
        """Opens a graph in place of the one that was open.

        Raises:
            NotSupported: a dtype that the device lacks, or a path that this stack lacks.
            ValueError: a plan or tensors that are none.
        """
        checked = GraphPlan.model_validate(plan)
        self._require_plan(checked)
        self._name, self._session = "", None  # what it held goes before the next one comes
        self._session = Session(checked, tensors, device=self._device, channel=self._channel)
        self._name = graph
        return Reply()

    def state(self, graph: str, tensors: Tensors | None = None) -> Reply:
        """Sets the open graph's adapter; without tensors, answers it."""
        return Reply(tensors=self._opened(graph).state(tensors))

    def forward(self, graph: str, taps: Sequence[str], tensors: Tensors) -> Reply:
        """The wanted taps of the open graph."""
        return Reply(tensors=self._opened(graph).forward(taps, tensors))

    def gradients(self, graph: str, taps: Sequence[str], tensors: Tensors) -> Reply:
        """As `forward`, and the gradient of each adapter matrix."""
        return Reply(tensors=self._opened(graph).gradients(taps, tensors))

    def block(self, graph: str, section: str, tensors: Tensors) -> Reply:
        """One section of the open graph, on given inputs."""
        return Reply(tensors=self._opened(graph).block(section, tensors))

    def _opened(self, graph: str) -> Session:
        if self._session is None or graph != self._name:
            is_open = "none is open" if self._session is None else f"{self._name!r} is open"
            raise ValueError(f"graph {graph!r} was asked of, and {is_open}; open {graph!r} first")
        return self._session

    def _require_plan(self, plan: GraphPlan) -> None:
        if plan.dtype not in self._dtypes:
            raise NotSupported(f"tinygrad_lora opens no graph in {plan.dtype} on {self._device}; allowed: {', '.join(self._dtypes)}")
        strange = sorted(set(plan.paths) - set(PATHS))
        if strange:
            raise NotSupported(f"tinygrad_lora has no path {strange[0]!r}; allowed: {', '.join(PATHS)}")
        if "nf4_linear" in plan.paths and plan.dtype != "float32":
            raise NotSupported(f"the path nf4_linear computes in float32, the plan in {plan.dtype}; leave the path out, or ask for float32")

    def _entry(self, op: str, attrs: Attributes) -> _Entry:
        if op not in _ENTRIES:
            raise NotSupported(f"tinygrad_lora does not compute {op!r}; allowed: {', '.join(_ENTRIES)}")
        entry, dtype = _ENTRIES[op], attrs.get("dtype", "float32")
        allowed = [name for name in entry.dtypes if name in self._dtypes]
        if dtype not in allowed:
            raise NotSupported(f"tinygrad_lora does not compute {op} in {dtype} on {self._device}; allowed: {', '.join(allowed)}")
        return entry

    def _to_device(self, array: np.ndarray) -> Tensor:
        # never of shape []: tinygrad would compile such a value into the kernel
        return Tensor(np.atleast_1d(np.ascontiguousarray(array)), device=self._device)


def _gradients(outputs: Mapping[str, Tensor], wanted: list[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`<name>_grad` = (d output / d name)^T of the cotangent, by tinygrad's autograd."""
    if not wanted:
        return {}
    ((output, value),) = outputs.items()
    gradients = value.gradient(*(inputs[name] for name in wanted), gradient=inputs[f"{output}_bar"].reshape(value.shape))
    return {f"{name}_grad": gradient for name, gradient in zip(wanted, gradients, strict=True)}


def _matmul(attrs: Attributes, inputs: _Inputs) -> dict[str, Tensor]:
    return {"y": linear.matmul(inputs.device["a"], inputs.device["b"])}


def _linear(attrs: Attributes, inputs: _Inputs) -> dict[str, Tensor]:
    return {"y": linear.linear(inputs.device["x"], inputs.device["weight"], inputs.device.get("bias"))}


def _cross_entropy(attrs: Attributes, inputs: _Inputs) -> dict[str, Tensor]:
    reduction, ignore_index = attrs.get("reduction", "mean"), int(attrs.get("ignore_index", IGNORE_INDEX))
    return {"loss": loss.cross_entropy(inputs.device["logits"], inputs.host["labels"], reduction=reduction, ignore_index=ignore_index)}


def _elementary(attrs: Attributes, inputs: _Inputs) -> dict[str, Tensor]:
    functions = {"exp": elementary.exp, "log": elementary.log}
    if attrs["function"] not in functions:
        raise NotSupported(f"tinygrad_lora has no elementary function {attrs['function']!r}; allowed: {', '.join(functions)}")
    return {"y": functions[attrs["function"]](inputs.device["x"])}


def _nf4_quantize(attrs: Attributes, inputs: _Inputs) -> dict[str, Tensor]:
    if not np.isfinite(inputs.host["weight"]).all():
        raise ValueError("the weight holds NaN or infinity, which has no NF4 code; allowed: finite numbers")
    codes, packed, absmax = nf4.quantize(inputs.device["weight"], attrs["block_size"])
    return {"codes": codes, "packed": packed, "absmax": absmax}


def _nf4_offset(attrs: Attributes, inputs: _Inputs) -> dict[str, Tensor]:
    return {"offset": nf4.offset(inputs.device["absmax"])}


def _nf4_nest(attrs: Attributes, inputs: _Inputs) -> dict[str, Tensor]:
    codes, nested_absmax = nf4.nest(inputs.device["absmax"], inputs.device["offset"])
    return {"absmax_codes": codes, "nested_absmax": nested_absmax}


def _nf4_unnest(attrs: Attributes, inputs: _Inputs) -> dict[str, Tensor]:
    return {"absmax": nf4.unnest(inputs.device["absmax_codes"], inputs.device["nested_absmax"], inputs.device["offset"])}


def _nf4_dequantize(attrs: Attributes, inputs: _Inputs) -> dict[str, Tensor]:
    return {"weight": nf4.dequantize(inputs.device["packed"], inputs.device["absmax"], **_layout(attrs))}


def _nf4_linear(attrs: Attributes, inputs: _Inputs) -> dict[str, Tensor]:
    x, packed, absmax, bias = (inputs.device.get(name) for name in ("x", "packed", "absmax", "bias"))
    return {"y": nf4.nf4_linear(x, packed, absmax, bias, **_layout(attrs))}


def _layout(attrs: Attributes) -> dict[str, int]:
    return {name: int(attrs[name]) for name in ("block_size", "out_features", "in_features")}


@dataclass(frozen=True, kw_only=True)
class _Entry:
    compute: Compute
    dtypes: tuple[str, ...] = ("float32",)
    required: frozenset[str] = frozenset()


_BOTH = ("float32", "float64")
_LAYOUT = frozenset({"block_size", "out_features", "in_features"})
_ENTRIES: Mapping[str, _Entry] = {
    "matmul": _Entry(compute=_matmul, dtypes=_BOTH),
    "linear": _Entry(compute=_linear, dtypes=_BOTH),
    "cross_entropy": _Entry(compute=_cross_entropy, dtypes=_BOTH),
    "elementary": _Entry(compute=_elementary, dtypes=_BOTH, required=frozenset({"function"})),
    "nf4_quantize": _Entry(compute=_nf4_quantize, required=frozenset({"block_size"})),
    "nf4_offset": _Entry(compute=_nf4_offset),
    "nf4_nest": _Entry(compute=_nf4_nest),
    "nf4_unnest": _Entry(compute=_nf4_unnest),
    "nf4_dequantize": _Entry(compute=_nf4_dequantize, required=_LAYOUT),
    "nf4_linear": _Entry(compute=_nf4_linear, required=_LAYOUT),
}
