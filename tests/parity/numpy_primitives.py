"""The primitives in plain NumPy, forward and backward, from the formulas of contract/worker/operations.py: a third opinion.

Every array stays in the work dtype; attributes are Python numbers, which take the array's. Gradients are answered where a cotangent is.

Legend: T tokens, D width, N columns, I in_features, O out_features, R rank, B sequences, H and K heads of query and of key and value,
G = H / K, S tokens that are seen, E head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import erf

from parity.reference import nf4

Arrays = dict[str, np.ndarray]
Attributes = Mapping[str, Any]
Tensors = Mapping[str, np.ndarray]
Compute = Callable[[Attributes, Tensors], Arrays]


def embedding(attrs: Attributes, t: Tensors) -> Arrays:
    """Repeated ids add their cotangents up."""
    answer = {"y": t["weight"][t["ids"]]}
    if "y_bar" in t:
        answer["weight_grad"] = np.zeros_like(t["weight"])
        np.add.at(answer["weight_grad"], t["ids"], t["y_bar"])
    return answer


def rms_norm(attrs: Attributes, t: Tensors) -> Arrays:
    """y = x / root * weight."""
    x_TD, weight_D = t["x"], t["weight"]
    root_T1 = np.sqrt(np.mean(x_TD * x_TD, axis=1, keepdims=True) + attrs["eps"])
    normal_TD = x_TD / root_T1
    answer = {"y": normal_TD * weight_D}
    if "y_bar" in t:
        normal_bar_TD = t["y_bar"] * weight_D
        share_T1 = np.mean(normal_bar_TD * normal_TD, axis=1, keepdims=True)
        answer["x_grad"] = (normal_bar_TD - normal_TD * share_T1) / root_T1
        answer["weight_grad"] = np.sum(t["y_bar"] * normal_TD, axis=0)
    return answer


def layer_norm(attrs: Attributes, t: Tensors) -> Arrays:
    """y = (x - mean) / root * weight + bias, the variance in two passes."""
    centred_TD = t["x"] - np.mean(t["x"], axis=1, keepdims=True)
    root_T1 = np.sqrt(np.mean(centred_TD * centred_TD, axis=1, keepdims=True) + attrs["eps"])
    normal_TD = centred_TD / root_T1
    answer = {"y": normal_TD * t["weight"] + t["bias"]}
    if "y_bar" in t:
        normal_bar_TD = t["y_bar"] * t["weight"]
        mean_T1 = np.mean(normal_bar_TD, axis=1, keepdims=True)
        share_T1 = np.mean(normal_bar_TD * normal_TD, axis=1, keepdims=True)
        answer["x_grad"] = (normal_bar_TD - mean_T1 - normal_TD * share_T1) / root_T1
        answer["weight_grad"] = np.sum(t["y_bar"] * normal_TD, axis=0)
        answer["bias_grad"] = np.sum(t["y_bar"], axis=0)
    return answer


def _frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any] | None) -> np.ndarray:
    """[E / 2], float64; contract/model/layouts/rope.py has the scalings' formulas."""
    plain = np.array([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)], dtype=np.float64)
    if scaling is None:
        return plain
    if scaling["rope_type"] == "linear":
        return plain / scaling["factor"]
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)  # L / w
    kept = np.clip((turns - low) / (high - low), 0, 1)
    scaled: np.ndarray = np.where(kept == 1, plain, np.where(kept == 0, plain / factor, (1 - kept) * plain / factor + kept * plain))
    return scaled


def _tables(positions: np.ndarray, head_dim: int, attrs: Attributes) -> tuple[np.ndarray, np.ndarray]:
    angles = positions[..., None].astype(np.float64) * _frequencies(head_dim, attrs["theta"], attrs.get("scaling"))
    twice = np.concatenate([angles, angles], axis=-1)
    return np.cos(twice).astype(attrs["dtype"]), np.sin(twice).astype(attrs["dtype"])


def rope_tables(attrs: Attributes, t: Tensors) -> Arrays:
    """In float64, cast once."""
    cos_TE, sin_TE = _tables(t["positions"], attrs["head_dim"], attrs)
    return {"cos": cos_TE, "sin": sin_TE}


