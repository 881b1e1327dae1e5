"""The requests that this stack answers: each one a call into the file that computes it."""

from __future__ import annotations

from collections.abc import Sequence

from tinygrad import Device
from tinygrad.helpers import DEV, PARALLEL

from contract.errors import MissingError, UserError
from contract.worker.operation import expected_answer, wanted_gradients
from contract.worker.operations import OPERATIONS
from contract.worker.plan import GraphPlan
from contract.worker.serve import Channel
from contract.worker.stack import Attributes, NotSupported, Reply, Tensors
from stacks.tinygrad_lora import compiler, entries, probe, webgpu
from stacks.tinygrad_lora.entries import ENTRIES, Entry
from stacks.tinygrad_lora.replay import Replays
from stacks.tinygrad_lora.session import Session

DEVICES = ("CPU", "CUDA", "WEBGPU", "CL", "METAL")
GRAPHS, ARCHITECTURES = ("full_causal",), ("llama",)
"""The graphs and the model types that this stack opens, none of them with options."""

PATHS = ("nf4_linear",)
"""The production paths that this stack has beside the plain one."""


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
        self._replays = Replays(device)
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
        try:
            prepared = entry.prepare(attrs, tensors)
        except ValueError as error:
            raise ValueError(f"{op}: {error}") from error
        outputs = dict(prepared.host)
        if prepared.given:
            wanted = tuple(name for name in wanted_gradients(operation, attrs) if f"{name}_grad" in answer)
            static = tuple(sorted(prepared.static.items()))
            outputs |= self._replays.run(entries.compute, prepared.given, op=op, wanted=wanted, static=static)
        return Reply(tensors={name: array.reshape(answer[name][0]) for name, array in outputs.items()})

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
        if plan.graph not in GRAPHS or plan.layout.model_type not in ARCHITECTURES:
            raise NotSupported(
                f"tinygrad_lora opens no {plan.graph} of {plan.layout.model_type}; allowed: {', '.join(GRAPHS)} of "
                f"{', '.join(ARCHITECTURES)}; take another model, or another stack"
            )
        if plan.layout.options:
            options = ", ".join(plan.layout.options)
            raise NotSupported(
                f"tinygrad_lora opens no {plan.layout.model_type} with {options}; allowed: a layout without options; "
                "take another model, or another stack"
            )
        if plan.lora.rank_pattern or plan.lora.alpha_pattern:
            raise NotSupported("tinygrad_lora has one rank and one alpha for all linears; leave rank_pattern and alpha_pattern out")
        if plan.dtype not in self._dtypes:
            raise NotSupported(f"tinygrad_lora opens no graph in {plan.dtype} on {self._device}; allowed: {', '.join(self._dtypes)}")
        strange = sorted(set(plan.paths) - set(PATHS))
        if strange:
            raise NotSupported(f"tinygrad_lora has no path {strange[0]!r}; allowed: {', '.join(PATHS)}")
        if "nf4_linear" in plan.paths and plan.dtype != "float32":
            raise NotSupported(f"the path nf4_linear computes in float32, the plan in {plan.dtype}; leave the path out, or ask for float32")

    def _entry(self, op: str, attrs: Attributes) -> Entry:
        if op not in ENTRIES:
            raise NotSupported(f"tinygrad_lora does not compute {op!r}; allowed: {', '.join(ENTRIES)}")
        entry, dtype = ENTRIES[op], attrs.get("dtype", "float32")
        allowed = [name for name in entry.dtypes if name in self._dtypes]
        if dtype not in allowed:
            raise NotSupported(f"tinygrad_lora does not compute {op} in {dtype} on {self._device}; allowed: {', '.join(allowed)}")
        return entry
