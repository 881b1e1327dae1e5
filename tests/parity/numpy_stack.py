"""A whole stack in NumPy, in this process or as a worker; the device's name says what goes wrong with its matrix products.

As a worker: `python numpy_stack.py --device NAME`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from contract.worker.answers import Answer, RequestFailed
from contract.worker.capabilities import Capabilities
from contract.worker.serve import Channel, serve
from contract.worker.stack import Attributes, Reply, Tensors
from parity.reference import nf4

if __name__ == "__main__":  # a script finds its own folder alone
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.parity.numpy_primitives import ELEMENTARY, PRIMITIVES

FOREVER = 600.0
Arrays = dict[str, np.ndarray]


def _matmul(attrs: Attributes, t: Tensors) -> Arrays:
    return {"y": t["a"] @ t["b"], "a_grad": t["y_bar"] @ t["b"].T, "b_grad": t["a"].T @ t["y_bar"]}


def _linear(attrs: Attributes, t: Tensors) -> Arrays:
    answer = {
        "y": t["x"] @ t["weight"].T + t["bias"],
        "x_grad": t["y_bar"] @ t["weight"],
        "weight_grad": t["y_bar"].T @ t["x"],
        "bias_grad": t["y_bar"].sum(axis=0),
    }
    return {name: array for name, array in answer.items() if name.removesuffix("_grad") not in attrs.get("frozen", ())}


def _cross_entropy(attrs: Attributes, t: Tensors) -> Arrays:
    logits, labels = t["logits"], t["labels"]
    kept = labels != attrs["ignore_index"]
    rows, column = np.arange(len(labels)), np.where(kept, labels, 0)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    divisor = logits.dtype.type(kept.sum() if attrs["reduction"] == "mean" else 1)
    gradient = np.exp(log_probability)
    gradient[rows, column] -= 1
    gradient = np.where(kept[:, None], gradient * (t["loss_bar"] / divisor), 0).astype(logits.dtype)
    return {"loss": np.asarray(-log_probability[rows, column][kept].sum() / divisor), "logits_grad": gradient}


def _elementary(attrs: Attributes, t: Tensors) -> Arrays:
    return {"y": ELEMENTARY[attrs["function"]](t["x"])}


def _quantize(attrs: Attributes, t: Tensors) -> Arrays:
    got = nf4.quantize(t["weight"], attrs["block_size"])
    return {"codes": got.codes, "packed": got.packed, "absmax": got.absmax}


def _offset(attrs: Attributes, t: Tensors) -> Arrays:
    return {"offset": np.asarray(t["absmax"].mean())}


def _nest(attrs: Attributes, t: Tensors) -> Arrays:
    codes, nested = nf4.nest(t["absmax"], t["offset"])
    return {"absmax_codes": codes, "nested_absmax": nested}


def _unnest(attrs: Attributes, t: Tensors) -> Arrays:
    return {"absmax": nf4.unnest(t["absmax_codes"], t["nested_absmax"], t["offset"])}


def _dequantize(attrs: Attributes, t: Tensors) -> Arrays:
    shape = (attrs["out_features"], attrs["in_features"])
    return {"weight": nf4.dequantize(t["packed"], t["absmax"], attrs["block_size"], shape)}


def _nf4_linear(attrs: Attributes, t: Tensors) -> Arrays:
    return _linear({"frozen": ["weight", "bias"]}, {**t, **_dequantize(attrs, t)})


COMPUTE: Mapping[str, Callable[[Attributes, Tensors], Arrays]] = {
    "matmul": _matmul,
    "linear": _linear,
    "cross_entropy": _cross_entropy,
    "elementary": _elementary,
    "nf4_quantize": _quantize,
    "nf4_offset": _offset,
    "nf4_nest": _nest,
    "nf4_unnest": _unnest,
    "nf4_dequantize": _dequantize,
    "nf4_linear": _nf4_linear,
    **PRIMITIVES,
}


def _with_y(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda answer: {**answer, "y": change(answer["y"])}


def _first(value: float) -> Callable[[Arrays], Arrays]:
    def put(y: np.ndarray) -> np.ndarray:
        changed = y.copy()
        changed.reshape(-1)[0] = value
        return changed

    return _with_y(put)


def _die(answer: Arrays) -> Arrays:
    print("the heap is \x1b[31mon fire\x1b[0m", file=sys.stderr, flush=True)
    os._exit(7)


def _hang(answer: Arrays) -> Arrays:
    time.sleep(FOREVER)
    return answer


def _raise(answer: Arrays) -> Arrays:
    raise ArithmeticError("the sum is odd; allowed are even ones")


SPOILT: Mapping[str, Callable[[Arrays], Arrays]] = {
    "CPU": lambda answer: answer,
    "BF16": _with_y(lambda y: y.astype(ml_dtypes.bfloat16).astype(y.dtype)),
    "NEGATED": _with_y(np.negative),
    "NAN": _first(float("nan")),
    "INF": _first(float("inf")),
    "MISSING": lambda answer: {name: array for name, array in answer.items() if name != "a_grad"},
    "EXTRA": lambda answer: {**answer, "z": answer["y"]},
    "SHAPE": _with_y(lambda y: y.reshape(-1)),
    "DTYPE": _with_y(lambda y: y.astype(np.float16)),
    "RAISES": _raise,
    "DIES": _die,
    "HANGS": _hang,
}
"""What becomes of the answer to a matmul; every other operation is computed right."""

LARGEST = float(np.finfo("float64").max)
WORST_ULP: Mapping[str, Mapping[str, float]] = {
    "exp": {"float32": 3, "float64": 1},
    "log": {"float32": 4, "float64": 1},
    "sqrt": {"float32": 0.5, "float64": 0.5},
    "reciprocal": {"float32": 0.5, "float64": 0.5},
    "tanh": {"float32": 2, "float64": 2},
    "erf": {"float32": 0.5, "float64": 4},
    "sin": {"float64": 1},
    "cos": {"float64": 1},
}
"""Largest errors measured, rounded up: NumPy 2.4 and SciPy 1.17; test_registry.py verifies them as it does a stack's."""