def rope(attrs: Attributes, t: Tensors) -> Arrays:
    """Each pair (x_i, x_(i + E / 2)) turned by its angle; the cotangent is turned back."""
    half = t["x"].shape[-1] // 2
    cos_B1TE, sin_B1TE = (table[:, None, :, :half] for table in _tables(t["positions"], 2 * half, attrs))

    def turned(x_BHTE: np.ndarray, sin: np.ndarray) -> np.ndarray:
        a, b = x_BHTE[..., :half], x_BHTE[..., half:]
        return np.concatenate([a * cos_B1TE - b * sin, b * cos_B1TE + a * sin], axis=-1)

    answer = {"y": turned(t["x"], sin_B1TE)}
    if "y_bar" in t:
        answer["x_grad"] = turned(t["y_bar"], -sin_B1TE)
    return answer


def _softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    weights = np.exp(x - np.max(x, axis=-1, keepdims=True))
    normal: np.ndarray = weights / np.sum(weights, axis=-1, keepdims=True)
    return normal


def _softmax_grad(y: np.ndarray, y_bar: np.ndarray) -> np.ndarray:
    grad: np.ndarray = y * (y_bar - np.sum(y * y_bar, axis=-1, keepdims=True))
    return grad


def softmax(attrs: Attributes, t: Tensors) -> Arrays:
    """exp of what lies below the row's largest."""
    y_TN = _softmax(t["x"])
    return {"y": y_TN} | ({"x_grad": _softmax_grad(y_TN, t["y_bar"])} if "y_bar" in t else {})


def attention(attrs: Attributes, t: Tensors) -> Arrays:
    """Causal attention of H query heads on K heads of key and value; a row that sees nothing is zero, and so is its share of gradients."""
    (batch, heads, tokens, head_dim), groups = t["q"].shape, t["k"].shape[1]
    q_BKGTE = t["q"].reshape(batch, groups, heads // groups, tokens, head_dim)
    k_BK1SE, v_BK1SE = t["k"][:, :, None], t["v"][:, :, None]
    behind_TS = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    seen_TS = (behind_TS >= 0) & (behind_TS < (attrs.get("window") or tokens))
    seen_BTS = seen_TS & t.get("valid", np.ones((batch, tokens), bool))[:, None, :]
    seen_B11TS, sees_B11T1 = seen_BTS[:, None, None], seen_BTS.any(-1)[:, None, None, :, None]
    scale = 1 / math.sqrt(head_dim)
    scores_BKGTS = np.where(seen_B11TS, q_BKGTE @ k_BK1SE.swapaxes(-1, -2) * scale, np.where(sees_B11T1, -np.inf, 0))
    weights_BKGTS = np.where(sees_B11T1, _softmax(scores_BKGTS.astype(t["q"].dtype)), 0)
    answer = {"context": (weights_BKGTS @ v_BK1SE).reshape(t["q"].shape)}
    if "context_bar" in t:
        bar_BKGTE = t["context_bar"].reshape(q_BKGTE.shape)
        scores_bar_BKGTS = _softmax_grad(weights_BKGTS, bar_BKGTE @ v_BK1SE.swapaxes(-1, -2)) * scale
        answer["q_grad"] = (scores_bar_BKGTS @ k_BK1SE).reshape(t["q"].shape)
        answer["k_grad"] = np.sum(scores_bar_BKGTS.swapaxes(-1, -2) @ q_BKGTE, axis=2)
        answer["v_grad"] = np.sum(weights_BKGTS.swapaxes(-1, -2) @ bar_BKGTE, axis=2)
    return answer


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), by an exp that can't overflow."""
    small = np.exp(-np.abs(x))
    sigma: np.ndarray = np.where(x >= 0, 1, small) / (1 + small)
    return sigma


def _silu_slope(x: np.ndarray) -> np.ndarray:
    """sigma (1 + x (1 - sigma)); 1 - sigma(x) is sigma(-x)."""
    slope: np.ndarray = _sigmoid(x) * (1 + x * _sigmoid(-x))
    return slope


def silu(attrs: Attributes, t: Tensors) -> Arrays:
    """x sigma(x)."""
    return {"y": t["x"] * _sigmoid(t["x"])} | ({"x_grad": t["y_bar"] * _silu_slope(t["x"])} if "y_bar" in t else {})


def gelu(attrs: Attributes, t: Tensors) -> Arrays:
    """By erf, or by tanh."""
    x = t["x"]
    if attrs["approximate"] == "tanh":
        c = math.sqrt(2 / math.pi)
        bent = np.tanh(c * (x + 0.044715 * x * x * x))
        slope = (1 + bent) / 2 + x / 2 * ((1 - bent) * (1 + bent)) * (c * (1 + 3 * 0.044715 * x * x))
    else:
        bent = erf(x / math.sqrt(2))
        slope = (1 + bent) / 2 + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return {"y": x / 2 * (1 + bent)} | ({"x_grad": t["y_bar"] * slope} if "y_bar" in t else {})


