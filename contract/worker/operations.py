"""The operations that a stack computes on request, with the shape and dtype of every tensor.

`compute(op, attrs, tensors)` names one of these. An answer is checked against the same table, so
that a missing, extra or wrongly shaped tensor is a broken protocol and never a wrong verdict.

Dimensions are single letters, bound by the inputs (legend)::

    M rows    K inner length    N columns    T tokens    I in_features    O out_features    V vocabulary
    E elements of a weight (O * I)    P packed bytes    B blocks    S blocks of absmax (256 each)

dtypes: "work" is the attribute `dtype` of the request (float32, float64, ...); any other name is itself.
A name in `gradients` is the gradient of that input, answered as `<name>_grad` when the cotangent
`<output>_bar` of every differentiable output was given, unless the attribute `frozen` lists the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

WORK_DTYPES = ("bfloat16", "float16", "float32", "float64")
"""What `dtype` may be."""

NESTED_BLOCK_SIZE = 256
"""Blocks of absmax that share one nested absmax (QLoRA, arXiv:2305.14314, section 3)."""


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


def _table(*operations: Operation) -> Mapping[str, Operation]:
    return MappingProxyType({operation.name: operation for operation in operations})


OPERATIONS: Mapping[str, Operation] = _table(
    Operation(
        name="matmul",
        formula="y = a b",
        inputs={"a": TensorSpec(dims="MK"), "b": TensorSpec(dims="KN")},
        outputs={"y": TensorSpec(dims="MN")},
        gradients=("a", "b"),
    ),
    Operation(
        name="linear",
        formula="y = x weight^T + bias",
        inputs={
            "x": TensorSpec(dims="TI"),
            "weight": TensorSpec(dims="OI"),
            "bias": TensorSpec(dims="O", optional=True),
        },
        outputs={"y": TensorSpec(dims="TO")},
        gradients=("x", "weight", "bias"),
    ),
    Operation(
        name="cross_entropy",
        formula="loss = sum over rows t with labels[t] != ignore_index of (logsumexp(logits[t]) - logits[t, labels[t]]), "
        "divided by the number of those rows where reduction is mean",
        inputs={"logits": TensorSpec(dims="TV"), "labels": TensorSpec(dims="T", dtype="int64")},
        outputs={"loss": TensorSpec(dims="")},
        gradients=("logits",),
        attributes=frozenset({"reduction", "ignore_index"}),
    ),
    Operation(
        name="elementary",
        formula="y = function(x), element by element; function is exp or log",
        inputs={"x": TensorSpec(dims="T")},
        outputs={"y": TensorSpec(dims="T")},
        attributes=frozenset({"function"}),
    ),
    Operation(
        name="nf4_quantize",
        formula="per block of block_size elements of the flattened weight: absmax = max |w|, "
        "code = nearest NF4 value to w * f32(1 / max(absmax, 1e-38)), the lower one at a midpoint; "
        "two codes a byte, the earlier element in the high nibble, a missing last one 0",
        inputs={"weight": TensorSpec(dims="OI", dtype="float32")},
        outputs={
            "codes": TensorSpec(dims="E", dtype="uint8"),
            "packed": TensorSpec(dims="P", dtype="uint8"),
            "absmax": TensorSpec(dims="B", dtype="float32"),
        },
        attributes=frozenset({"block_size"}),
    ),
    Operation(
        name="nf4_offset",
        formula="offset = mean(absmax)",
        inputs={"absmax": TensorSpec(dims="B", dtype="float32")},
        outputs={"offset": TensorSpec(dims="", dtype="float32")},
    ),
    Operation(
        name="nf4_nest",
        formula="per 256 blocks: nested_absmax = max |absmax - offset|, code = nearest value of the signed dynamic "
        "8-bit map to (absmax - offset) * f32(1 / nested_absmax), the lower one at a midpoint; code 0 where nested_absmax is 0",
        inputs={"absmax": TensorSpec(dims="B", dtype="float32"), "offset": TensorSpec(dims="", dtype="float32")},
        outputs={
            "absmax_codes": TensorSpec(dims="B", dtype="uint8"),
            "nested_absmax": TensorSpec(dims="S", dtype="float32"),
        },
    ),
    Operation(
        name="nf4_unnest",
        formula="absmax = f32(f32(map[absmax_codes] * nested_absmax) + offset)",
        inputs={
            "absmax_codes": TensorSpec(dims="B", dtype="uint8"),
            "nested_absmax": TensorSpec(dims="S", dtype="float32"),
            "offset": TensorSpec(dims="", dtype="float32"),
        },
        outputs={"absmax": TensorSpec(dims="B", dtype="float32")},
    ),
    Operation(
        name="nf4_dequantize",
        formula="weight = f32(nf4[code] * absmax of its block), reshaped to [out_features, in_features]",
        inputs={"packed": TensorSpec(dims="P", dtype="uint8"), "absmax": TensorSpec(dims="B", dtype="float32")},
        outputs={"weight": TensorSpec(dims="OI", dtype="float32")},
        attributes=frozenset({"block_size", "out_features", "in_features"}),
    ),
    Operation(
        name="nf4_linear",
        formula="y = x dequantize(packed, absmax)^T + bias, as the stack's production path computes it",
        inputs={
            "x": TensorSpec(dims="TI"),
            "packed": TensorSpec(dims="P", dtype="uint8"),
            "absmax": TensorSpec(dims="B", dtype="float32"),
            "bias": TensorSpec(dims="O", optional=True),
        },
        outputs={"y": TensorSpec(dims="TO")},
        gradients=("x",),
        attributes=frozenset({"block_size", "out_features", "in_features"}),
    ),
)


def expected_answer(
    operation: Operation, attrs: Mapping[str, object], tensors: Mapping[str, np.ndarray]
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor that the answer to a request must hold.

    Raises:
        ValueError: an unknown attribute, or an input that is missing, unknown, of the wrong rank or
            dtype, or at odds with another input.
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
    return answer


def wanted_gradients(operation: Operation, attrs: Mapping[str, object]) -> tuple[str, ...]:
    """The inputs whose gradients a request with cotangents asks for: all of `gradients` but those that `frozen` lists.

    Raises:
        ValueError: `frozen` is no list of names from `gradients`.
    """
    frozen = attrs.get("frozen", ())
    if not isinstance(frozen, list | tuple) or not set(frozen) <= set(operation.gradients):
        raise ValueError(f"{operation.name}: frozen is {frozen!r}, must be a list of names from {list(operation.gradients)}")
    return tuple(name for name in operation.gradients if name not in frozen)


def _sizes_from_attributes(operation: Operation, attrs: Mapping[str, object]) -> dict[str, int]:
    for name in sorted(operation.attributes & {"block_size", "out_features", "in_features"}):
        value = attrs.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{operation.name}: attribute {name} is {value!r}, must be an integer of at least 1")
    letters = {"out_features": "O", "in_features": "I"}
    return {letter: int(str(attrs[name])) for name, letter in letters.items() if name in operation.attributes}


def _derive(op: str, attrs: Mapping[str, object], sizes: dict[str, int]) -> None:
    """Sizes that follow from others: elements, packed bytes, blocks, blocks of absmax."""
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
