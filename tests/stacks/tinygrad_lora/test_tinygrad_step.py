"""A step of the proxy graph against NumPy, written from its formulas: masks, chunks of rows that carry loss, the head's adapter; and which
tokens a block is told to see.

Shape suffixes: N rows that carry loss, D hidden_size, V vocabulary, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygrad import Tensor

from contract.data import dropout
from contract.data.batches import Batch
from contract.data.row import IGNORE_INDEX
from contract.model import checkpoint
from contract.model.layout import read
from contract.run.spec import FineTuneContract
from contract.training.inputs import Run, prepare
from contract.worker.taps import HEAD, LM_HEAD
from stacks.tinygrad_lora import buckets
from stacks.tinygrad_lora.buckets import Buckets
from stacks.tinygrad_lora.chain import Keep
from stacks.tinygrad_lora.models.build import build
from stacks.tinygrad_lora.models.section import Pass
from stacks.tinygrad_lora.step import SEEN, Adapted, _block
from stacks.tinygrad_lora.train import TinygradTrainer
from tests.contract.model import tiny_checkpoint
from tests.stacks.tinygrad_lora.tiny_tinygrad_generation import CONFIGS
from tests.stacks.tinygrad_lora.tiny_tinygrad_run import VOCABULARY, examples, run_in, step_of, trainer_of

pytestmark = pytest.mark.usefixtures("cpu")

Arrays = dict[str, np.ndarray]

BETWEEN = math.sqrt(2.0**-24 * 2.0**-53)
"""As of test_tinygrad_train.py: half way between float32's unit and float64's, in powers of two."""

DROPPED, BLOCKS, EPS = 0.4, 2, 1e-6
BETA1, RATE, DECAY = 0.9, 1e-2, 0.1
CHUNK = 16


@dataclass
class Reference:
    """The proxy graph of a trainer's weights and adapter in NumPy, and the gradients of the loss' sum."""

    run: Run
    weights: Arrays
    adapter: Arrays

    def __post_init__(self) -> None:
        self.gradients = {name: np.zeros(matrix.shape) for name, matrix in self.adapter.items()}

    def batch(self, batch: Batch, step: int) -> float:
        """The loss' sum of a micro-batch, whose gradients are added."""
        index_N = np.flatnonzero(np.pad(batch.labels_BT[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE_INDEX) != IGNORE_INDEX)
        label_N = np.roll(batch.labels_BT, -1, axis=1).reshape(-1)[index_N]
        places = {name: getattr(batch, f"{name}_BT").reshape(-1)[index_N] for name in ("samples", "positions")}
        x_ND = checkpoint.load(self.run.checkpoint, "embedding").astype(np.float64)[batch.ids_BT.reshape(-1)[index_N]]
        back = []
        for layer in range(BLOCKS):
            root_N1 = np.sqrt((x_ND**2).mean(axis=1, keepdims=True) + EPS)
            y_ND, given = self._linear(f"layers.{layer}.o_proj", x_ND / root_N1, places, step)
            back.append((given, root_N1))
            x_ND = x_ND + y_ND / math.sqrt(BLOCKS)
        logits_NV, given = self._linear(LM_HEAD, x_ND / math.sqrt(BLOCKS), places, step)
        e_NV = np.exp(logits_NV - logits_NV.max(axis=1, keepdims=True))
        p_NV = e_NV / e_NV.sum(axis=1, keepdims=True)
        bar_ND = self._back(LM_HEAD, p_NV - np.eye(VOCABULARY)[label_N], *given) / math.sqrt(BLOCKS)
        for layer, (given, root_N1) in reversed(list(enumerate(back))):
            into_ND = self._back(f"layers.{layer}.o_proj", bar_ND / math.sqrt(BLOCKS), *given)
            norm_ND = given[0]
            bar_ND = bar_ND + (into_ND - norm_ND * (into_ND * norm_ND).mean(axis=1, keepdims=True)) / root_N1
        return -float(np.log(p_NV[np.arange(len(label_N)), label_N]).sum())

    def _linear(self, path: str, x_NI: np.ndarray, places: Arrays, step: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """y, and what the way back takes: the input, and what each element of it is multiplied by."""
        layer = -1 if path == LM_HEAD else int(path.split(".")[1])
        mask_NI = dropout.mask(
            seed=self.run.contract.exec.seed, step=step, layer=layer, site=path.rpartition(".")[2], width=x_NI.shape[1],
            probability=DROPPED, **places,
        )  # fmt: skip
        share_NI = mask_NI / (1 - DROPPED)
        a_RI, b_OR = self.adapter[f"{path}.lora_a"], self.adapter[f"{path}.lora_b"]
        return x_NI @ self.weights[path].T + self._scale(path) * (x_NI * share_NI) @ a_RI.T @ b_OR.T, (x_NI, share_NI)

    def _back(self, path: str, bar_NO: np.ndarray, x_NI: np.ndarray, share_NI: np.ndarray) -> np.ndarray:
        a_RI, b_OR, s = self.adapter[f"{path}.lora_a"], self.adapter[f"{path}.lora_b"], self._scale(path)
        self.gradients[f"{path}.lora_b"] += s * bar_NO.T @ (x_NI * share_NI @ a_RI.T)
        self.gradients[f"{path}.lora_a"] += s * (bar_NO @ b_OR).T @ (x_NI * share_NI)
        x_bar_NI: np.ndarray = bar_NO @ self.weights[path] + s * bar_NO @ b_OR @ a_RI * share_NI
        return x_bar_NI

    def _scale(self, path: str) -> float:
        return self.run.plan.lora.scaling_of(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("proxy")
    fields = run_in(folder).contract.model_dump(mode="json")
    tensors = tiny_checkpoint.squared(tiny_checkpoint.weights(vocab_size=VOCABULARY))
    tiny_checkpoint.write(folder / "model", tensors, vocab_size=VOCABULARY, **tiny_checkpoint.SQUARE)
    fields["graph"] = "qlora_proxy_v1"
    fields["adapter"] = {
        "method": "lora",
        "targets": "lm_head_proxy",
        "rank": 3,
        "alpha": 7.0,
        "alpha_pattern": {LM_HEAD: 2.0},
        "dropout": DROPPED,
    }
    fields["exec"] |= {"max_grad_norm": 1e9, "weight_decay": DECAY, "grad_accum": 1}
    return prepare(FineTuneContract.model_validate(fields), cache=folder / "cache", dtype="float64")


@pytest.fixture
def trainer(run: Run, monkeypatch: pytest.MonkeyPatch) -> TinygradTrainer:
    """Of small chunks, so that a batch has several."""
    monkeypatch.setattr(buckets, "_CHUNK", CHUNK)
    return trainer_of(run)


def weights_of(trainer: TinygradTrainer) -> Arrays:
    held = trainer._graph.held
    middle = {f"layers.{layer}.o_proj": held[f"layers.{layer}"]["o_proj"].numpy() for layer in range(BLOCKS)}
    return middle | {LM_HEAD: held[HEAD][LM_HEAD].numpy()}


def test_a_step_of_the_proxy_graph_is_its_formulas(run: Run, trainer: TinygradTrainer) -> None:
    step = step_of([[[one] for one in examples()[3:]]], width=16)
    assert step.tokens > CHUNK
    before = trainer.state()
    reference = Reference(run, weights_of(trainer), dict(before.adapter))
    loss = sum(reference.batch(batch, step.number) for batch in step.batches) / step.tokens
    done, after = trainer.step(step, RATE), trainer.state()
    assert abs(done.loss - loss) <= BETWEEN * loss
    for name, gradient in reference.gradients.items():
        expected = gradient / step.tokens
        assert np.abs(after.m[name] / (1 - BETA1) - expected).max() <= BETWEEN * np.abs(expected).max(), name
        # of a first step m / (1 - beta1) is the gradient, and sqrt(v / (1 - beta2)) its magnitude
        weight = before.adapter[name] * (1 - RATE * DECAY) - RATE * expected / (np.abs(expected) + 1e-8)
        assert np.abs(after.adapter[name] - weight).max() <= BETWEEN * np.abs(weight).max(), name


def test_a_block_is_told_its_layer_and_its_window(tmp_path: Path) -> None:
    """Qwen2, whose first block sees all, and whose second has a window."""
    run = run_in(tmp_path)
    layout = read({**CONFIGS["qwen2"], "model_type": "qwen2", "vocab_size": VOCABULARY})
    run = replace(run, checkpoint=replace(run.checkpoint, layout=layout))
    table = np.ones((VOCABULARY, layout.hidden_size), np.float32)
    arrays = Buckets(run, build(run.plan), {"embedding": table}).arrays(step_of([[[examples()[2]]]]).batches[0], step=None)
    t_T1, s_1S = np.ogrid[:16, :16]
    expected = {None: s_1S <= t_T1, 5: (s_1S <= t_T1) & (t_T1 - s_1S < 5)}
    assert {name for name in arrays if name.startswith(SEEN)} == {f"{SEEN}{window}" for window in expected}
    told: list[tuple[int, Tensor]] = []

    def block(x_BTD: Tensor, tensors: Any, linears: Any, hook: Any, layer: int, shared: Pass) -> Tensor:
        told.append((layer, shared.seen(layer)))
        return x_BTD

    given = {name: Tensor(array) for name, array in arrays.items()}
    held: dict[str, dict[str, Tensor]] = {"layers.0": {}, "layers.1": {}}
    graph = Adapted(plan=run.plan, model=replace(build(run.plan), block=block), held=held, adapter={}, m={}, v={}, sums={}, chunk=16)
    for section in held:
        _block(graph, section, given)(given["token_rows"], Keep())
    assert [layer for layer, _ in told] == [0, 1]
    for (_, seen), window in zip(told, (None, 5), strict=True):
        np.testing.assert_array_equal(seen.numpy(), expected[window])
