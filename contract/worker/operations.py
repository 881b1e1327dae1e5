"""The operations that a stack computes on request, with the shape and dtype of every tensor.

`compute(op, attrs, tensors)` names one of these. An answer is checked against the same table, so
that a missing, extra or wrongly shaped tensor is a broken protocol and never a wrong verdict.

Dimensions are single letters, bound by the inputs and, for O, I and E, by attributes (legend)::

    M rows    K inner length    N columns    T tokens    I in_features    O out_features    V vocabulary    D width    R rank
    attention and RoPE: B sequences    H heads of the query    K heads of key and value    E head_dim
    NF4: E elements of a weight (O * I)    P packed bytes    B blocks    S blocks of absmax (256 each)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from contract.worker.operation import Operation, TensorSpec


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
        formula="y = function(x), element by element; function is one of FUNCTIONS (contract/worker/capabilities.py)",
        inputs={"x": TensorSpec(dims="T")},
        outputs={"y": TensorSpec(dims="T")},
        attributes=frozenset({"function"}),
    ),
    Operation(
        name="embedding",
        formula="y[t] = weight[ids[t]]",
        inputs={"weight": TensorSpec(dims="VD"), "ids": TensorSpec(dims="T", dtype="int64")},
        outputs={"y": TensorSpec(dims="TD")},
        gradients=("weight",),
    ),
    Operation(
        name="rms_norm",
        formula="y = x / sqrt(mean(x^2) + eps) * weight, the mean over a row",
        inputs={"x": TensorSpec(dims="TD"), "weight": TensorSpec(dims="D")},
        outputs={"y": TensorSpec(dims="TD")},
        gradients=("x", "weight"),
        attributes=frozenset({"eps"}),
    ),
    Operation(
        name="layer_norm",
        formula="y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias, the means over a row",
        inputs={"x": TensorSpec(dims="TD"), "weight": TensorSpec(dims="D"), "bias": TensorSpec(dims="D")},
        outputs={"y": TensorSpec(dims="TD")},
        gradients=("x", "weight", "bias"),
        attributes=frozenset({"eps"}),
    ),
    Operation(
        name="rope_tables",
        formula="cos and sin of positions[t] f[i], twice over, f[i] = theta^(-2 i / head_dim), i = 0 .. head_dim / 2 - 1, changed as "
        "scaling says (null, or RopeScaling of contract/model/layouts/rope.py as an object); in float64, cast once",
        inputs={"positions": TensorSpec(dims="T", dtype="int64")},
        outputs={"cos": TensorSpec(dims="TE"), "sin": TensorSpec(dims="TE")},
        attributes=frozenset({"head_dim", "theta", "scaling"}),
    ),
    Operation(
        name="rope",
        formula="y = x cos + rotate_half(x) sin, rotate_half(a, b) = (-b, a), the halves of a head; cos and sin as rope_tables has them",
        inputs={"x": TensorSpec(dims="BHTE"), "positions": TensorSpec(dims="BT", dtype="int64")},
        outputs={"y": TensorSpec(dims="BHTE")},
        gradients=("x",),
        attributes=frozenset({"theta", "scaling"}),
    ),
    Operation(
        name="softmax",
        formula="y = exp(x) / sum(exp(x)) over a row; an entry of -inf gets 0",
        inputs={"x": TensorSpec(dims="TN")},
        outputs={"y": TensorSpec(dims="TN")},
        gradients=("x",),
    ),
    Operation(
        name="attention",
        formula="context = softmax(q k^T / sqrt(head_dim)) v over the tokens s that t sees: s <= t, valid[s], and t - s < window where "
        "window is not null; 0 where it sees none; head h of the query goes with head h // (H / K) of key and value",
        inputs={
            "q": TensorSpec(dims="BHTE"),
            "k": TensorSpec(dims="BKTE"),
            "v": TensorSpec(dims="BKTE"),
            "valid": TensorSpec(dims="BT", dtype="bool", optional=True),
        },
        outputs={"context": TensorSpec(dims="BHTE")},
        gradients=("q", "k", "v"),
        attributes=frozenset({"window"}),
    ),
    Operation(
        name="silu",
        formula="y = x / (1 + exp(-x))",
        inputs={"x": TensorSpec(dims="T")},
        outputs={"y": TensorSpec(dims="T")},
        gradients=("x",),
    ),
    Operation(
        name="gelu",
        formula="y = x / 2 (1 + erf(x / sqrt(2))) where approximate is none; "
        "x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) where it is tanh",
        inputs={"x": TensorSpec(dims="T")},
        outputs={"y": TensorSpec(dims="T")},
        gradients=("x",),
        attributes=frozenset({"approximate"}),
    ),
    Operation(
        name="swiglu",
        formula="y = silu(gate) up",
        inputs={"gate": TensorSpec(dims="TD"), "up": TensorSpec(dims="TD")},
        outputs={"y": TensorSpec(dims="TD")},
        gradients=("gate", "up"),
    ),
    Operation(
        name="lora_linear",
        formula="y = x weight^T + bias + s ((x keep / (1 - dropout)) lora_a^T) lora_b^T, s = alpha / R, or alpha / sqrt(R) where rslora; "
        "without keep nothing is dropped",
        inputs={
            "x": TensorSpec(dims="TI"),
            "weight": TensorSpec(dims="OI"),
            "bias": TensorSpec(dims="O", optional=True),
            "lora_a": TensorSpec(dims="RI"),
            "lora_b": TensorSpec(dims="OR"),
            "keep": TensorSpec(dims="TI", dtype="bool", optional=True),
        },
        outputs={"y": TensorSpec(dims="TO")},
        gradients=("x", "lora_a", "lora_b"),
        attributes=frozenset({"alpha", "rslora", "dropout"}),
    ),
    Operation(
        name="clip_gradients",
        formula="norm = sqrt(sum of squares over both tensors); each times min(1, max_norm / (norm + 1e-6))",
        inputs={"a": TensorSpec(dims="MK"), "b": TensorSpec(dims="N")},
        outputs={"norm": TensorSpec(dims=""), "a_clipped": TensorSpec(dims="MK"), "b_clipped": TensorSpec(dims="N")},
        attributes=frozenset({"max_norm"}),
    ),
    Operation(
        name="adamw_step",
        formula="step_next = step + 1 = n; w = weight (1 - lr weight_decay); m_next = beta1 m + (1 - beta1) gradient; "
        "v_next = beta2 v + (1 - beta2) gradient^2; "
        "weight_next = w - lr (m_next / (1 - beta1^n)) / (sqrt(v_next / (1 - beta2^n)) + eps)",
        inputs={
            "weight": TensorSpec(dims="N"),
            "gradient": TensorSpec(dims="N"),
            "m": TensorSpec(dims="N"),
            "v": TensorSpec(dims="N"),
            "step": TensorSpec(dims="", dtype="int64"),
        },
        outputs={
            "weight_next": TensorSpec(dims="N"),
            "m_next": TensorSpec(dims="N"),
            "v_next": TensorSpec(dims="N"),
            "step_next": TensorSpec(dims="", dtype="int64"),
        },
        attributes=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay"}),
    ),
    Operation(
        name="adamw_8bit_step",
        formula="adamw_step, of which m_next and v_next are what a state of 8 bits keeps: per 256 elements absmax = max |m_next|, and the "
        "nearest value of the signed dynamic 8-bit map (of the unsigned one for v_next) to m_next / absmax, times absmax; where that is 0, "
        "perhaps the next value of its own sign; N < 4,096: adamw_step. m and v are what such a state kept",
        inputs={
            "weight": TensorSpec(dims="N", dtype="float32"),
            "gradient": TensorSpec(dims="N", dtype="float32"),
            "m": TensorSpec(dims="N", dtype="float32"),
            "v": TensorSpec(dims="N", dtype="float32"),
            "step": TensorSpec(dims="", dtype="int64"),
        },
        outputs={
            "weight_next": TensorSpec(dims="N", dtype="float32"),
            "m_next": TensorSpec(dims="N", dtype="float32"),
            "v_next": TensorSpec(dims="N", dtype="float32"),
            "step_next": TensorSpec(dims="", dtype="int64"),
        },
        attributes=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay"}),
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
