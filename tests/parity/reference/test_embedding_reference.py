"""The reference of the embedding against a loop and against autograd."""

from __future__ import annotations

import numpy as np
import torch

from parity.reference.embedding import embedding
from parity.reference.running_error import REFERENCE

RNG = np.random.default_rng(1)
TENSORS = {
    "weight": RNG.standard_normal((6, 4)),
    "ids": np.array([5, 0, 2, 0, 5, 0, 1]),
    "y_bar": RNG.standard_normal((7, 4)),
}


def test_rows_are_copied_and_places_added_up() -> None:
    got = embedding(TENSORS, {}, REFERENCE)
    gradient = np.zeros((6, 4))
    for place, token in enumerate(TENSORS["ids"]):
        np.testing.assert_array_equal(got["y"].value[place], TENSORS["weight"][token])
        gradient[token] += TENSORS["y_bar"][place]
    assert np.all(np.abs(got["weight_grad"].value - gradient) <= 2 * got["weight_grad"].error)
    assert got["weight_grad"].value[[0, 1, 2, 5]].all()
    assert not got["weight_grad"].value[[3, 4]].any()


def test_autograd() -> None:
    weight = torch.tensor(TENSORS["weight"], requires_grad=True)
    y = torch.nn.functional.embedding(torch.tensor(TENSORS["ids"]), weight)
    (gradient,) = torch.autograd.grad(y, weight, torch.tensor(TENSORS["y_bar"]))
    got = embedding(TENSORS, {}, REFERENCE)["weight_grad"]
    assert np.all(np.abs(got.value - gradient.numpy()) <= 2 * got.error)


def test_without_a_cotangent_there_is_no_gradient() -> None:
    assert set(embedding({name: TENSORS[name] for name in ("weight", "ids")}, {}, REFERENCE)) == {"y"}
