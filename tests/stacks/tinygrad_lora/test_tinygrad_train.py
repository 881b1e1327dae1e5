"""The trainer: steps against gradients of the plain graph and AdamW in NumPy, bits over a restore, laws, and what stops it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.data.batches import PADDING, Batch
from contract.data.row import IGNORE_INDEX
from contract.data.steps import Step
from contract.model import checkpoint
from contract.training.inputs import Run
from contract.training.trainer import NotFinite, StepDone, TrainerState
from contract.worker import graph as requests
from stacks.tinygrad_lora.ops import TinygradLora
from stacks.tinygrad_lora.session import Session
from stacks.tinygrad_lora.step import TOKENS_OF_STEP
from stacks.tinygrad_lora.train import TinygradTrainer
from tests.stacks.tinygrad_lora.tiny_tinygrad_run import bits, examples, run_in, step_of, trainer_of

pytestmark = pytest.mark.usefixtures("cpu")

Arrays = dict[str, np.ndarray]

BETWEEN = math.sqrt(2.0**-24 * 2.0**-53)
"""Relative: half way, in powers of two, between float32's unit and float64's. No order of float64 sums in a graph this small is so far off;
a float32 anywhere, and a token counted wrong, are further."""

ONE = {"target_modules": ["q_proj"], "rank_pattern": {}}
"""The linear that has LoRA, first in each block: the fewer shapes, the fewer kernels to compile."""
DROPPED = {"dropout": 0.3}
UNCLIPPED = {"max_grad_norm": 1e9}
ROWS, TOKENS = 3, 16
"""The run's only bucket."""
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return run_in(folder, dtype="float64", adapter=ONE, exec={"max_grad_norm": 0.3, "weight_decay": 0.1})


@pytest.fixture(scope="module")
def shared(run: Run, cpu: TinygradLora) -> TinygradTrainer:
    """One trainer for all tests that set its state first: by the third one it replays what it captured."""
    return TinygradTrainer(run, "CPU")


def steps(run: Run, first: int, last: int) -> Iterator[Step]:
    for step in run.steps.steps(first):
        if step.number == last:
            return
        yield step


def start(run: Run, *, seed: int | None = 3) -> TrainerState:
    """A state before the first update, which float32 holds; with a seed, B is not zero."""
    adapter = {name: matrix.astype(np.float64) for name, matrix in run.initial.items()}
    if seed is not None:
        generator = np.random.default_rng(seed)
        adapter = {name: generator.normal(0, 0.2, matrix.shape).astype(np.float32).astype(np.float64) for name, matrix in adapter.items()}
    zeros = {name: np.zeros_like(matrix) for name, matrix in adapter.items()}
    return TrainerState(adapter=adapter, m=zeros, v=zeros, updates=0)


def train(trainer: TinygradTrainer, run: Run, first: int, last: int) -> list[StepDone]:
    return [trainer.step(step, float(run.learning_rates[step.number])) for step in steps(run, first, last)]


# The computation, in float64


@pytest.fixture(scope="module")
def plain(run: Run, cpu: TinygradLora) -> Session:
    """The same graph tap by tap, each a kernel of its own, its gradient by tinygrad."""
    tensors = {name: checkpoint.load(run.checkpoint, name) for name in requests.weights(run.plan)}
    return Session(run.plan, {**tensors, **run.initial}, device="CPU", channel=None)


def padded(batch: Batch) -> Arrays:
    """The batch as one of ROWS sequences of TOKENS, so that all have the same kernels; of segments, which hide what was added."""
    added = {"ids": 0, "labels": IGNORE_INDEX, "positions": 0, "segments": PADDING}
    sizes = tuple((0, most - size) for most, size in zip((ROWS, TOKENS), batch.ids_BT.shape, strict=True))
    return {name: np.pad(getattr(batch, f"{name}_BT"), sizes, constant_values=value) for name, value in added.items()}


def summed(session: Session, adapter: Mapping[str, np.ndarray], step: Step) -> tuple[float, Arrays]:
    """The step's loss and gradients, each micro-batch's mean times its tokens."""
    session.state({name: matrix.astype(np.float32) for name, matrix in adapter.items()})
    loss, total = 0.0, {name: np.zeros(matrix.shape) for name, matrix in adapter.items()}
    for batch in step.batches:
        answer = session.gradients(["loss"], padded(batch))
        loss += float(answer["loss"]) * batch.tokens / step.tokens
        for name, gradient in total.items():
            gradient += answer[f"grad.{name}"] * batch.tokens / step.tokens
    return loss, total


