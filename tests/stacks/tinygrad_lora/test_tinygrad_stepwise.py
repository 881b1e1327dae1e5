"""Training sessions of the tinygrad stack: its trainer, in float64 where it is asked for. Which numbers are right is tier D's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.worker.stack import NotSupported
from stacks.tinygrad_lora.ops import TinygradLora
from tests.stacks.tinygrad_lora.tiny_tinygrad_run import run_in

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stepwise")


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_every_bit_of_a_state_is_kept(folder: Path, dtype: str | None) -> None:
    run, stack = run_in(folder), TinygradLora("CPU")
    answer = stack.train_open(session="it", contract=run.contract.model_dump(mode="json"), dtype=dtype)
    assert answer.values == {"steps": run.steps.total}
    found = stack.train_state(session="it").tensors
    for name, matrix in run.initial.items():
        assert np.array_equal(found[f"adapter.{name}"], matrix)
        assert not np.any(found[f"m.{name}"])
        assert not np.any(found[f"v.{name}"])
    assert {it.dtype.name for name, it in found.items() if name != "updates"} == {dtype or "float32"}
    rng = np.random.default_rng(1)
    state = {name: rng.standard_normal(it.shape).astype(it.dtype) for name, it in found.items()} | {"updates": np.array(7, np.int64)}
    stack.train_state(session="it", tensors=state)
    assert {name: it.tobytes() for name, it in stack.train_state(session="it").tensors.items()} == {
        name: it.tobytes() for name, it in state.items()
    }


def test_a_dtype_that_the_device_lacks_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = TinygradLora("CPU")
    monkeypatch.setattr(stack, "_dtypes", ("float32",))
    with pytest.raises(NotSupported, match="opens no graph in float64 on CPU; allowed: float32"):
        stack.train_open(session="it", contract=run_in(folder).contract.model_dump(mode="json"), dtype="float64")
