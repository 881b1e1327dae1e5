"""NumPy primitives that each break one law, by a mistake that a real implementation has made or could make."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tests.parity.numpy_primitives import PRIMITIVES, Arrays, Attributes, Compute, Tensors
from tests.parity.numpy_stack import COMPUTE


def _answered(op: str, change: Callable[[Arrays, Tensors, Attributes], Arrays]) -> Compute:
    """The right answer, changed."""

    def compute(attrs: Attributes, t: Tensors) -> Arrays:
        right = dict(COMPUTE[op](attrs, t))
        return {**right, **change(right, t, attrs)}

    return compute


def _asked(op: str, change: Callable[[Attributes, Tensors], tuple[Attributes, Tensors]]) -> Compute:
    """The right answer to another request."""

    def compute(attrs: Attributes, t: Tensors) -> Arrays:
        return COMPUTE[op](*change(attrs, t))

    return compute


def _uneven(op: str, name: str, axis: int) -> Compute:
    """Each place along an axis is off by another 1e-9."""

    def change(right: Arrays, t: Tensors, attrs: Attributes) -> Arrays:
        places = np.arange(right[name].shape[axis]).reshape([-1 if at == axis else 1 for at in range(right[name].ndim)])
        return {name: right[name] * (1 + 1e-9 * places)}

    return _answered(op, change)


def _off(op: str, name: str, factor: float = 1 + 1e-9) -> Compute:
    return _answered(op, lambda right, t, attrs: {name: right[name] * factor})


def _softmax_unshifted(attrs: Attributes, t: Tensors) -> Arrays:
    right = PRIMITIVES["softmax"](attrs, t)
    weights = np.exp(t["x"])
    return {**right, "y": weights / weights.sum(-1, keepdims=True)}


def _rms_norm_eps_outside(attrs: Attributes, t: Tensors) -> Arrays:
    right = PRIMITIVES["rms_norm"](attrs, t)
    return {**right, "y": t["x"] / (np.sqrt(np.mean(t["x"] ** 2, axis=1, keepdims=True)) + attrs["eps"]) * t["weight"]}


def _layer_norm_eps_outside(attrs: Attributes, t: Tensors) -> Arrays:
    right = PRIMITIVES["layer_norm"](attrs, t)
    return {
        **right,
        "y": (t["x"] - t["x"].mean(1, keepdims=True)) / (t["x"].std(1, keepdims=True) + attrs["eps"]) * t["weight"] + t["bias"],
    }


def _layer_norm_in_one_pass(attrs: Attributes, t: Tensors) -> Arrays:
    """mean(x^2) - mean(x)^2 cancels, in float32 here."""
    right, x = PRIMITIVES["layer_norm"](attrs, t), t["x"].astype(np.float32)
    variance = np.mean(x * x, axis=1, keepdims=True) - np.mean(x, axis=1, keepdims=True) ** 2
    return {**right, "y": (t["x"] - t["x"].mean(1, keepdims=True)) / np.sqrt(variance + attrs["eps"]) * t["weight"] + t["bias"]}


def _heads_interleaved(attrs: Attributes, t: Tensors) -> Arrays:
    """Head h of the query with head h % K of key and value."""
    heads, groups = t["q"].shape[1], t["k"].shape[1]
    order = np.argsort(np.arange(heads) % groups, kind="stable")
    moved = {name: t[name][:, order] for name in ("q", "context_bar")}
    answer = PRIMITIVES["attention"](attrs, {**t, **moved})
    return {name: array[:, np.argsort(order)] if array.shape[1] == heads else array for name, array in answer.items()}


def _next_token_leaks(right: Arrays, t: Tensors, attrs: Attributes) -> Arrays:
    leaked = right["context"].copy()
    leaked[:, :, :-1] += 1e-12 * np.repeat(t["v"], t["q"].shape[1] // t["v"].shape[1], axis=1)[:, :, 1:]
    return {"context": leaked}


def _far_keys_fade(attrs: Attributes, t: Tensors) -> tuple[Attributes, Tensors]:
    """By their place in the row, padding counted."""
    return attrs, {**t, "k": t["k"] * (1 - 1e-9 * np.arange(t["k"].shape[2]))[:, None]}


def _angles_in_float32(attrs: Attributes, t: Tensors) -> Arrays:
    half = t["x"].shape[-1] // 2
    frequencies = (attrs["theta"] ** (-np.arange(half) / half)).astype(np.float32)
    angles = (t["positions"][..., None].astype(np.float32) * frequencies).astype(np.float64)[:, None]

    def turned(x: np.ndarray, sign: float) -> np.ndarray:
        a, b = x[..., :half], x[..., half:]
        return np.concatenate(
            [a * np.cos(angles) - sign * b * np.sin(angles), b * np.cos(angles) + sign * a * np.sin(angles)], -1
        ).astype(x.dtype)  # fmt: skip

    return {"y": turned(t["x"], 1), "x_grad": turned(t["y_bar"], -1)}


def _overwritten(attrs: Attributes, t: Tensors) -> Arrays:
    """The last place of a repeated id wins."""
    right = PRIMITIVES["embedding"](attrs, t)
    grad = np.zeros_like(t["weight"])
    grad[t["ids"]] = t["y_bar"]
    return {**right, "weight_grad": grad}


def _padding_id(right: Arrays, t: Tensors, attrs: Attributes) -> Arrays:
    """Id 0 gets no gradient."""
    grad = right["weight_grad"].copy()
    grad[0] = 0
    return {"weight_grad": grad}


def _mean_over_all_rows(right: Arrays, t: Tensors, attrs: Attributes) -> Arrays:
    share = np.mean(t["labels"] != attrs["ignore_index"]) if attrs["reduction"] == "mean" else 1.0
    return {name: np.asarray(array * share) for name, array in right.items()}


def _mean_always(attrs: Attributes, t: Tensors) -> tuple[Attributes, Tensors]:
    return {**attrs, "reduction": "mean"}, t


def _cross_entropy_unshifted(right: Arrays, t: Tensors, attrs: Attributes) -> Arrays:
    kept = t["labels"] != attrs["ignore_index"]
    loss = np.log(np.exp(t["logits"]).sum(1))[kept] - t["logits"][kept, t["labels"][kept]]
    return {"loss": np.asarray(loss.mean() if attrs["reduction"] == "mean" else loss.sum())}


def _ignored_count(right: Arrays, t: Tensors, attrs: Attributes) -> Arrays:
    ignored = t["labels"] == attrs["ignore_index"]
    return {"logits_grad": np.where(ignored[:, None], 1e-30 * t["logits"], right["logits_grad"])}


def _clipped_apart(attrs: Attributes, t: Tensors) -> Arrays:
    """Each tensor to max_norm by its own norm."""
    apart = {name: PRIMITIVES["clip_gradients"](attrs, {**t, other: 0 * t[other]}) for name, other in (("a", "b"), ("b", "a"))}
    right = PRIMITIVES["clip_gradients"](attrs, t)
    return {"norm": right["norm"], "a_clipped": apart["a"]["a_clipped"], "b_clipped": apart["b"]["b_clipped"]}


def _always_scaled(right: Arrays, t: Tensors, attrs: Attributes) -> Arrays:
    return {f"{name}_clipped": t[name] * (attrs["max_norm"] / (right["norm"] + 1e-6)) for name in ("a", "b")}


def _eps_not_zero(right: Arrays, t: Tensors, attrs: Attributes) -> Arrays:
    """eps in the numerator too."""
    return {"weight_next": right["weight_next"] - 1e-12}


def _without(name: str) -> Callable[[Attributes, Tensors], tuple[Attributes, Tensors]]:
    return lambda attrs, t: (attrs, {other: array for other, array in t.items() if other != name})


def _with(**changed: object) -> Callable[[Attributes, Tensors], tuple[Attributes, Tensors]]:
    return lambda attrs, t: ({**attrs, **changed}, t)


def _rescaling_forgotten(attrs: Attributes, t: Tensors) -> tuple[Attributes, Tensors]:
    return {**attrs, "dropout": 0.0}, t


def _window_off_by_one(attrs: Attributes, t: Tensors) -> tuple[Attributes, Tensors]:
    return {**attrs, "window": attrs["window"] and max(1, attrs["window"] - 1)}, t


def _from_one(attrs: Attributes, t: Tensors) -> tuple[Attributes, Tensors]:
    return attrs, {**t, "positions": t["positions"] + 1}


def _by_place(attrs: Attributes, t: Tensors) -> tuple[Attributes, Tensors]:
    """Positions are not looked at."""
    return attrs, {**t, "positions": np.broadcast_to(np.arange(t["positions"].shape[-1]), t["positions"].shape)}


def _llama3_by_eight(attrs: Attributes, t: Tensors) -> tuple[Attributes, Tensors]:
    scaling = attrs["scaling"]
    return {**attrs, "scaling": {**scaling, "factor": 8.0} if scaling and scaling["rope_type"] == "llama3" else scaling}, t


LAWLESS: Mapping[tuple[str, str], Compute] = {
    ("embedding", "T, D permuted"): _overwritten,
    ("embedding", "ids renamed"): _answered("embedding", _padding_id),
    ("rms_norm", "T, D permuted"): _uneven("rms_norm", "x_grad", 1),
    ("rms_norm", "x and its eps scaled"): _rms_norm_eps_outside,
    ("layer_norm", "T, D permuted"): _uneven("layer_norm", "weight_grad", 0),
    ("layer_norm", "x and its eps scaled"): _layer_norm_eps_outside,
    ("layer_norm", "a constant added"): _layer_norm_in_one_pass,
    ("silu", "T permuted"): _uneven("silu", "y", 0),
    ("silu", "mirrored"): _off("silu", "x_grad"),
    ("gelu", "T permuted"): _uneven("gelu", "x_grad", 0),
    ("gelu", "mirrored"): _off("gelu", "y"),
    ("swiglu", "T, D permuted"): _uneven("swiglu", "gate_grad", 1),
    ("swiglu", "up doubled"): lambda attrs, t: PRIMITIVES["swiglu"](attrs, {**t, "gate": t["up"], "up": t["gate"]}),
    ("lora_linear", "T, I, O, R permuted"): _uneven("lora_linear", "lora_a_grad", 0),
    ("lora_linear", "B = 0 is the base"): _off("lora_linear", "y"),
    ("lora_linear", "B = 0 and another A"): _answered(
        "lora_linear", lambda right, t, attrs: {"lora_a_grad": right["lora_a_grad"] + 1e-30 * t["lora_a"]}
    ),
    ("lora_linear", "alpha doubled"): _asked("lora_linear", _with(alpha=1.0)),
    ("lora_linear", "all kept"): _asked("lora_linear", _rescaling_forgotten),
    ("lora_linear", "merged"): _asked("lora_linear", lambda attrs, t: ({**attrs, "rslora": not attrs["rslora"]}, t)),
    ("softmax", "T, N permuted"): _uneven("softmax", "x_grad", 1),
    ("softmax", "a constant added"): _softmax_unshifted,
    ("softmax", "rows sum to 1, their gradients to 0"): _off("softmax", "y"),
    ("attention", "B, E permuted"): _uneven("attention", "q_grad", 3),
    ("attention", "another future"): _answered("attention", _next_token_leaks),
    ("attention", "other padding"): _asked("attention", _without("valid")),
    ("attention", "padding on the left"): _asked("attention", _far_keys_fade),
    ("attention", "a window as long as the text, all valid"): _asked("attention", _window_off_by_one),
    ("attention", "key and value heads repeated"): _heads_interleaved,
    ("rope", "B, T permuted"): _asked("rope", _by_place),
    ("rope", "all positions moved"): _angles_in_float32,
    ("rope", "norms of pairs"): _off("rope", "x_grad"),
    ("rope", "position 0"): _asked("rope", _from_one),
    ("rope_tables", "linear scaling at stretched positions"): _asked("rope_tables", _with(scaling=None)),
    ("rope_tables", "llama3 scaling by 1"): _asked("rope_tables", _llama3_by_eight),
    ("rope_tables", "on the circle"): _off("rope_tables", "sin"),
    ("cross_entropy", "T permuted"): _uneven("cross_entropy", "logits_grad", 0),
    ("cross_entropy", "micro-batches"): _asked("cross_entropy", _mean_always),
    ("cross_entropy", "ignored rows removed"): _answered("cross_entropy", _mean_over_all_rows),
    ("cross_entropy", "other logits where ignored"): _answered("cross_entropy", _ignored_count),
    ("cross_entropy", "a constant added"): _answered("cross_entropy", _cross_entropy_unshifted),
    ("cross_entropy", "gradients sum to 0"): _uneven("cross_entropy", "logits_grad", 1),
    ("clip_gradients", "M, K, N permuted"): _uneven("clip_gradients", "a_clipped", 1),
    ("clip_gradients", "doubled"): _answered("clip_gradients", lambda right, t, attrs: {"norm": right["norm"] + 1e-6}),
    ("clip_gradients", "signs flipped"): _answered("clip_gradients", lambda right, t, attrs: {"a_clipped": np.abs(right["a_clipped"])}),
    ("clip_gradients", "a clip that does not bind"): _answered("clip_gradients", _always_scaled),
    ("clip_gradients", "a clip that binds"): _clipped_apart,
    ("adamw_step", "N permuted"): _uneven("adamw_step", "v_next", 0),
    ("adamw_step", "signs flipped"): _answered("adamw_step", _eps_not_zero),
    ("adamw_step", "at rest"): _asked("adamw_step", _with(weight_decay=0.1)),
}
"""(operation, law) -> what breaks it."""
