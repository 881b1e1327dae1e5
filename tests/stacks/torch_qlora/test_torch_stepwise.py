"""Training sessions of the torch stack: the trainer of a run, in float64 where it is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from contract.training.stepwise import state_tensors
from stacks.torch_qlora.ops import TorchQlora
from stacks.torch_qlora.paths import chosen
from stacks.torch_qlora.train import TorchTrainer
from tests.stacks.torch_qlora.tiny_torch_run import bits, run_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stepwise")


def test_a_session_in_the_contracts_dtype_takes_the_runs_own_steps_bit_for_bit(folder: Path) -> None:
    run = run_in(folder)
    trainer, stack = TorchTrainer(run, torch.device("cpu")), TorchQlora("CPU")
    stack.train_open(session="it", contract=run.contract.model_dump(mode="json"))
    for step, rate in zip(run.steps.steps(), run.learning_rates[:3], strict=False):
        done = trainer.step(step, float(rate))
        told = stack.train_step(session="it", number=step.number).tensors
        assert (float(told["loss"]), float(told["grad_norm"])) == (done.loss, done.grad_norm)
    assert {name: it.tobytes() for name, it in stack.train_state(session="it").tensors.items()} == {
        name: it.tobytes() for name, it in state_tensors(trainer.state()).items()
    }


def test_in_float64_every_bit_of_a_state_is_kept_and_none_is_float32s(folder: Path) -> None:
    run, stack = run_in(folder), TorchQlora("CPU")
    stack.train_open(session="it", contract=run.contract.model_dump(mode="json"), dtype="float64")
    rng = np.random.default_rng(1)
    state = {name: np.abs(rng.standard_normal(it.shape)) for name, it in stack.train_state(session="it").tensors.items()}
    state["updates"] = np.array(7, np.int64)
    stack.train_state(session="it", tensors=state)
    kept = stack.train_state(session="it").tensors
    assert {name: it.tobytes() for name, it in kept.items()} == {name: it.tobytes() for name, it in state.items()}
    done = stack.train_step(session="it", number=1).tensors
    after = stack.train_state(session="it").tensors
    assert int(after["updates"]) == 8
    for value in (done["loss"], done["grad_norm"], *(it for name, it in after.items() if name != "updates")):
        assert value.dtype == np.float64
        assert np.any(value != value.astype(np.float32)), "it has digits that float32 lacks"


def test_an_nf4_base_in_float64_is_multiplied_from_its_dequantised_values(folder: Path) -> None:
    quant = {"base": "nf4", "block_size": 64}
    run = run_in(folder, quant=quant, adapter={"method": "qlora"})
    wide = dataclasses.replace(run, dtype="float64")
    assert chosen(wide, torch.device("cpu"))[0].dtype == "float64"
    assert "nf4_linear" not in chosen(wide, torch.device("cpu"))[0].paths
    trainer = TorchTrainer(wide, torch.device("cpu"))
    before = bits(trainer.state())
    trainer.step(next(wide.steps.steps(1)), 0.01)
    assert bits(trainer.state()) != before
