"""A wrong reference turns the gate red on a right stack: the judge is under test here, not the stack.

Each tensor of each primitive off by one part in 1e12, and of the other sign; terms, attributes and inputs that a reference forgets;
an oracle that computes in float32 somewhere. In `precision float64`, on the draws of the primitive's own check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings

from contract.worker.operations import OPERATIONS
from parity.checks import registry
from parity.checks.check import Answered, Case
from parity.checks.primitive import precision
from parity.reference import running_error
from parity.reference.adamw import adamw_step
from parity.reference.attention import attention
from parity.reference.clip_gradients import clip_gradients
from parity.reference.cross_entropy import cross_entropy
from parity.reference.embedding import embedding
from parity.reference.gelu import gelu
from parity.reference.layer_norm import layer_norm
from parity.reference.lora_linear import lora_linear
from parity.reference.primitive import Attributes, Reference, Tensors
from parity.reference.rms_norm import rms_norm
from parity.reference.rope import rope, rope_tables
from parity.reference.running_error import Arithmetic, Computed
from parity.reference.silu import silu
from parity.reference.softmax import softmax
from parity.reference.swiglu import swiglu
from tests.parity.numpy_stack import CAPABILITIES, COMPUTE

REFERENCES: Mapping[str, Reference] = {
    one.__name__: one
    for one in (
        embedding, rms_norm, layer_norm, rope_tables, rope, softmax, attention, silu, gelu, swiglu, lora_linear, cross_entropy,
        clip_gradients, adamw_step,
    )
}  # fmt: skip
CASES = {check.id.removeprefix("a."): check.cases for check in registry.CHECKS if check.tier == "A"}
EXAMPLES = 12


@cache
def drawn(op: str) -> list[tuple[Case, dict[str, np.ndarray]]]:
    """Cases of an operation's check, and the right answers of the NumPy stack."""
    shown: list[tuple[Case, dict[str, np.ndarray]]] = []

    @settings(max_examples=EXAMPLES, database=None, derandomize=True, deadline=None, phases=(Phase.generate,))
    @given(CASES[op])
    def every(case: Case) -> None:
        with np.errstate(all="ignore"):
            shown.append((case, COMPUTE[op]({**case.attrs, "dtype": "float64"}, case.inputs["float64"])))

    every()
    return shown


def red(op: str, reference: Reference, examples: int = 6) -> set[str]:
    """The tensors that fail on any of an operation's cases, when the right NumPy stack is held against a reference."""
    failed: set[str] = set()
    judge = precision(reference, "float64")
    for case, answer in drawn(op)[:examples]:
        case.forget()
        with np.errstate(all="ignore"):
            comparisons = judge(case, [Answered(stack="numpy", capabilities=CAPABILITIES, answers=[answer])], 1e-9)
        failed.update(comparison.tensor for comparison in comparisons if not comparison.passed)
    return failed


Values = Callable[[np.ndarray], np.ndarray]
Formula = Callable[[Tensors, Attributes, Mapping[str, np.ndarray]], np.ndarray]


def answering(op: str, name: str, change: Values) -> Reference:
    """The reference with another value of one tensor, and the same bounds."""
    return by_formula(op, name, lambda tensors, attrs, right: change(right[name]))


