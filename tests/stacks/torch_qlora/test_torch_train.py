"""The trainer: laws in float64, bits from run to run and over a restore, masks as they are given, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.data import dropout
from contract.data.steps import Step
from contract.errors import ContractError
from contract.training.session import About
from contract.training.trainer import NotFinite, OutOfMemory
from stacks.torch_qlora import train as training
from stacks.torch_qlora.graph import GraphBatch
from stacks.torch_qlora.paths import ALWAYS
from stacks.torch_qlora.train import BETA1, TorchTrainer
from tests.contract.training.killed import Deaf
from tests.stacks.torch_qlora.tiny_torch_run import bits, examples, run_in, step_of, trainer_of

BETWEEN = math.sqrt(2.0**-24 * 2.0**-53)
"""Relative: half way, in powers of two, between float32's unit and float64's. No order of float64 sums in a graph this small is so far off;
a float32 anywhere, and a token counted wrong, are further."""

UNCLIPPED = {"max_grad_norm": 1e9}
DROPPED = {"dropout": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


def gradients(trainer: TorchTrainer, step: Step) -> tuple[float, dict[str, np.ndarray]]:
    """The step's loss, and its gradients: what the first update leaves of them in m."""
    done = trainer.step(step, 1e-3)
    m, _ = trainer._optimizer.moments()
    found = {name: moment.double().numpy() / (1 - BETA1) for name, moment in m.items()}
    assert all(gradient.any() for gradient in found.values())
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in found.values()))
    assert abs(done.grad_norm - norm) <= BETWEEN * norm
    return done.loss, found


def assert_same(one: tuple[float, dict[str, np.ndarray]], other: tuple[float, dict[str, np.ndarray]]) -> None:
    (loss, found), (other_loss, other_found) = one, other
    assert abs(loss - other_loss) <= BETWEEN * abs(loss)
    for name, gradient in found.items():
        assert np.abs(gradient - other_found[name]).max() <= BETWEEN * np.abs(gradient).max(), name


# Laws, in float64


