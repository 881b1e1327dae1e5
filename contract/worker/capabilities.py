"""What a stack can do at all: static data beside its entry point, readable without importing it."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from contract.run.spec import Base, ComputeDtype, Graph, Lane, Method, Optimizer, TokenizerMode
from contract.worker.operation import WORK_DTYPES
from contract.worker.operations import OPERATIONS
from contract.worker.plan import Dtype, Path

Function = Literal["exp", "log", "sqrt", "reciprocal", "tanh", "erf", "sin", "cos"]
FUNCTIONS: tuple[Function, ...] = get_args(Function)
"""The elementary functions that primitives are built on. A stack declares those that its own primitives use."""


class Elementary(BaseModel):
    """A stack's declared worst error of one elementary function over one range.

    |y - f(x)| <= ulp * spacing(f(x)) + absolute, for every x of the dtype in [low, high], on the named devices (all, where none is named).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    function: Function
    dtype: Literal["float32", "float64"]
    low: float
    high: float
    ulp: float = Field(ge=0)
    absolute: float = Field(ge=0)
    devices: tuple[str, ...] = ()


class Graphs(BaseModel):
    """The whole graphs that a stack opens (contract.worker.graph)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architectures: dict[str, tuple[Dtype, ...]] = Field(description="model_type -> dtypes")
    nf4: bool = Field(description="whether the block linears may be NF4")
    paths: tuple[Path, ...] = Field(description="production paths that it has beside the plain one")
    layout_options: tuple[str, ...] = Field(default=(), description="options of a layout beyond the plain graph of its type")
    packing: bool = Field(default=False, description="whether requests may carry positions and segments")
    patterns: bool = Field(default=False, description="whether linears may differ in rank and alpha")
    proxy: tuple[Dtype, ...] = Field(
        default=(), description="dtypes in which it opens qlora_proxy_v1, of any architecture; none: not at all"
    )


Dimensions = Annotated[str, Field(pattern="^[BTDFHSQNR]+$")]
"""A product of dimensions, such as BTD; the letters are those of contract/worker/taps.py."""

Copies = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Slices(BaseModel):
    """How a stack sums the gradient with respect to the input of a frozen linear [O, I]: from parts of [B, T, I], all held at once.

    O / g parts, g = gcd(O, size); none where g < smallest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=1)
    smallest: int = Field(ge=1)
    head: Copies = Field(description="copies of the head's parts that are held at once")
    linears: Copies = Field(description="copies of the parts of all linears of a block")


class Memory(BaseModel):
    """What a run holds at its peak on one device in one compute dtype (contract/run/memory.py has the formula).

    Copies are in units of float32 values; they are measured, and count what the allocator can't give back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    dtype: ComputeDtype = Field(default="float32", description="the compute dtype that this is of")
    process: int = Field(ge=0, description="bytes: the process itself, its libraries loaded")
    loading: Copies = Field(description="copies of all weights that are held beside the graph while it is opened")
    residue: Copies = Field(description="copies of the linears' float32 weights that stay behind when they become NF4")
    adapter: Copies = Field(default=0, description="copies of the adapter that are held beside it and its gradient")
    head_apart: bool = Field(description="a tied head is held a second time")
    activations: dict[Dimensions, Copies] = Field(description="of each layer, held for the backward pass")
    work: dict[Dimensions, Copies] = Field(default_factory=dict, description="of the one layer that is computed, forward and backward")
    logits: Copies = Field(description="copies of [B, T, V] that are held at once")
    chunk: int | None = Field(default=None, ge=1, description="logits that are computed at once, at most (a row of them at least)")
    panels: Copies = Field(default=0, description="copies of the head's weight [V, D] in another layout, held while it is multiplied")
    recomputes: bool = Field(default=False, description="where a run does not fit, its blocks are computed again in the backward pass")
    slices: Slices | None = Field(default=None, description="None: the gradient is one product")
    source: str = Field(min_length=1, description="the command that measured these")


class Inference(BaseModel):
    """A run that names no stack goes to the stack that is inferred for its lane and method (or base)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lane: Lane
    methods: tuple[Method, ...] = ()
    bases: tuple[Base, ...] = ()


class Training(BaseModel):
    """The runs that a stack takes; each field is an allowed set for one field of the contract."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inferred_for: tuple[Inference, ...] = ()
    bases: dict[Method, tuple[Base, ...]] = Field(description="method -> bases that it goes with")
    tokenizers: tuple[TokenizerMode, ...]
    graphs: dict[Graph, tuple[str, ...]] = Field(description="graph -> model types, each only once tier C passes for it")
    layout_options: tuple[str, ...] = Field(description="options of a layout beyond the plain graph, such as rope_scaling.llama3")
    compute_dtypes: tuple[ComputeDtype, ...]
    optimizers: tuple[Optimizer, ...]
    optimizer_devices: dict[Optimizer, tuple[str, ...]] = Field(
        default_factory=dict, description="optimizer -> the only devices on which the stack has it"
    )
    dropout: bool
    packing: bool
    patterns: bool = Field(description="rank_pattern and alpha_pattern")
    sessions: tuple[Literal["float32", "float64", "bfloat16"], ...] = Field(
        default=(), description="dtypes of training sessions; none: it has none"
    )
    memory: tuple[Memory, ...] = ()


class Capabilities(BaseModel):
    """What a stack can do at all: static, beside its entry point, readable without importing it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: Literal[1]
    lane: Literal[Lane, "witness"] = Field(description="witness: no lane, but a third opinion on files")
    extra: str = Field(description="the extra of the distribution that installs the stack")
    packages: tuple[Annotated[str, Field(min_length=1)], ...] = Field(description="distributions whose versions belong into every report")
    devices: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]+$")], ...] = Field(
        min_length=1, description="the first one is the default"
    )
    requests: tuple[str, ...]
    operations: dict[str, tuple[str, ...]] = Field(description="operation -> dtypes that it computes in")
    nf4_block_sizes: tuple[int, ...] = ()
    elementary: tuple[Elementary, ...] = ()
    graphs: Graphs | None = None
    scores: dict[str, tuple[Dtype, ...]] = Field(
        default_factory=dict, description="model_type -> dtypes in which it scores a checkpoint with an adapter"
    )
    training: Training | None = Field(default=None, description="None: it does not take part in training at all")

    @field_validator("operations")
    @classmethod
    def _known(cls, operations: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, dtypes in operations.items():
            if name not in OPERATIONS:
                raise ValueError(f"there is no operation {name!r}; allowed: {', '.join(OPERATIONS)}")
            if not set(dtypes) <= set(WORK_DTYPES):
                raise ValueError(f"{name}: dtypes are {list(dtypes)}; allowed: {', '.join(WORK_DTYPES)}")
        return operations

    def elementary_on(self, device: str) -> tuple[Elementary, ...]:
        """The declarations that hold on a device."""
        return tuple(one for one in self.elementary if not one.devices or device in one.devices)