def by_formula(op: str, name: str, formula: Formula) -> Reference:
    """The reference with one tensor's value from a formula of inputs, attributes and the right values."""

    def wrong(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
        right = REFERENCES[op](tensors, attrs, one)
        value = np.asarray(formula(tensors, attrs, {other: computed.value for other, computed in right.items()}), dtype=np.float64)
        return {**right, name: Computed(value, right[name].error, one)}

    return wrong


def reading(op: str, **changes: Callable[[Any], Any]) -> Reference:
    """The reference of changed attributes and inputs."""

    def wrong(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
        changed = {name: change(tensors[name]) for name, change in changes.items() if name in tensors}
        others = {name: change(attrs[name]) for name, change in changes.items() if name in attrs}
        return REFERENCES[op]({**tensors, **changed}, {**attrs, **others}, one)

    return wrong


def answers(op: str) -> list[str]:
    return [*OPERATIONS[op].outputs, *(f"{name}_grad" for name in OPERATIONS[op].gradients)]


TENSORS = [(op, name) for op in REFERENCES for name in answers(op)]


@pytest.mark.parametrize("op", REFERENCES)
def test_the_right_reference_is_green(op: str) -> None:
    assert red(op, REFERENCES[op]) == set()


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_one_part_in_1e12_is_seen(op: str, name: str) -> None:
    assert red(op, answering(op, name, lambda value: value * (1 + 1e-12))) == {name}


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_another_sign_is_seen(op: str, name: str) -> None:
    assert red(op, answering(op, name, np.negative), 4) == {name}


def _rate(t: Tensors, attrs: Attributes, *, centred: bool) -> np.ndarray:
    x = t["x"] - t["x"].mean(1, keepdims=True) if centred else t["x"]
    return np.asarray(1 / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + attrs["eps"]))


def _first(mask: np.ndarray) -> np.ndarray:
    """A mask whose first element is another."""
    changed = mask.copy()
    changed.reshape(-1)[0] ^= True
    return changed


def _last(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows[-1:].sum(0))


def slightly(number: float) -> float:
    return number * (1 + 1e-9)


FORGETFUL: Mapping[tuple[str, str, str], Reference] = {
    ("embedding", "the next row", "y"): reading("embedding", ids=lambda ids: np.roll(ids, 1)),
    ("embedding", "repeated ids counted once", "weight_grad"): by_formula(
        "embedding", "weight_grad", lambda t, attrs, right: np.array([_last(t["y_bar"][t["ids"] == v]) for v in range(len(t["weight"]))])
    ),
    ("rms_norm", "eps moved", "y"): reading("rms_norm", eps=slightly),
    ("rms_norm", "the mean's share dropped", "x_grad"): by_formula(
        "rms_norm", "x_grad", lambda t, attrs, right: t["y_bar"] * t["weight"] * _rate(t, attrs, centred=False)
    ),
    ("layer_norm", "eps moved", "y"): reading("layer_norm", eps=slightly),
    ("layer_norm", "the bias dropped", "y"): reading("layer_norm", bias=np.zeros_like),
    ("layer_norm", "the means' shares dropped", "x_grad"): by_formula(
        "layer_norm", "x_grad", lambda t, attrs, right: t["y_bar"] * t["weight"] * _rate(t, attrs, centred=True)
    ),
    ("rope_tables", "theta moved", "cos"): reading("rope_tables", theta=slightly),
    ("rope_tables", "no scaling", "sin"): reading("rope_tables", scaling=lambda scaling: None),
    ("rope", "the next position", "y"): reading("rope", positions=lambda positions: positions + 1),
    ("rope", "no scaling", "x_grad"): reading("rope", scaling=lambda scaling: None),
    ("softmax", "the sum's share dropped", "x_grad"): by_formula("softmax", "x_grad", lambda t, attrs, right: right["y"] * t["y_bar"]),
    ("attention", "no window", "context"): reading("attention", window=lambda window: None),
    ("attention", "one token's padding", "context"): reading("attention", valid=_first),
    ("attention", "one token's padding", "v_grad"): reading("attention", valid=_first),
    ("attention", "keys off", "q_grad"): reading("attention", k=slightly),
    ("attention", "queries off", "k_grad"): reading("attention", q=slightly),
    ("silu", "a term dropped", "x_grad"): by_formula("silu", "x_grad", lambda t, attrs, right: t["y_bar"] / (1 + np.exp(-t["x"]))),
    ("gelu", "the other form", "y"): reading("gelu", approximate=lambda form: "none" if form == "tanh" else "tanh"),
    ("gelu", "the other form", "x_grad"): reading("gelu", approximate=lambda form: "none" if form == "tanh" else "tanh"),
    ("swiglu", "a term dropped", "gate_grad"): by_formula(
        "swiglu", "gate_grad", lambda t, attrs, right: t["y_bar"] * t["up"] / (1 + np.exp(-t["gate"]))
    ),
    ("swiglu", "gate and up exchanged", "up_grad"): by_formula("swiglu", "up_grad", lambda t, attrs, right: right["gate_grad"]),
    ("lora_linear", "rslora mistaken", "lora_a_grad"): reading("lora_linear", rslora=lambda rslora: not rslora),
    ("lora_linear", "alpha off", "lora_b_grad"): reading("lora_linear", alpha=slightly),
    ("lora_linear", "the adapter's share dropped", "x_grad"): by_formula(
        "lora_linear", "x_grad", lambda t, attrs, right: t["y_bar"] @ t["weight"]
    ),
    ("lora_linear", "the bias dropped", "y"): reading("lora_linear", bias=np.zeros_like),
    ("lora_linear", "one element kept", "y"): reading("lora_linear", keep=_first),
    ("cross_entropy", "the other reduction", "loss"): reading("cross_entropy", reduction=lambda one: "sum" if one == "mean" else "mean"),
    ("cross_entropy", "the label's 1 dropped", "logits_grad"): by_formula(
        "cross_entropy", "logits_grad", lambda t, attrs, right: np.where(right["logits_grad"] < 0, 0, right["logits_grad"])
    ),
    ("clip_gradients", "max_norm off", "a_clipped"): reading("clip_gradients", max_norm=slightly),
    ("clip_gradients", "b forgotten", "norm"): by_formula("clip_gradients", "norm", lambda t, attrs, right: np.linalg.norm(t["a"])),
    ("clip_gradients", "no 1e-6", "b_clipped"): by_formula(
        "clip_gradients", "b_clipped", lambda t, attrs, right: t["b"] * min(1, attrs["max_norm"] / max(right["norm"], 1e-300))
    ),
    ("adamw_step", "eps moved", "weight_next"): reading("adamw_step", eps=slightly),
    ("adamw_step", "no decay", "weight_next"): reading("adamw_step", weight_decay=lambda decay: 0.0),
    ("adamw_step", "the next step", "weight_next"): reading("adamw_step", step=lambda step: step + 1),
    ("adamw_step", "beta1 off", "m_next"): reading("adamw_step", beta1=slightly),
    ("adamw_step", "beta2 off", "v_next"): reading("adamw_step", beta2=slightly),
}  # fmt: skip
"""(operation, what its reference has wrong, a tensor that shows it)."""


@pytest.mark.parametrize(("op", "what", "name"), FORGETFUL)
def test_what_a_reference_forgets_is_seen(op: str, what: str, name: str) -> None:
    assert name in red(op, FORGETFUL[op, what, name])


def test_each_output_and_gradient_has_a_mistake_of_its_own() -> None:
    """Beside the factor and the sign: of those that are no copies or plain sums."""
    plain = {("embedding", "y"), ("softmax", "y"), ("silu", "y"), ("swiglu", "y"), ("adamw_step", "step_next")}
    plain |= {("rms_norm", "weight_grad"), ("layer_norm", "weight_grad"), ("layer_norm", "bias_grad")}
    assert {(op, name) for op, _, name in FORGETFUL} | plain == set(TENSORS)


class Float32Numpy:
    """NumPy whose named functions compute in float32."""

    def __init__(self, name: str, *, cast_back: bool) -> None:
        self._name, self._cast_back = name, cast_back

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        if name != self._name:
            return function

        def narrow(value: np.ndarray, *args: Any, **options: Any) -> Any:
            made = function(np.asarray(value).astype(np.float32), *args, **options)
            return made.astype(np.float64) if self._cast_back else made

        return narrow


EXP_AND_SQRT = (("exp", "softmax", "y"), ("exp", "cross_entropy", "loss"), ("sqrt", "rms_norm", "y"), ("sqrt", "adamw_step", "weight_next"))


@pytest.mark.parametrize(("function", "op", "name"), EXP_AND_SQRT)
def test_an_oracle_with_a_float32_function_is_found(function: str, op: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_error, "np", Float32Numpy(function, cast_back=False))
    with pytest.raises(AssertionError, match="a reference computes in float64, operation by operation"):
        red(op, REFERENCES[op])
    monkeypatch.setattr(running_error, "np", Float32Numpy(function, cast_back=True))
    assert name in red(op, REFERENCES[op])


def narrowed(one: Computed) -> Computed:
    return Computed(one.value.astype(np.float32).astype(np.float64), one.error, one.arithmetic)


@pytest.mark.parametrize(
    ("method", "op", "name"),
    [
        ("__mul__", "swiglu", "y"),
        ("__mul__", "silu", "x_grad"),
        ("sum", "layer_norm", "bias_grad"),
        ("sum", "softmax", "y"),
        ("__matmul__", "lora_linear", "lora_b_grad"),
        ("__matmul__", "attention", "context"),
        ("__add__", "gelu", "y"),
        ("tanh", "gelu", "y"),
        ("erf", "gelu", "y"),
    ],
)
def test_an_oracle_with_a_float32_operation_is_found(method: str, op: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(Computed, method)
    monkeypatch.setattr(Computed, method, lambda self, *args, **options: narrowed(right(self, *args, **options)))
    assert name in red(op, REFERENCES[op], EXAMPLES)


@pytest.mark.parametrize("op", ["rope_tables", "rope"])
def test_an_oracle_with_angles_in_float32_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("cos", "sin"):
        right = getattr(Computed, method)
        monkeypatch.setattr(Computed, method, lambda self, right=right: right(narrowed(self)))
    assert red(op, REFERENCES[op]) == set(answers(op))


def test_a_float32_number_in_a_reference_is_refused() -> None:
    with pytest.raises(AssertionError, match="a reference computes in float64"):
        Computed(np.zeros(3, np.float32), np.zeros(3), running_error.REFERENCE)
