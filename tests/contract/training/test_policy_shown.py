"""The request `policy`: what it shows is what a run takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.data import dropout, sampling
from contract.training import policy
from contract.training.policy import RAGGED
from tests.contract.training import toy_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run.make(tmp_path_factory.mktemp("policy"))


def test_a_run_is_shown_as_it_is_taken(folder: Path) -> None:
    run, reply = toy_run.run_of(folder), policy.answer("run", contract=toy_run.contract_of(folder).model_dump(mode="json"))
    steps = [*run.steps.steps()]
    batches = [batch for step in steps for batch in step.batches]
    assert reply.values == {"steps": toy_run.STEPS, "rows": run.rows.index.kept}
    np.testing.assert_array_equal(reply.tensors["learning_rates"], run.learning_rates)
    assert {name for name in reply.tensors if name.startswith("initial.")} == {f"initial.{name}" for name in run.initial}
    assert all(reply.tensors[f"initial.{name}"].tobytes() == matrix.tobytes() for name, matrix in run.initial.items())
    told = [(step.number, step.epoch, step.tokens, len(step.batches)) for step in steps]
    assert reply.tensors["steps"].tolist() == [list(one) for one in told]
    assert reply.tensors["shapes"].tolist() == [list(batch.ids_BT.shape) for batch in batches]
    for name, field in RAGGED.items():
        np.testing.assert_array_equal(reply.tensors[name], np.concatenate([getattr(batch, field).reshape(-1) for batch in batches]))
    np.testing.assert_array_equal(reply.tensors["lengths"], np.concatenate([batch.lengths_B for batch in batches]))
    held_back = [sample for step in run.validation.steps() for batch in step.batches for row in batch.samples for sample in row]
    shown = reply.tensors["validation.samples"]
    assert sorted(set(shown[shown >= 0].tolist())) == sorted(set(held_back))


def test_a_part_of_a_run_is_shown_from_a_step_on(folder: Path) -> None:
    contract = toy_run.contract_of(folder).model_dump(mode="json")
    some = policy.answer("run", contract=contract, start=2, count=1).tensors
    assert some["steps"][:, 0].tolist() == [2]
    nothing = policy.answer("run", contract=contract, count=0).tensors
    assert {nothing[name].size for name in (*RAGGED, "steps", "shapes", "skipped", "lengths")} == {0}
    assert len(nothing["learning_rates"]) == toy_run.STEPS


def test_masks_and_draws_are_the_contracts() -> None:
    tokens = {"samples": np.array([[3], [5]]), "positions": np.array([[0, 1]])}
    site = {"seed": 1, "step": 2, "layer": 0, "site": "q_proj", "width": 6, "probability": 0.4}
    kept = policy.answer("masks", **site, tensors=tokens).tensors["kept"]
    np.testing.assert_array_equal(kept, dropout.mask(**site, **tokens))
    drawn = {"sequences": np.array([4]), "positions": np.array([7])}
    assert policy.answer("draws", seed=9, tensors=drawn).tensors["u"] == sampling.uniform(seed=9, **drawn)


def test_there_is_no_other_part() -> None:
    with pytest.raises(ValueError, match="no part 'rows' of the policy; allowed: run, masks, draws"):
        policy.answer("rows")