def updated(state: TrainerState, gradients: Arrays, rate: float, *, decay: float, limit: float) -> tuple[float, TrainerState]:
    """The norm, and the state after clipping and AdamW (arXiv:1711.05101, as torch.optim.AdamW documents it)."""
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
    n, clip = state.updates + 1, min(1.0, limit / (norm + 1e-6))
    m = {name: BETA1 * state.m[name] + (1 - BETA1) * clip * gradient for name, gradient in gradients.items()}
    v = {name: BETA2 * state.v[name] + (1 - BETA2) * (clip * gradient) ** 2 for name, gradient in gradients.items()}
    adapter = {
        name: matrix * (1 - rate * decay) - rate * (m[name] / (1 - BETA1**n)) / (np.sqrt(v[name] / (1 - BETA2**n)) + EPS)
        for name, matrix in state.adapter.items()
    }
    return norm, TrainerState(adapter=adapter, m=m, v=v, updates=n)


def near(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert np.abs(array - other[name]).max() <= BETWEEN * np.abs(other[name]).max(), name


def test_steps_are_plain_gradients_and_adamw(run: Run, shared: TinygradTrainer, plain: Session) -> None:
    """Of other batches, widths and rates, with ragged micro-batches; teacher-forced, from states that float32 holds; most are replays."""
    state = start(run)
    for step in steps(run, 0, 6):
        state = replace(state, adapter={name: matrix.astype(np.float32).astype(np.float64) for name, matrix in state.adapter.items()})
        shared.restore(state)
        rate = float(run.learning_rates[step.number]) + 1e-3  # the schedule's first is 0
        done, after = shared.step(step, rate), shared.state()
        loss, gradients = summed(plain, state.adapter, step)
        norm, expected = updated(state, gradients, rate, decay=0.1, limit=0.3)
        assert abs(done.loss - loss) <= BETWEEN * loss
        assert abs(done.grad_norm - norm) <= BETWEEN * norm
        assert norm > 0.3, "it is clipped"
        near(after.m, expected.m)
        near(after.v, expected.v)
        # where m / sqrt(v) of a tiny gradient loses digits, the step itself is at most as large as the rate
        near(after.adapter, expected.adapter)
        assert (done.positions, after.updates) == (sum(batch.ids_BT.size for batch in step.batches), expected.updates)
        state = after


def test_nothing_comes_back_to_a_where_b_is_zero(run: Run, shared: TinygradTrainer) -> None:
    shared.restore(start(run, seed=None))
    (step,) = steps(run, 0, 1)
    shared.step(step, 1e-3)
    after = shared.state()
    for name, moment in after.m.items():
        assert moment.any() != name.endswith(".lora_a"), name
    assert all((after.adapter[name] != 0).all() for name in after.adapter if name.endswith(".lora_b"))


@pytest.mark.nightly
def test_validation_is_the_plain_loss(run: Run, shared: TinygradTrainer, plain: Session) -> None:
    shared.restore(start(run))
    before = bits(shared.state())
    for step in steps(run, 0, 2):
        expected, _ = summed(plain, shared.state().adapter, step)
        found = math.fsum(shared.loss_sum(batch) for batch in step.batches)
        assert abs(found - expected * step.tokens) <= BETWEEN * found
    assert bits(shared.state()) == before


# Bits


def test_a_restored_run_goes_on_bit_for_bit(run: Run, shared: TinygradTrainer) -> None:
    """6 steps; the last 3 again from the state between, in a trainer that has gone on; and all 6 again."""
    shared.restore(start(run))
    first = train(shared, run, 0, 3)
    between = shared.state()
    last = train(shared, run, 3, 6)
    after = bits(shared.state())
    shared.restore(between)
    again = train(shared, run, 3, 6)
    assert [done.loss for done in again] == [done.loss for done in last]
    assert bits(shared.state()) == after != bits(between)
    shared.restore(start(run))
    assert [done.loss for done in train(shared, run, 0, 6)] == [done.loss for done in first + last]
    assert bits(shared.state()) == after


def test_a_state_is_a_copy(run: Run, shared: TinygradTrainer) -> None:
    given = start(run)
    shared.restore(given)
    before = shared.state()
    kept = bits(before)
    train(shared, run, 0, 1)
    assert bits(before) == bits(given) == kept != bits(shared.state())
    assert (before.updates, shared.state().updates) == (0, 1)


# What goes wrong


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("number", [0, 1])
def test_what_is_not_finite_changes_nothing(
    run: Run, shared: TinygradTrainer, what: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (step,) = steps(run, 0, 1)
    shared.restore(start(run))
    shared.step(step, 1e-3)
    after = bits(shared.state())
    shared.restore(start(run))
    before, asked = bits(shared.state()), iter(range(9))
    right = shared._run_captured

    def spoilt(function: Any, arrays: Arrays) -> Arrays:
        changed = {TOKENS_OF_STEP: np.array([5e-324])} if what == "gradient" else {"token_rows": arrays["token_rows"] * math.nan}
        return right(function, arrays | changed if next(asked) == number else arrays)

    with monkeypatch.context() as patch:
        patch.setattr(shared, "_run_captured", spoilt)
        with pytest.raises(NotFinite) as raised:
            shared.step(step, 1e-3)
    assert (raised.value.batch, raised.value.what) == (number, what)
    assert not math.isfinite(raised.value.value)
    assert bits(shared.state()) == before
    shared.step(step, 1e-3)
    assert bits(shared.state()) == after, "what is left of the step that failed is in no later one"


# Laws that take a trainer each


def gradients(run: Run, step: Step) -> tuple[float, Arrays]:
    """The step's loss, and its gradients: what the first update leaves of them in m."""
    trainer = trainer_of(run)
    loss = trainer.step(step, 1e-3).loss
    found = {name: moment / (1 - BETA1) for name, moment in trainer.state().m.items()}
    assert all(gradient.any() for gradient in found.values())
    return loss, found


def same(one: tuple[float, Arrays], other: tuple[float, Arrays]) -> None:
    assert abs(one[0] - other[0]) <= BETWEEN * abs(one[0])
    near(one[1], other[1])


@pytest.mark.nightly
@pytest.mark.parametrize("adapter", [ONE, {**ONE, **DROPPED}], ids=["plain", "dropped"])
def test_accumulated_micro_batches_are_the_whole_batch(folder: Path, adapter: dict[str, Any]) -> None:
    rows = [[one] for one in examples()]
    whole = gradients(
        run_in(folder, dtype="float64", exec={**UNCLIPPED, "batch_size": 6, "grad_accum": 1}, adapter=adapter), step_of([rows])
    )
    parts = run_in(folder, dtype="float64", exec=UNCLIPPED, adapter=adapter)
    for ends in ((1, 3, 6), (3, 6)):
        split = [rows[end - size : end] for end, size in zip(ends, np.diff((0, *ends)), strict=True)]
        same(whole, gradients(parts, step_of(split)))


@pytest.mark.nightly
@pytest.mark.parametrize("adapter", [ONE, {**ONE, **DROPPED}], ids=["plain", "dropped"])
def test_packed_rows_are_rows_apart(folder: Path, adapter: dict[str, Any]) -> None:
    """Also their masks: they belong to a row and a position in it."""
    run = run_in(folder, dtype="float64", exec={**UNCLIPPED, "batch_size": 4, "seq_len": 32}, adapter=adapter)
    rows = examples(4)
    apart = gradients(run, step_of([[[one] for one in rows]]))
    same(apart, gradients(run, step_of([[[rows[1], rows[3]], [rows[2], rows[0]]]])))


@pytest.mark.nightly
def test_padding_changes_nothing(folder: Path) -> None:
    """More rows and more tokens than there are."""
    step = step_of([[[one] for one in examples(3)]])
    narrow, wide = (
        run_in(folder, dtype="float64", exec={**UNCLIPPED, "batch_size": rows, "seq_len": tokens}, adapter={**ONE, **DROPPED})
        for rows, tokens in ((3, 8), (5, 16))
    )
    same(gradients(narrow, step), gradients(wide, step))


@pytest.mark.nightly
def test_validation_draws_no_masks(folder: Path) -> None:
    dropped, bare = (
        trainer_of(run_in(folder, dtype="float64", exec=UNCLIPPED, adapter={**ONE, **more})) for more in (DROPPED, {"dropout": 0.0})
    )
    step = step_of([[[one] for one in examples(3)]])
    (batch,) = step.batches
    expected = bare.step(step, 0.0).loss * step.tokens
    assert abs(dropped.loss_sum(batch) - expected) <= BETWEEN * expected
    assert abs(dropped.step(step, 0.0).loss * step.tokens - expected) > 1e-3 * expected, "the step's masks are drawn"


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "float32": {},
    "dropped": {"adapter": DROPPED},
    "packed": {"exec": {"packing": True, "seq_len": 32}, "adapter": DROPPED},
    "nf4": {"quant": {"base": "nf4"}},
    "bfloat16": {"exec": {"compute_dtype": "bfloat16"}},
    "nf4_bfloat16": {"adapter": DROPPED, "quant": {"base": "nf4"}, "exec": {"compute_dtype": "bfloat16"}},
}


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_a_new_trainer_goes_on_bit_for_bit(folder: Path, case: str) -> None:
    """6 steps, and 3 steps and 3 of a trainer that captures anew."""
    run = run_in(folder, dtype=None, **CASES[case])
    straight, first, second = (trainer_of(run, seed=seed) for seed in (3, 3, 8))
    losses = [done.loss for done in train(straight, run, 0, 6)]
    train(first, run, 0, 3)
    second.restore(first.state())
    assert [done.loss for done in train(second, run, 3, 6)] == losses[3:]
    assert bits(second.state()) == bits(straight.state()) != bits(first.state())
    assert {matrix.dtype.name for part in (straight.state().adapter, straight.state().m) for matrix in part.values()} == {"float32"}