@pytest.mark.parametrize("split", [(1, 5), (2, 2, 2), (3, 1, 2), (1, 1, 1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("adapter", [{}, DROPPED], ids=["plain", "dropped"])
def test_accumulated_micro_batches_are_the_whole_batch(folder: Path, split: tuple[int, ...], adapter: dict[str, Any]) -> None:
    """Whatever tokens each has: the loss' sum is divided by the step's."""
    run, rows = run_in(folder, exec=UNCLIPPED, adapter=adapter), [[one] for one in examples()]
    ends = np.cumsum(split)
    parts = [rows[end - size : end] for size, end in zip(split, ends, strict=True)]
    whole = gradients(trainer_of(run, dtype="float64"), step_of([rows]))
    assert_same(whole, gradients(trainer_of(run, dtype="float64"), step_of(parts)))


@pytest.mark.parametrize("adapter", [{}, DROPPED], ids=["plain", "dropped"])
def test_packed_rows_are_rows_apart(folder: Path, adapter: dict[str, Any]) -> None:
    """Also their masks: they belong to a row and a position in it."""
    run, rows = run_in(folder, exec=UNCLIPPED, adapter=adapter), examples(4)
    apart = gradients(trainer_of(run, dtype="float64"), step_of([[[one] for one in rows]]))
    packed = step_of([[[rows[1], rows[3]], [rows[2], rows[0]]]])
    assert_same(apart, gradients(trainer_of(run, dtype="float64"), packed))


def test_a_packed_batch_keeps_its_positions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RoPE would not show it, whose scores know distances alone; learned positions would."""
    trainer, rows, given = trainer_of(run_in(folder)), examples(4), []
    step = step_of([[[rows[1], rows[3]], [rows[2], rows[0]]]])
    (batch,) = step.batches
    right = trainer._graph.loss_sum
    monkeypatch.setattr(trainer._graph, "loss_sum", lambda batch: given.append(batch) or right(batch))
    trainer.step(step, 1e-3)
    trainer.loss_sum(batch)
    for one in given:
        assert one.positions_BT.tolist() == batch.positions_BT.tolist()
        assert one.segments_BT.tolist() == batch.segments_BT.tolist()
    assert len(given) == 2


def test_padding_changes_nothing(folder: Path) -> None:
    run, rows = run_in(folder, exec=UNCLIPPED, adapter=DROPPED), [[one] for one in examples(3)]
    narrow, wide = (gradients(trainer_of(run, dtype="float64"), step_of([rows], width=width)) for width in (None, 20))
    assert_same(narrow, wide)


@pytest.mark.parametrize("packed", [False, True])
def test_production_paths_are_the_plain_ones(folder: Path, packed: bool) -> None:
    """Of all paths together, in float64 and with masks; paths one by one are held in their own dtype by the gate."""
    run, rows = run_in(folder, exec=UNCLIPPED, adapter=DROPPED), examples(4)
    step = step_of([[rows[:2], rows[2:]]] if packed else [[[one] for one in rows]])
    ours, plain = (gradients(trainer_of(run, dtype="float64", with_paths=given), step) for given in (None, ()))
    assert_same(plain, ours)


def test_validation_is_the_loss_without_masks(folder: Path) -> None:
    run, rows = run_in(folder, adapter=DROPPED), [[one] for one in examples(3)]
    bare = run_in(folder, exec=UNCLIPPED)
    step = step_of([rows])
    (batch,) = step.batches
    expected = gradients(trainer_of(bare, dtype="float64"), step)[0] * step.tokens
    trainer = trainer_of(run, dtype="float64")
    trainer.step(step, 0.0)
    assert abs(trainer_of(run, dtype="float64").loss_sum(batch) - expected) <= BETWEEN * expected
    assert trainer.loss_sum(batch) != pytest.approx(trainer.step(step, 0.0).loss * step.tokens, rel=1e-3), "the step's masks are drawn"


# A step's parts


def test_masks_are_the_contracts(folder: Path) -> None:
    """Each linear is given the mask of its layer and name, of the step, the rows and the positions."""
    run = run_in(folder, adapter=DROPPED)
    trainer, step = trainer_of(run), step_of([[[one] for one in examples(2)]])
    (batch,) = step.batches
    asked: list[tuple[str, int]] = []
    masks = trainer._masks

    def watched(number: int, given: Any) -> Any:
        assert number == step.number
        keep = masks(number, given)
        return lambda path, width: asked.append((path, width)) or keep(path, width)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_masks", watched)
        trainer.step(step, 1e-3)
    widths = {"o_proj": 24, "down_proj": 20}
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert sorted(asked) == sorted((f"layers.{layer}.{name}", widths.get(name, 10)) for layer in range(2) for name in linears)
    expected = dropout.mask(
        seed=run.contract.exec.seed, step=4, samples=batch.samples_BT, positions=batch.positions_BT, layer=1, site="o_proj", width=24,
        probability=0.3,
    )  # fmt: skip
    np.testing.assert_array_equal(masks(4, batch)("layers.1.o_proj", 24).numpy(), expected)


def test_gradients_are_clipped_together(folder: Path) -> None:
    trainer, free = (trainer_of(run_in(folder, exec={"max_grad_norm": limit}), dtype="float64") for limit in (0.25, 1e9))
    step = step_of([[[one] for one in examples()]])
    clipped, loose = trainer.step(step, 0.0), free.step(step, 0.0)
    assert clipped.grad_norm == loose.grad_norm > 0.25
    (m, _), (loose_m, _) = trainer._optimizer.moments(), free._optimizer.moments()
    scale = 0.25 / (clipped.grad_norm + 1e-6)
    for name, moment in m.items():
        assert float((moment - scale * loose_m[name]).abs().max()) <= BETWEEN * float(moment.abs().max())


def test_a_step_reports_what_it_did(folder: Path) -> None:
    trainer = trainer_of(run_in(folder))
    step = step_of([[[one] for one in examples(3)], [[one] for one in examples(2)]])
    sums = [trainer.loss_sum(batch) for batch in step.batches]
    done = trainer.step(step, 1e-3)
    assert done.positions == 3 * 8 + 2 * 6
    assert done.loss == pytest.approx(sum(sums) / step.tokens, rel=2**-20)  # a few float32 roundings: a pass without and one with gradients
    assert done.memory_bytes is not None
    assert done.memory_bytes > 2**20


# Bits


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "float32": {},
    "dropped": {"adapter": DROPPED},
    "packed": {"exec": {"packing": True, "seq_len": 32}, "adapter": DROPPED},
    "nf4": {"adapter": {"method": "qlora"}, "quant": {"base": "nf4"}},
    "bfloat16": {"exec": {"compute_dtype": "bfloat16"}},
    "nf4_bfloat16": {"adapter": {"method": "qlora", "dropout": 0.1}, "quant": {"base": "nf4"}, "exec": {"compute_dtype": "bfloat16"}},
    "adamw_8bit": {"adapter": {"rank": 600}, "exec": {"optimizer": "adamw_8bit"}},
}


def test_the_request_tells_how_far_the_model_is_loaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantising takes longer than two seconds on a model that is not tiny."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, channel = run_in(folder, exec={"max_steps": 1}), Deaf()
    about = About(stack="torch_qlora", packages=("torch",), device="CPU").model_dump(mode="json")
    values = {"contract": run.contract.model_dump(mode="json"), "folder": str(tmp_path / "out"), "about": about}
    assert training.respond(values, torch.device("cpu"), channel).values["end"] == "done"
    told = [(frame["done"], frame["of"]) for frame in channel.frames if frame["stage"] == "load" and "done" in frame]
    weights = len(run.checkpoint.placed)
    assert told == [(number, weights) for number in range(1, weights + 1)]


@pytest.mark.parametrize("case", CASES)
def test_restored_is_uninterrupted_bit_for_bit(folder: Path, case: str) -> None:
    """6 steps, and 3 steps and 3 of a new trainer; so twice the same steps are the same bits too."""
    run = run_in(folder, **CASES[case])
    straight, first, second = (trainer_of(run, seed=seed) for seed in (3, 3, 8))
    losses = [straight.step(step, float(run.learning_rates[step.number])).loss for step in steps(run, 0, 6)]
    for step in steps(run, 0, 3):
        first.step(step, float(run.learning_rates[step.number]))
    second.restore(first.state())
    resumed = [second.step(step, float(run.learning_rates[step.number])).loss for step in steps(run, 3, 6)]
    assert losses[3:] == resumed
    assert bits(second.state()) == bits(straight.state()) != bits(first.state())


def steps(run: Any, first: int, last: int) -> Iterator[Step]:
    for step in run.steps.steps(first):
        if step.number == last:
            return
        yield step


@pytest.mark.parametrize("case", ["nf4", "nf4_bfloat16"])
def test_what_memory_decides_changes_no_bit(folder: Path, case: str) -> None:
    run, states = run_in(folder, **CASES[case]), []
    for more in ((), ("nf4_linear",), ("checkpoint",), ("nf4_linear", "checkpoint")):
        trainer = trainer_of(run, with_paths=(*ALWAYS, *more))
        for step in steps(run, 0, 2):
            trainer.step(step, 1e-3)
        states.append(bits(trainer.state()))
    assert all(state == states[0] for state in states)


def test_a_state_is_a_copy(folder: Path) -> None:
    run = run_in(folder)
    trainer = trainer_of(run)
    (step,) = steps(run, 0, 1)
    before = trainer.state()
    kept = bits(before)
    trainer.step(step, 1e-3)
    assert bits(before) == kept != bits(trainer.state())
    assert (before.updates, trainer.state().updates) == (0, 1)


# What goes wrong


def blow_up(trainer: TorchTrainer, number: int, what: str, patch: pytest.MonkeyPatch) -> None:
    """One micro-batch of a step gives a loss of infinity, or a gradient that is none; told by how many tokens it has."""
    right = trainer._graph.loss_sum

    def wrong(batch: GraphBatch) -> torch.Tensor:
        loss = right(batch)
        if batch.ids_BT.shape[0] != number + 1:
            return loss
        return loss * math.inf if what == "loss" else loss + torch.sqrt(0 * loss)

    patch.setattr(trainer._graph, "loss_sum", wrong)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_is_not_finite_is_named_before_anything_changed(folder: Path, what: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, rows = trainer_of(run_in(folder)), examples()
    step = step_of([[[one] for one in rows[:1]], [[one] for one in rows[1:3]], [[one] for one in rows[3:6]]])
    trainer.step(step, 1e-3)
    before = bits(trainer.state())
    blow_up(trainer, number, what, monkeypatch)
    with pytest.raises(NotFinite) as raised:
        trainer.step(step, 1e-3)
    assert (raised.value.batch, raised.value.what) == (number, what)
    assert not math.isfinite(raised.value.value)
    assert bits(trainer.state()) == before
    assert all(parameter.grad is None for parameter in trainer._parameters.values())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()])
def test_an_allocators_refusal_is_out_of_memory(folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(run_in(folder))
    step = step_of([[[one] for one in examples(2)]])

    def refuse(batch: GraphBatch) -> torch.Tensor:
        raise error

    monkeypatch.setattr(trainer._graph, "loss_sum", refuse)
    for request in (lambda: trainer.step(step, 1e-3), lambda: trainer.loss_sum(step.batches[0])):
        with pytest.raises(OutOfMemory, match=r"CUDA out of memory|no memory is left"):
            request()


def test_what_torchs_cpu_allocator_says_is_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match="allocate"), training._out_of_memory():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="another"), training._out_of_memory():
        raise RuntimeError("another defect")


def test_paged_memory_is_refused_on_a_cpu(folder: Path) -> None:
    run = run_in(folder, exec={"optimizer": "paged_adamw_8bit"})
    with pytest.raises(ContractError, match=r"paged_adamw_8bit on CPU.*adamw or adamw_8bit.*set exec.optimizer to adamw_8bit"):
        TorchTrainer(run, torch.device("cpu"))


def test_a_state_of_another_optimiser_is_refused(folder: Path) -> None:
    given = trainer_of(run_in(folder, adapter={"rank": 600}))
    other = trainer_of(run_in(folder, **CASES["adamw_8bit"]))
    (step,) = steps(run_in(folder), 0, 1)
    given.step(step, 1e-3)
    before = bits(other.state())
    with pytest.raises(ContractError, match=r"are not what 8-bit codes stand for.*resume from another checkpoint"):
        other.restore(given.state())
    assert {name: value for name, value in bits(other.state()).items() if name.startswith("adapter")} == {
        name: value for name, value in before.items() if name.startswith("adapter")
    }
