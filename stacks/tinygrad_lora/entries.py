"""The operations of tiers A and B: what of a request goes to the device, and which file computes on it.

Whatever a value may change (labels, eps, a learning rate) is a tensor; only what is `static` shapes the kernels. So one captured
sequence of kernels serves every request of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from tinygrad import Tensor

from contract.worker.stack import Attributes, NotSupported, Tensors
from stacks.tinygrad_lora import activation, attention, attributes, elementary, embedding, linear, lora, loss, nf4, norm, optim, rope
from stacks.tinygrad_lora.hook import Hook
from stacks.tinygrad_lora.visible import visible

IGNORE_INDEX = -100
"""The label of a row that does not count, where a request names none (as in PyTorch)."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request made ready.

    Attributes:
        given: what goes to the device, by name; nothing where the host computes it all.
        static: keyword arguments that shape the kernels; hashable.
        host: what the host itself answers.
    """

    given: Mapping[str, np.ndarray] = field(default_factory=dict)
    static: Mapping[str, object] = field(default_factory=dict)
    host: Mapping[str, np.ndarray] = field(default_factory=dict)


Prepare = Callable[[Attributes, Tensors], Prepared]
Compute = Callable[..., dict[str, Tensor]]
"""(tensors by name, then `static` by keyword) -> outputs by name."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One operation: its outputs as a function of tensors by name, how a request is prepared, its dtypes, attributes it must have.

    compute is None where the host answers it all.
    """

    compute: Compute | None
    prepare: Prepare = lambda attrs, tensors: Prepared(given=tensors)
    dtypes: tuple[str, ...] = ("float32", "float64")
    required: frozenset[str] = frozenset()


def _numbers(attrs: Attributes, **values: float) -> dict[str, np.ndarray]:
    """Numbers as arrays of shape [1], each rounded once to the dtype of the request."""
    return {name: np.array([value], dtype=_dtype(attrs)) for name, value in values.items()}


def _dtype(attrs: Attributes) -> str:
    return str(attrs.get("dtype", "float32"))


def _cross_entropy(attrs: Attributes, tensors: Tensors) -> Prepared:
    reduction, ignore_index = attributes.choice(attrs, "reduction", loss.REDUCTIONS), attributes.label(attrs, "ignore_index", IGNORE_INDEX)
    logits_TV, labels_T = tensors["logits"], tensors["labels"]
    rows = loss.rows(labels_T, vocabulary=logits_TV.shape[1], reduction=reduction, ignore_index=ignore_index, dtype=_dtype(attrs))
    return Prepared(given={**{name: array for name, array in tensors.items() if name != "labels"}, **rows})


def _elementary(attrs: Attributes, tensors: Tensors) -> Prepared:
    function, dtype = str(attrs["function"]), _dtype(attrs)
    if function in rope.FUNCTIONS:
        if dtype != "float64":
            raise NotSupported(f"tinygrad_lora computes {function} for RoPE's tables alone, in float64; got {dtype}")
        with np.errstate(invalid="ignore"):  # of an infinity it is NaN, and no warning
            return Prepared(host={"y": rope.FUNCTIONS[function](tensors["x"])})
    if function not in elementary.FUNCTIONS:
        allowed = ", ".join((*elementary.FUNCTIONS, *rope.FUNCTIONS))
        raise NotSupported(f"tinygrad_lora has no elementary function {function!r}; allowed: {allowed}")
    return Prepared(given=tensors, static={"function": function})


def _embedding(attrs: Attributes, tensors: Tensors) -> Prepared:
    embedding.require_ids(tensors["ids"], vocabulary=tensors["weight"].shape[0])
    return Prepared(given={**tensors, "ids": tensors["ids"].astype(np.int32)})


def _norm(attrs: Attributes, tensors: Tensors) -> Prepared:
    return Prepared(given={**tensors, **_numbers(attrs, width=tensors["x"].shape[-1], eps=attributes.positive(attrs, "eps"))})


def _rope_tables(attrs: Attributes, tensors: Tensors) -> Prepared:
    cos_TE, sin_TE = _tables(attrs, tensors["positions"], int(attrs["head_dim"]))
    return Prepared(host={"cos": cos_TE, "sin": sin_TE})


def _rope(attrs: Attributes, tensors: Tensors) -> Prepared:
    cos_BTE, sin_BTE = _tables(attrs, tensors["positions"], tensors["x"].shape[-1])
    given = {name: array for name, array in tensors.items() if name != "positions"}
    return Prepared(given={**given, "cos": cos_BTE[:, None], "sin": sin_BTE[:, None]})


def _tables(attrs: Attributes, positions: np.ndarray, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    frequencies_F = rope.frequencies(head_dim, attributes.positive(attrs, "theta"), attributes.rope_scaling(attrs))
    return rope.tables(positions, frequencies_F, _dtype(attrs))


def _attention(attrs: Attributes, tensors: Tensors) -> Prepared:
    given = {name: array for name, array in tensors.items() if name != "valid"}
    seen = visible(tensors["q"].shape[2], window=attributes.window(attrs), valid_BT=tensors.get("valid"))
    return Prepared(given={**given, "seen": seen, **_numbers(attrs, divisor=tensors["q"].shape[-1] ** 0.5)})


def _attend(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"context": attention.attention(t["q"], t["k"], t["v"], divisor_1=t["divisor"], seen_TS=t["seen"])}


def _gelu(attrs: Attributes, tensors: Tensors) -> Prepared:
    return Prepared(given=tensors, static={"approximate": attributes.choice(attrs, "approximate", activation.APPROXIMATIONS)})


def _lora_linear(attrs: Attributes, tensors: Tensors) -> Prepared:
    dropout = attributes.fraction(attrs, "dropout", default=0)
    if (dropout > 0) != ("keep" in tensors):
        keep = "keep is given" if "keep" in tensors else "keep is missing"
        raise ValueError(f"dropout is {dropout!r} and {keep}; allowed: a dropout over 0 with keep, or 0 without")
    alpha, rslora = attributes.positive(attrs, "alpha"), attributes.flag(attrs, "rslora")
    s = lora.scaling(alpha=alpha, rank=tensors["lora_a"].shape[0], rslora=rslora)
    return Prepared(given={**tensors, **_numbers(attrs, scaling=s, kept_share=1 - dropout)})


def _lora(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {"y": t["weight"], **{f"y.{name}": t[name] for name in ("bias", "lora_a", "lora_b", "keep") if name in t}}
    tensors = {**named, "y.scaling": t["scaling"], "kept_share": t["kept_share"]}
    linears = lora.Linears(tensors=tensors, out_features={"y": int(t["weight"].shape[0])}, block_size=None, hook=Hook({}))
    return {"y": linears("y", t["x"])}


def _clip_gradients(attrs: Attributes, tensors: Tensors) -> Prepared:
    return Prepared(given={**tensors, **_numbers(attrs, max_norm=attributes.positive(attrs, "max_norm"))})


def _clip(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
    norm_1, (a, b) = optim.clip_gradients((t["a"], t["b"]), t["max_norm"])
    return {"norm": norm_1, "a_clipped": a, "b_clipped": b}


_ADAMW = ("weight", "gradient", "m", "v")


def _adamw_step(attrs: Attributes, tensors: Tensors) -> Prepared:
    step = int(tensors["step"])
    if not 0 <= step < 2**53:
        raise ValueError(f"step is {step}; allowed: the number of steps that were done, at least 0 and below 2^53")
    numbers = optim.adamw_numbers(
        step, lr=attributes.not_negative(attrs, "lr"), beta1=attributes.fraction(attrs, "beta1"),
        beta2=attributes.fraction(attrs, "beta2"), eps=attributes.positive(attrs, "eps"),
        weight_decay=attributes.not_negative(attrs, "weight_decay"),
    )  # fmt: skip
    given = {**{name: tensors[name] for name in _ADAMW}, **_numbers(attrs, **numbers)}
    return Prepared(given=given, host={"step_next": np.array(step + 1, dtype=np.int64)})


def _adamw(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stepped = optim.adamw_step(t["weight"], t["gradient"], t["m"], t["v"], t)
    return dict(zip(("weight_next", "m_next", "v_next"), stepped, strict=True))


def _nf4_quantize(attrs: Attributes, tensors: Tensors) -> Prepared:
    if not np.isfinite(tensors["weight"]).all():
        raise ValueError("the weight holds NaN or infinity, which has no NF4 code; allowed: finite numbers")
    return Prepared(given=tensors, static={"block_size": int(attrs["block_size"])})


def _layout(attrs: Attributes, tensors: Tensors) -> Prepared:
    return Prepared(given=tensors, static={name: int(attrs[name]) for name in sorted(_LAYOUT)})


_LAYOUT = frozenset({"block_size", "out_features", "in_features"})
_FLOAT32 = ("float32",)

ENTRIES: Mapping[str, Entry] = {
    "matmul": Entry(compute=lambda t: {"y": linear.matmul(t["a"], t["b"])}),
    "linear": Entry(compute=lambda t: {"y": linear.linear(t["x"], t["weight"], t.get("bias"))}),
    "cross_entropy": Entry(
        compute=lambda t: {"loss": loss.cross_entropy(t["logits"], t["label"], t["counted"], t["count"])}, prepare=_cross_entropy
    ),
    "elementary": Entry(
        compute=lambda t, function: {"y": elementary.FUNCTIONS[function](t["x"])}, prepare=_elementary, required=frozenset({"function"})
    ),
    "embedding": Entry(compute=lambda t: {"y": embedding.embedding(t["weight"], t["ids"])}, prepare=_embedding),
    "rms_norm": Entry(
        compute=lambda t: {"y": norm.rms_norm(t["x"], t["weight"], width_1=t["width"], eps_1=t["eps"])},
        prepare=_norm, required=frozenset({"eps"}),
    ),
    "layer_norm": Entry(
        compute=lambda t: {"y": norm.layer_norm(t["x"], t["weight"], t["bias"], width_1=t["width"], eps_1=t["eps"])},
        prepare=_norm, required=frozenset({"eps"}),
    ),
    "rope_tables": Entry(compute=None, prepare=_rope_tables, required=frozenset({"head_dim", "theta"})),
    "rope": Entry(compute=lambda t: {"y": rope.rotate(t["x"], t["cos"], t["sin"])}, prepare=_rope, required=frozenset({"theta"})),
    "softmax": Entry(compute=lambda t: {"y": attention.softmax(t["x"])}),
    "attention": Entry(compute=_attend, prepare=_attention),
    "silu": Entry(compute=lambda t: {"y": activation.silu(t["x"])}),
    "gelu": Entry(
        compute=lambda t, approximate: {"y": activation.gelu(t["x"], approximate=approximate)}, prepare=_gelu,
        required=frozenset({"approximate"}),
    ),
    "swiglu": Entry(compute=lambda t: {"y": activation.swiglu(t["gate"], t["up"])}),
    "lora_linear": Entry(compute=_lora, prepare=_lora_linear, required=frozenset({"alpha"})),
    "clip_gradients": Entry(compute=_clip, prepare=_clip_gradients, required=frozenset({"max_norm"})),
    "adamw_step": Entry(
        compute=_adamw, prepare=_adamw_step, required=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay"})
    ),
    "nf4_quantize": Entry(
        compute=lambda t, block_size: dict(zip(("codes", "packed", "absmax"), nf4.quantize(t["weight"], block_size), strict=True)),
        prepare=_nf4_quantize, dtypes=_FLOAT32, required=frozenset({"block_size"}),
    ),
    "nf4_offset": Entry(compute=lambda t: {"offset": nf4.offset(t["absmax"])}, dtypes=_FLOAT32),
    "nf4_nest": Entry(
        compute=lambda t: dict(zip(("absmax_codes", "nested_absmax"), nf4.nest(t["absmax"], t["offset"]), strict=True)), dtypes=_FLOAT32
    ),
    "nf4_unnest": Entry(
        compute=lambda t: {"absmax": nf4.unnest(t["absmax_codes"], t["nested_absmax"], t["offset"])}, dtypes=_FLOAT32
    ),
    "nf4_dequantize": Entry(
        compute=lambda t, **layout: {"weight": nf4.dequantize(t["packed"], t["absmax"], **layout)},
        prepare=_layout, dtypes=_FLOAT32, required=_LAYOUT,
    ),
    "nf4_linear": Entry(
        compute=lambda t, **layout: {"y": nf4.nf4_linear(t["x"], t["packed"], t["absmax"], t.get("bias"), **layout)},
        prepare=_layout, dtypes=_FLOAT32, required=_LAYOUT,
    ),
}  # fmt: skip
"""Operation -> how it is answered; see contract/worker/operations.py for what each one means."""


def compute(
    tensors: Mapping[str, Tensor], *, op: str, wanted: tuple[str, ...], static: tuple[tuple[str, object], ...]
) -> dict[str, Tensor]:
    """The outputs of an operation, and `NAME_grad` = (d output / d NAME)^T of the cotangent for each wanted NAME, by autograd.

    Args:
        tensors: what `Prepared.given` holds, on the device.
    """
    made = ENTRIES[op].compute
    assert made is not None, "an operation that has tensors on the device computes there"
    outputs = made(tensors, **dict(static))
    if not wanted:
        return outputs
    ((output, value),) = outputs.items()
    gradients = value.gradient(*(tensors[name] for name in wanted), gradient=tensors[f"{output}_bar"].reshape(value.shape))
    return outputs | {f"{name}_grad": gradient for name, gradient in zip(wanted, gradients, strict=True)}