def swiglu(attrs: Attributes, t: Tensors) -> Arrays:
    """silu(gate) up."""
    opened_TD = t["gate"] * _sigmoid(t["gate"])
    answer = {"y": opened_TD * t["up"]}
    if "y_bar" in t:
        answer["gate_grad"] = t["y_bar"] * t["up"] * _silu_slope(t["gate"])
        answer["up_grad"] = t["y_bar"] * opened_TD
    return answer


def lora_linear(attrs: Attributes, t: Tensors) -> Arrays:
    """The base, and beside it two thin products."""
    x_TI, weight_OI, a_RI, b_OR = t["x"], t["weight"], t["lora_a"], t["lora_b"]
    s = attrs["alpha"] / (math.sqrt(len(a_RI)) if attrs.get("rslora") else len(a_RI))
    kept = 1 / (1 - attrs.get("dropout", 0.0))
    mask_TI = t["keep"].astype(x_TI.dtype) * kept if "keep" in t else np.ones_like(x_TI)
    dropped_TI = x_TI * mask_TI
    thin_TR = dropped_TI @ a_RI.T
    y_TO = x_TI @ weight_OI.T + thin_TR @ b_OR.T * s
    answer = {"y": y_TO + t["bias"] if "bias" in t else y_TO}
    if "y_bar" in t:
        thin_bar_TR = t["y_bar"] @ b_OR * s
        answer["x_grad"] = t["y_bar"] @ weight_OI + thin_bar_TR @ a_RI * mask_TI
        answer["lora_a_grad"] = thin_bar_TR.T @ dropped_TI
        answer["lora_b_grad"] = t["y_bar"].T @ thin_TR * s
    return answer


def clip_gradients(attrs: Attributes, t: Tensors) -> Arrays:
    """By the norm over both tensors."""
    norm = np.sqrt(np.sum(t["a"] * t["a"]) + np.sum(t["b"] * t["b"]))
    scale = np.minimum(norm.dtype.type(1), attrs["max_norm"] / (norm + norm.dtype.type(1e-6)))
    return {"norm": np.asarray(norm), "a_clipped": t["a"] * scale, "b_clipped": t["b"] * scale}


def adamw_step(attrs: Attributes, t: Tensors) -> Arrays:
    """The scalars of a step are Python numbers, as in a training loop."""
    beta1, beta2, step = attrs["beta1"], attrs["beta2"], int(t["step"]) + 1
    weight = t["weight"] * (1 - attrs["lr"] * attrs["weight_decay"])
    m = beta1 * t["m"] + (1 - beta1) * t["gradient"]
    v = beta2 * t["v"] + (1 - beta2) * (t["gradient"] * t["gradient"])
    step_size = attrs["lr"] / (1 - beta1**step)
    weight = weight - step_size * m / (np.sqrt(v) / math.sqrt(1 - beta2**step) + attrs["eps"])
    return {"weight_next": weight, "m_next": m, "v_next": v, "step_next": np.asarray(step, dtype=np.int64)}


def adamw_8bit_step(attrs: Attributes, t: Tensors) -> Arrays:
    """The plain step; then each moment's nearest of the 256 values times its block's absmax, where there are 4,096 moments or more."""
    answer = adamw_step(attrs, t)
    if len(t["weight"]) >= 4096:
        for name, table in (("m_next", nf4.DYNAMIC_MAP), ("v_next", nf4.UNSIGNED_DYNAMIC_MAP)):
            blocks = np.pad(answer[name], (0, -len(t["weight"]) % 256)).reshape(-1, 256)
            absmax = np.abs(blocks).max(axis=1, keepdims=True)
            scaled = blocks / np.where(absmax > 0, absmax, np.float32(1))
            after = np.clip(np.searchsorted(table, scaled), 1, 255)
            codes = np.where(scaled - table[after - 1] < table[after] - scaled, after - 1, after)
            answer[name] = (table[codes] * absmax).reshape(-1)[: len(t["weight"])]
    return answer


PRIMITIVES: Mapping[str, Compute] = {
    compute.__name__: compute
    for compute in (
        embedding, rms_norm, layer_norm, rope_tables, rope, softmax, attention, silu, gelu, swiglu, lora_linear, clip_gradients, adamw_step,
        adamw_8bit_step,
    )
}  # fmt: skip


ELEMENTARY: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "reciprocal": lambda x: 1 / x,
    "tanh": np.tanh,
    "erf": erf,
    "sin": np.sin,
    "cos": np.cos,
}
"""As the primitives compute them."""
