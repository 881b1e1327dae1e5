"""One operation as data, and what an answer to it must hold.

Dimensions are single letters, bound by the inputs; contract/worker/operations.py has the legend.

dtypes: "work" is the attribute `dtype` of the request (float32, float64, ...); any other name is itself.
A name in `gradients` is the gradient of that input, answered as `<name>_grad` when the cotangent
`<output>_bar` of every differentiable output was given, unless the attribute `frozen` lists the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

WORK_DTYPES = ("bfloat16", "float16", "float32", "float64")
"""What `dtype` may be."""

NESTED_BLOCK_SIZE = 256
"""Blocks of absmax that share one nested absmax (QLoRA, arXiv:2305.14314, section 3)."""


LARGEST_HEAD_DIM = 65536
"""head_dim comes as a number where there is no tensor to bound it: a typing error must not ask for terabytes."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor: its dimensions by letter, and its dtype (or "work")."""

    dims: str
    dtype: str = "work"
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation: what it computes, what it takes, what it answers."""

    name: str
    formula: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    gradients: tuple[str, ...] = ()
    attributes: frozenset[str] = field(default_factory=frozenset)

    def cotangents(self) -> dict[str, TensorSpec]:
        """The inputs `<output>_bar` that ask for gradients."""
        return {f"{name}_bar": spec for name, spec in self.outputs.items()} if self.gradients else {}


def expected_answer(
    operation: Operation, attrs: Mapping[str, object], tensors: Mapping[str, np.ndarray]
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor that the answer to a request must hold.

    Raises:
        ValueError: an unknown attribute, or an input that is missing, unknown, of the wrong rank or
            dtype, or at odds with another input; heads, a head_dim or a rank that the operation is not defined for.
    """
    allowed = operation.attributes | {"dtype"} | ({"frozen"} if operation.gradients else set())
    unknown = set(attrs) - allowed
    if unknown:
        raise ValueError(f"{operation.name}: unknown attribute {sorted(unknown)}; allowed: {sorted(allowed)}")
    work = str(attrs.get("dtype", "float32"))
    sizes = _sizes_from_attributes(operation, attrs)
    known = {**operation.inputs, **operation.cotangents()}
    for name in tensors:
        if name not in known:
            raise ValueError(f"{operation.name}: unknown input {name!r}; allowed: {sorted(known)}")
    for name, spec in operation.inputs.items():
        if name not in tensors:
            if spec.optional:
                continue
            raise ValueError(f"{operation.name}: input {name!r} is missing; give {sorted(operation.inputs)}")
        _bind(operation.name, name, spec, tensors[name], work, sizes)
    if operation.name.startswith("nf4_"):
        _derive(operation.name, attrs, sizes)
    given_cotangents = [name for name in operation.cotangents() if name in tensors]
    if given_cotangents and len(given_cotangents) != len(operation.cotangents()):
        raise ValueError(f"{operation.name}: give every cotangent of {sorted(operation.cotangents())}, got {given_cotangents}")
    answer = {name: (_shape(spec, sizes), _dtype(spec, work)) for name, spec in operation.outputs.items()}
    for name in given_cotangents:
        _bind(operation.name, name, operation.cotangents()[name], tensors[name], work, sizes)
    if given_cotangents:
        for name in wanted_gradients(operation, attrs):
            if name in tensors:
                answer[f"{name}_grad"] = (_shape(operation.inputs[name], sizes), _dtype(operation.inputs[name], work))
    _require_defined(operation.name, sizes)
    return answer


def wanted_gradients(operation: Operation, attrs: Mapping[str, object]) -> tuple[str, ...]:
    """The inputs whose gradients a request with cotangents asks for: all of `gradients` but those that `frozen` lists.

    Raises:
        ValueError: `frozen` is no list of names from `gradients`.
    """
    frozen = attrs.get("frozen", ())
    if not isinstance(frozen, list | tuple) or not all(name in operation.gradients for name in frozen):
        raise ValueError(f"{operation.name}: frozen is {frozen!r}, must be a list of names from {list(operation.gradients)}")
    return tuple(name for name in operation.gradients if name not in frozen)


def _sizes_from_attributes(operation: Operation, attrs: Mapping[str, object]) -> dict[str, int]:
    for name in sorted(operation.attributes & {"block_size", "out_features", "in_features", "head_dim"}):
        value = attrs.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{operation.name}: attribute {name} is {value!r}, must be an integer of at least 1")
    letters = {"out_features": "O", "in_features": "I", "head_dim": "E"}
    return {letter: int(str(attrs[name])) for name, letter in letters.items() if name in operation.attributes}


def _require_defined(op: str, sizes: Mapping[str, int]) -> None:
    """Sizes that fit each other and still mean nothing."""
    if op == "attention" and (sizes["K"] == 0 or sizes["H"] % sizes["K"]):
        raise ValueError(
            f"{op}: q has {sizes['H']} heads, k and v have {sizes['K']}; allowed: a number of heads of q that is a multiple of that of "
            "k and v, which is 1 or more; give as many query heads to each"
        )
    if op in ("rope", "rope_tables") and (sizes["E"] % 2 or sizes["E"] > LARGEST_HEAD_DIM):
        raise ValueError(
            f"{op}: head_dim is {sizes['E']}; allowed: an even number of at most {LARGEST_HEAD_DIM}, since RoPE turns pairs; "
            "give heads of an even width"
        )
    if op == "lora_linear" and sizes["R"] == 0:
        raise ValueError(f"{op}: lora_a and lora_b have rank 0; allowed: 1 and more; leave the adapter out and ask for linear")


def _derive(op: str, attrs: Mapping[str, object], sizes: dict[str, int]) -> None:
    """Sizes of NF4 that follow from others: elements, packed bytes, blocks, blocks of absmax."""
    derived: dict[str, int] = {}
    if "O" in sizes and "I" in sizes:
        derived["E"] = sizes["O"] * sizes["I"]
        derived["P"] = (derived["E"] + 1) // 2
        if "block_size" in attrs:
            derived["B"] = -(-derived["E"] // int(str(attrs["block_size"])))
    if "B" in derived or "B" in sizes:
        derived["S"] = -(-derived.get("B", sizes.get("B", 0)) // NESTED_BLOCK_SIZE)
    for letter, size in derived.items():
        if sizes.setdefault(letter, size) != size:
            raise ValueError(f"{op}: an input has {letter} = {sizes[letter]}, the others make it {size}; they must agree")


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[letter] for letter in spec.dims)


def _dtype(spec: TensorSpec, work: str) -> str:
    return work if spec.dtype == "work" else spec.dtype


def _bind(op: str, name: str, spec: TensorSpec, tensor: np.ndarray, work: str, sizes: dict[str, int]) -> None:
    if tensor.dtype.name != _dtype(spec, work):
        raise ValueError(f"{op}: {name} is {tensor.dtype.name}, must be {_dtype(spec, work)}")
    if tensor.ndim != len(spec.dims):
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, must have {len(spec.dims)} dimensions ({', '.join(spec.dims)})")
    for letter, size in zip(spec.dims, tensor.shape, strict=True):
        if sizes.setdefault(letter, size) != size:
            raise ValueError(f"{op}: {name} has {letter} = {size}, another tensor has {letter} = {sizes[letter]}; they must agree")