CAPABILITIES = Capabilities.model_validate(
    {
        "protocol": 1,
        "lane": "research",
        "extra": "dev",
        "packages": ["numpy"],
        "devices": [*SPOILT, "ABSENT", "UNFIT"],
        "requests": ["probe", "compute", "close"],
        "operations": {op: ["float32"] if op.startswith("nf4") else ["float32", "float64"] for op in COMPUTE},
        "elementary": [
            {"function": function, "dtype": dtype, "low": -LARGEST, "high": LARGEST, "ulp": ulp, "absolute": 0}
            for function, by_dtype in WORST_ULP.items()
            for dtype, ulp in by_dtype.items()
        ],
    }
)


def configure(folder: Path, **commands: list[str]) -> Path:
    """Writes a parity.toml with stacks of these names; an empty command means this file's worker."""
    (folder / "capabilities.json").write_text(CAPABILITIES.model_dump_json())
    own = [sys.executable, str(Path(__file__))]
    tables = [
        f'[stacks.{name}]\ncommand = {json.dumps(command or own)}\ncapabilities = "capabilities.json"\n'
        for name, command in commands.items()
    ]
    path = folder / "parity.toml"
    path.write_text("\n".join(tables))
    return path


class NumpyStack:
    """The stack inside a worker."""

    def __init__(self, device: str) -> None:
        self._device = device

    def probe(self) -> Reply:
        """Every device has both dtypes."""
        return Reply(values={"device": self._device, "dtypes": ["float32", "float64"]})

    def compute(self, op: str, attrs: Attributes, tensors: Tensors) -> Reply:
        """One operation, spoilt as the device says."""
        answer = COMPUTE[op](attrs, tensors)
        return Reply(tensors=SPOILT[self._device](answer) if op == "matmul" else answer)


def make(device: str, channel: Channel) -> NumpyStack:
    """The stack; some devices are not there."""
    from contract.errors import EnvironmentUnfit, MissingError

    if device == "ABSENT":
        raise MissingError("there is no such device here; allowed: CPU")
    if device == "UNFIT":
        raise EnvironmentUnfit("there is no C compiler; install one")
    return NumpyStack(device)


@dataclass(frozen=True)
class Done:
    """An answer that was there at once, or the error that came in its place."""

    answer: Answer | Exception

    def result(self) -> Answer:
        """As Pending.result."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class InProcess:
    """What the engine needs of a StackProcess, without a process."""

    def __init__(self, name: str, spoil: Callable[[Arrays], Arrays] = SPOILT["CPU"], only: str = "matmul") -> None:
        self.name, self._spoil, self._only = name, spoil, only
        self.asked: list[str] = []

    def submit(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Done:
        """Computes at once."""
        assert request == "compute"
        op, attrs = values["op"], values["attrs"]
        widened = {name: tensors[name].astype(dtype) for name, dtype in values.get("widen", {}).items()}
        self.asked.append(op)
        started = time.monotonic_ns()
        try:
            answer = COMPUTE[op](attrs, {**tensors, **widened})
            answer = self._spoil(answer) if op == self._only else answer
        except ArithmeticError as error:
            return Done(RequestFailed(self.name, type(error).__name__, str(error), ""))
        return Done(Answer({}, answer, (started, time.monotonic_ns())))


if __name__ == "__main__":
    serve("numpy_stack:make")
