"""A stack in NumPy that trains: a bag of tokens with LoRA-shaped matrices. Run: python toy_stack.py --device NAME.

Each token predicts the next one by itself. With x_TD the embedding's rows, and each adapted linear's matrices A [R, I], B [O, R]:

    h_TD = x_TD + sum over linears of fold(s B (A spread(x)))        logits = h_TD E^T

where spread repeats x to I channels and fold cuts or pads O channels to D. So every matrix matters, and every gradient is linear
algebra by hand. The device's name says what goes wrong: NAN3 in step 3, and so on.

Legend: T tokens, D hidden_size, V vocabulary, R rank, I in_features, O out_features.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from contract.data.batches import Batch
from contract.data.row import IGNORE_INDEX
from contract.data.steps import Step
from contract.errors import EnvironmentUnfit, MissingError
from contract.model.checkpoint import load
from contract.training import session
from contract.training.inputs import Run
from contract.training.session import Prepared
from contract.training.trainer import NotFinite, OutOfMemory, StepDone, TrainerState
from contract.worker.serve import Channel, serve
from contract.worker.stack import NotSupported, Reply

BETA1, BETA2, EPS = np.float32(0.9), np.float32(0.999), np.float32(1e-8)

Matrices = dict[str, np.ndarray]


class ToyTrainer:
    """A trainer of contract.training.trainer in float32.

    Args:
        spoilt: what goes wrong, such as "NAN3": a loss that is NaN in step 3.
        seconds: that a step takes at least.
    """

    def __init__(self, run: Run, *, spoilt: str = "CPU", seconds: float = 0.0) -> None:
        self._run, self._spoilt, self._seconds = run, spoilt, seconds
        self._embedding_VD = load(run.checkpoint, "embedding")
        self._adapter: Matrices = {name: matrix.copy() for name, matrix in run.initial.items()}
        self._m: Matrices = {name: np.zeros_like(matrix) for name, matrix in run.initial.items()}
        self._v: Matrices = {name: np.zeros_like(matrix) for name, matrix in run.initial.items()}
        self._updates = 0

    def step(self, step: Step, learning_rate: float) -> StepDone:
        time.sleep(self._seconds)
        self._go_wrong(step)
        gradients = {name: np.zeros_like(matrix) for name, matrix in self._adapter.items()}
        total, positions = 0.0, 0
        for batch in step.batches:
            total += self._backward(batch, step.tokens, gradients)
            positions += batch.ids_BT.size
        norm = math.sqrt(sum(float((gradient.astype(np.float64) ** 2).sum()) for gradient in gradients.values()))
        clip = np.float32(min(1.0, self._run.contract.exec.max_grad_norm / (norm + 1e-6)))
        self._update({name: gradient * clip for name, gradient in gradients.items()}, learning_rate)
        if self._spoilt == f"BLOWUP{step.number + 1}":
            self._adapter[min(self._adapter)][:] = np.inf
        return StepDone(loss=total / step.tokens, grad_norm=norm, positions=positions, memory_bytes=10**8)

    def loss_sum(self, batch: Batch) -> float:
        if self._spoilt == "OOM0":
            raise OutOfMemory("could not allocate 12345 bytes")
        _, _, losses = self._forward(batch)
        return float(losses.sum())

    def state(self) -> TrainerState:
        adapter, m, v = ({name: it.copy() for name, it in part.items()} for part in (self._adapter, self._m, self._v))
        return TrainerState(adapter=adapter, m=m, v=v, updates=self._updates)

    def restore(self, state: TrainerState) -> None:
        self._adapter, self._m, self._v = ({name: it.copy() for name, it in part.items()} for part in (state.adapter, state.m, state.v))
        self._updates = state.updates

    def _go_wrong(self, step: Step) -> None:
        number = step.number + 1
        last = len(step.batches) - 1
        if self._spoilt == f"NAN{number}":
            raise NotFinite(batch=last, what="loss", value=math.nan)
        if self._spoilt == f"INF{number}":
            raise NotFinite(batch=last, what="gradient", value=math.inf)
        if self._spoilt == f"OOM{number}":
            raise OutOfMemory("could not allocate 12345 bytes")
        if self._spoilt == f"DIE{number}":
            os._exit(7)
        if self._spoilt == f"UNFIT{number}":
            raise EnvironmentUnfit("the compiler of the toy failed on a kernel (no space); free some")
        if self._spoilt == f"BUG{number}":
            raise ZeroDivisionError("a defect")

    def _linears(self) -> list[tuple[str, np.ndarray, np.ndarray, np.float32]]:
        adapter = self._run.contract.adapter
        names = sorted({name.rpartition(".")[0] for name in self._adapter})
        found = []
        for name in names:
            a, b = self._adapter[f"{name}.lora_a"], self._adapter[f"{name}.lora_b"]
            found.append((name, a, b, np.float32(adapter.alpha / a.shape[0])))
        return found

    def _forward(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The inputs x_TD of supervised positions, d loss / d logits [T, V], and the losses [T]."""
        labels = batch.labels_BT[:, 1:].ravel()
        kept = labels != IGNORE_INDEX
        x_TD = self._embedding_VD[batch.ids_BT[:, :-1].ravel()[kept]]
        h_TD = x_TD.copy()
        for _, a, b, scale in self._linears():
            h_TD += _fold(scale * (_spread(x_TD, a.shape[1]) @ a.T @ b.T), h_TD.shape[1])
        logits_TV = h_TD @ self._embedding_VD.T
        logits_TV = logits_TV - logits_TV.max(axis=1, keepdims=True)
        sums_T = np.exp(logits_TV).sum(axis=1)
        rows, targets = np.arange(len(x_TD)), labels[kept]
        losses_T = np.log(sums_T) - logits_TV[rows, targets]
        bar_TV = np.exp(logits_TV) / sums_T[:, None]
        bar_TV[rows, targets] -= 1
        return x_TD, bar_TV, losses_T

    def _backward(self, batch: Batch, tokens: int, gradients: Matrices) -> float:
        x_TD, bar_TV, losses_T = self._forward(batch)
        h_bar_TD = bar_TV @ self._embedding_VD / np.float32(tokens)
        for name, a, b, scale in self._linears():
            y_bar_TO, spread_TI = scale * _fold(h_bar_TD, b.shape[0]), _spread(x_TD, a.shape[1])
            gradients[f"{name}.lora_b"] += y_bar_TO.T @ (spread_TI @ a.T)
            gradients[f"{name}.lora_a"] += (y_bar_TO @ b).T @ spread_TI
        return float(losses_T.sum())

    def _update(self, gradients: Mapping[str, np.ndarray], learning_rate: float) -> None:
        """AdamW (arXiv:1711.05101), as PyTorch documents it."""
        self._updates += 1
        rate, decay = np.float32(learning_rate), np.float32(1 - learning_rate * self._run.contract.exec.weight_decay)
        first, second = (np.float32(1 - float(beta) ** self._updates) for beta in (BETA1, BETA2))
        for name, gradient in gradients.items():
            self._m[name] = BETA1 * self._m[name] + (1 - BETA1) * gradient
            self._v[name] = BETA2 * self._v[name] + (1 - BETA2) * gradient * gradient
            self._adapter[name] *= decay
            self._adapter[name] -= rate * (self._m[name] / first) / (np.sqrt(self._v[name] / second) + EPS)


