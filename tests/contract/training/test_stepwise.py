"""A training session: steps from any state, on the toy stack's trainer."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.data.steps import Step
from contract.errors import ContractError
from contract.run.spec import FineTuneContract
from contract.training.inputs import Run, prepare
from contract.training.loop import drive
from contract.training.stepwise import DONE, Stepwise, digest_of
from contract.training.trainer import StepDone, TrainerState
from tests.contract.training import toy_run
from tests.contract.training.toy_stack import ToyTrainer


class Silent:
    cancelled = False

    def progress(self, **values: Any) -> None:
        """Tells nobody."""


class Wide(ToyTrainer):
    """The toy, which computes in float32, as a float64 session sees it."""

    def state(self) -> TrainerState:
        found = super().state()
        adapter, m, v = ({name: it.astype(np.float64) for name, it in part.items()} for part in (found.adapter, found.m, found.v))
        return TrainerState(adapter=adapter, m=m, v=v, updates=found.updates)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run.make(tmp_path_factory.mktemp("stepwise"))


def opened(folder: Path, *, spoilt: str = "CPU", dtype: Any = None, trainer: type[ToyTrainer] = ToyTrainer, **changed: Any) -> Stepwise:
    stepwise = Stepwise(lambda run: trainer(run, spoilt=spoilt))
    answer = stepwise.open("it", toy_run.contract_of(folder, **changed).model_dump(mode="json"), dtype)
    assert answer.values == {"steps": toy_run.STEPS}
    return stepwise


def test_all_steps_of_a_session_are_the_run_that_a_user_has(folder: Path, tmp_path: Path) -> None:
    run = toy_run.run_of(folder)
    trainer = ToyTrainer(run)
    assert drive(run, trainer, Silent(), tmp_path, stack="toy", packages={"numpy": "2"}).end == "done"
    session, samples = opened(folder), []
    for number, (step, rate) in enumerate(zip(run.steps.steps(), run.learning_rates, strict=True)):
        done = session.step("it", number).tensors
        assert {name: it.dtype.name for name, it in done.items()} == dict(DONE)
        assert float(done["learning_rate"]) == rate
        assert int(done["tokens"]) == step.tokens == done["batch_tokens"].sum()
        assert done["batch_tokens"].tolist() == [batch.tokens for batch in step.batches]
        samples += done["samples"].tolist()
    kept = run.rows.index.kept - len(list(run.validation.steps()))
    assert len(samples) == len(set(samples)) * run.contract.exec.epochs
    assert len(set(samples)) <= kept
    found, wanted = session.state("it").tensors, trainer.state()
    assert int(found["updates"]) == wanted.updates == toy_run.STEPS
    for part in ("adapter", "m", "v"):
        for name, matrix in getattr(wanted, part).items():
            assert found[f"{part}.{name}"].tobytes() == matrix.tobytes()


def test_a_digest_tells_what_a_trainer_made_of_its_batches(folder: Path) -> None:
    """Of every array and of the shape; taken after the step, so that a trainer that writes into its batch is seen."""

    class Writes(ToyTrainer):
        def step(self, step: Step, learning_rate: float) -> StepDone:
            done = super().step(step, learning_rate)
            step.batches[-1].labels_BT[0, -1] += 1
            return done

    right, wrong = (opened(folder, trainer=trainer).step("it", 1).tensors["batches"] for trainer in (ToyTrainer, Writes))
    assert right.dtype == np.uint8
    assert right.shape[1] == 32
    assert np.array_equal(right[:-1], wrong[:-1])
    assert not np.array_equal(right[-1], wrong[-1])
    batch = next(toy_run.run_of(folder).steps.steps(1)).batches[0]
    assert np.array_equal(digest_of(batch), right[0])
    for name, array in vars(batch).items():
        if name != "lengths_B":  # what they say, segments say
            assert not np.array_equal(digest_of(dataclasses.replace(batch, **{name: array + 1})), right[0]), name
    turned = dataclasses.replace(batch, **{name: array.reshape(1, -1) for name, array in vars(batch).items() if name != "lengths_B"})
    assert not np.array_equal(digest_of(turned), right[0])


def test_a_step_starts_from_the_state_that_is_given(folder: Path) -> None:
    session = opened(folder)
    initial = session.state("it").tensors
    first = session.step("it", 3).tensors
    after = session.state("it").tensors
    assert not all(np.array_equal(initial[name], it) for name, it in after.items())
    session.state("it", initial)
    assert all(np.array_equal(session.state("it").tensors[name], it) for name, it in initial.items())
    again = session.step("it", 3).tensors
    assert all(np.array_equal(first[name], it) for name, it in again.items())
    assert all(np.array_equal(session.state("it").tensors[name], it) for name, it in after.items())


def test_a_session_in_float64_has_a_plan_and_a_state_in_it(folder: Path) -> None:
    plans = []

    def make(run: Run) -> Wide:
        plans.append(run.plan.dtype)
        return Wide(run)

    session = Stepwise(make)
    for dtype in (None, "float64"):
        session.open("it", toy_run.contract_of(folder).model_dump(mode="json"), dtype)  # type: ignore[arg-type]
    assert plans == ["float32", "float64"]
    state = session.state("it").tensors
    session.state("it", state)
    narrow = {name: it.astype(np.float32) if it.dtype == np.float64 else it for name, it in state.items()}
    with pytest.raises(ValueError, match=r"adapter\.layers\.0\.\S+ is float32\[.*must be float64\["):
        session.state("it", narrow)


@pytest.mark.parametrize(("spoilt", "loss", "norm"), [("NAN3", math.nan, math.nan), ("INF3", math.nan, math.inf)])
def test_what_is_not_finite_is_answered_and_changes_nothing(folder: Path, spoilt: str, loss: float, norm: float) -> None:
    session = opened(folder, spoilt=spoilt)
    before = session.state("it").tensors
    done = session.step("it", 2).tensors
    assert np.array_equal([done["loss"], done["grad_norm"]], [loss, norm], equal_nan=True)
    assert all(np.array_equal(session.state("it").tensors[name], it) for name, it in before.items())


def test_what_is_asked_wrongly_is_refused(folder: Path) -> None:
    closed = Stepwise(ToyTrainer)
    with pytest.raises(ValueError, match="training session 'it' was asked of, and none is open; open 'it' first: train_open"):
        closed.state("it")
    session = opened(folder)
    state = session.state("it").tensors
    for what, said in (
        (lambda: session.step("other", 0), "'other' was asked of, and 'it' is open"),
        (lambda: session.step("it", toy_run.STEPS), "number is 15; allowed: 0 to 14"),
        (lambda: session.step("it", -1), "number is -1"),
        (lambda: session.state("it", {**state, "extra": state["updates"]}), "extra is int64.*; must be nothing"),
        (lambda: session.state("it", {name: it for name, it in state.items() if name != "updates"}), "updates is nothing; must be int64"),
        (lambda: session.state("it", {**state, "updates": np.array(-1)}), "updates is -1; allowed: 0 and more"),
        (lambda: session.open("it", {}, "float16"), "dtype is 'float16'; allowed: float64, or none"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=said):
            what()


@pytest.mark.parametrize(("name", "value"), [("packing", True), ("curriculum", "difficulty")])
def test_what_lies_beside_the_index_is_there_for_as_long_as_the_session(
    folder: Path, tmp_path: Path, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index's folder goes at once, so that a worker that is killed leaves none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = [
        json.loads(line) | {"difficulty": number * 7 % 10} for number, line in enumerate((folder / "rows.jsonl").read_text().splitlines())
    ]
    (folder / "graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = toy_run.fields(folder, data={"train_file": str(folder / "graded.jsonl")})
    fields["exec" if name == "packing" else "data"][name] = value
    session = Stepwise(ToyTrainer)
    steps = session.open("it", fields).values["steps"]
    assert list(tmp_path.iterdir()) == []
    run = prepare(FineTuneContract.model_validate(fields), cache=folder / "cache")
    samples = [[row for batch in step.batches for sequence in batch.samples for row in sequence] for step in run.steps.steps()]
    assert [session.step("it", number).tensors["samples"].tolist() for number in range(steps)] == samples


def test_a_session_that_could_not_be_opened_leaves_none(folder: Path) -> None:
    session = opened(folder)
    wrong = toy_run.contract_of(folder, data={"train_file": str(folder / "nowhere.jsonl")}).model_dump(mode="json")
    with pytest.raises(ContractError, match="nowhere"):
        session.open("it", wrong)
    with pytest.raises(ValueError, match="none is open"):
        session.state("it")


def test_an_8_bit_optimizer_has_no_float64(folder: Path) -> None:
    contract = toy_run.contract_of(folder, optimizer="adamw_8bit").model_dump(mode="json")
    with pytest.raises(ContractError, match=r"exec\.optimizer.*adamw"):
        Stepwise(ToyTrainer).open("it", contract, "float64")
