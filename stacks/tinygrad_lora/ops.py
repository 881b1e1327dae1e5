"""The requests that this stack answers: each one a call into the file that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.worker.operation import expected_answer, wanted_gradients
from contract.worker.operations import OPERATIONS
from contract.worker.plan import GraphPlan
from contract.worker.serve import Channel
from contract.worker.stack import Attributes, NotSupported, Reply, Tensors
from stacks.tinygrad_lora import entries, probe
from stacks.tinygrad_lora.device import open_beside, open_device
from stacks.tinygrad_lora.entries import ENTRIES, Entry
from stacks.tinygrad_lora.failures import told
from stacks.tinygrad_lora.merge import HOST
from stacks.tinygrad_lora.replay import Replays
from stacks.tinygrad_lora.session import Session

if TYPE_CHECKING:
    from contract.training.inputs import Run
    from contract.training.stepwise import Stepwise
    from contract.training.trainer import Trainer

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
        EnvironmentUnfit: no compiler works for it, or tinygrad's cache of kernels can't be used.
    """

    def __init__(self, device: str, channel: Channel | None = None) -> None:
        self._compiler = open_device(device)
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

    def merge(self, graph: str, linears: Sequence[str] | None = None) -> Reply:
        """The open graph's LoRA goes into its weights; W' of the named linears, or of all that had any. In float64 on the CPU."""
        session = self._opened(graph)
        if self._device != HOST:
            open_beside(HOST)
        return Reply(tensors=session.merge(linears))

    def save(self, graph: str, folder: str) -> Reply:
        """The open graph's adapter, into files: FOLDER/adapter (v3, v2) and FOLDER/peft."""
        return Reply(values={"notes": list(self._opened(graph).save(Path(folder)))})

    @told
    def generate(self, **values: Any) -> Reply:
        """See `stacks.tinygrad_lora.load.respond`."""
        from stacks.tinygrad_lora.load import respond

        return respond(values, self._device, self._channel, require=self._require_plan)

    @told
    def score(self, tensors: Tensors | None = None, **values: Any) -> Reply:
        """See `stacks.tinygrad_lora.score.respond`."""
        from stacks.tinygrad_lora.score import respond

        return respond(values, tensors or {}, self._device, require=self._require_plan)

    def train(self, **values: Any) -> Reply:
        """A whole run: see `contract.training.session.train`, and `stacks.tinygrad_lora.train.TinygradTrainer` for its computation."""
        from stacks.tinygrad_lora.train import respond

        notes = () if self._compiler is None else (self._compiler.told(),)
        return respond(values, self._device, self._channel, require=self._require_plan, notes=notes)

    def train_open(self, **values: Any) -> Reply:
        """See `contract.training.stepwise.Stepwise.open`.

        Raises:
            NotSupported: the device lacks the dtype.
        """
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
        from stacks.tinygrad_lora.train import paths

        return respond(contract, lambda run: paths(run.plan))

    @cached_property
    def _stepwise(self) -> Stepwise:
        from contract.training.stepwise import Stepwise

        return Stepwise(self._trainer)

    def _trainer(self, run: Run) -> Trainer:
        from stacks.tinygrad_lora.train import TinygradTrainer

        self._require_plan(run.plan)
        return TinygradTrainer(run, self._device, report=self._report)

    def _report(self, **values: Any) -> None:
        if self._channel is not None:
            self._channel.progress(**values)

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
        if "nf4_linear" in plan.paths and plan.dtype == "float64":
            raise NotSupported(
                "the path nf4_linear computes in float32 or bfloat16, the plan in float64; leave the path out, or ask for one of the two"
            )

    def _entry(self, op: str, attrs: Attributes) -> Entry:
        if op not in ENTRIES:
            raise NotSupported(f"tinygrad_lora does not compute {op!r}; allowed: {', '.join(ENTRIES)}")
        entry, dtype = ENTRIES[op], attrs.get("dtype", "float32")
        allowed = [name for name in entry.dtypes if name in self._dtypes]
        if dtype not in allowed:
            raise NotSupported(f"tinygrad_lora does not compute {op} in {dtype} on {self._device}; allowed: {', '.join(allowed)}")
        return entry