class ToyStack:
    """Answers `train`; on the device CUDA it can't be made, as on a machine without one."""

    def __init__(self, device: str, channel: Channel) -> None:
        if device == "CUDA":
            raise MissingError("the toy finds no CUDA device; install a driver")
        self._device, self._channel = device, channel

    def probe(self) -> Reply:
        return Reply(values={"device": self._device})

    def train(self, **values: Any) -> Reply:
        return session.train(self._channel, self._prepared, **values)

    def _prepared(self, run: Run) -> Prepared:
        if self._device == "LACKS":
            raise NotSupported("lm_head takes 2 GiB on LACKS; allowed: 1 GiB a tensor; take a smaller model")
        if self._device == "OOMLOAD":
            raise OutOfMemory("could not allocate the weights")
        slow = float(self._device.removeprefix("SLOW")) / 1000 if self._device.startswith("SLOW") else 0.0
        trainer = ToyTrainer(run, spoilt=self._device, seconds=slow)
        return Prepared(trainer=trainer, notes=("the toy's own choice",), threads=1)


def _spread(x_TD: np.ndarray, width: int) -> np.ndarray:
    return np.tile(x_TD, (1, -(-width // x_TD.shape[1])))[:, :width]


def _fold(y_TO: np.ndarray, width: int) -> np.ndarray:
    """Cut or padded with zeros: its own transpose."""
    cut = y_TO[:, :width]
    return np.pad(cut, ((0, 0), (0, width - cut.shape[1])))


if __name__ == "__main__":
    serve("__main__:ToyStack")
