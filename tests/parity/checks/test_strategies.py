"""What is drawn: hard enough to see a bug, and as declared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from parity.checks import products, registry, strategies
from parity.checks.check import Case, Check

SHAPE = (6, 257)
RNG_SEED = 4
WITH_INFINITIES = {"a.softmax", "a.softmax_exact", "a.cross_entropy_masked"}
"""Checks whose cases may hold logits of -inf; those that end in _special hold what else is special."""


def values(kind: str) -> np.ndarray:
    return strategies.VALUES[kind](np.random.default_rng(RNG_SEED), SHAPE)


@pytest.mark.parametrize("kind", strategies.VALUES)
def test_values_are_finite_also_as_float32_and_not_all_zero(kind: str) -> None:
    drawn = values(kind).astype(np.float32)
    assert drawn.shape == SHAPE
    assert np.isfinite(drawn).all()
    assert drawn.any()


def test_each_kind_is_what_it_says() -> None:
    assert np.all(values("small integers") == np.round(values("small integers")))
    assert np.all(values("positive") > 0)
    assert len(np.unique(values("all equal"))) == 1
    wide = np.abs(values("wide range"))
    assert wide.max() / wide.min() > 1e9
    tiny = values("subnormal products").astype(np.float32)
    product = np.abs(tiny[0] * tiny[1])
    assert np.mean((product > 0) & (product < np.finfo(np.float32).smallest_normal)) > 0.9
    pairs = values("cancelling")[:, :256].reshape(6, 128, 2)
    assert np.all(np.abs(pairs.sum(axis=2)) < 1e-3 * np.abs(pairs).sum(axis=2))


@given(seed=strategies.SEEDS, bits=st.sampled_from((13, 42)))
def test_odd_integers_need_every_bit(seed: int, bits: int) -> None:
    drawn = strategies.odd_integers(np.random.default_rng(seed), (50,), bits)
    assert np.all(np.abs(drawn) % 2 == 1)
    assert np.abs(drawn).max() < 2**bits
    assert np.all(drawn == np.round(drawn))


def test_sums_of_odd_integers_stay_exact() -> None:
    longest = products.MOST_TERMS + 1  # and a bias
    assert longest * 2 ** products.EXACT_BITS["float32"] <= 2**24
    assert longest * 2 ** products.EXACT_BITS["float64"] <= 2**53


def test_signs_are_signs() -> None:
    assert set(strategies.signs(np.random.default_rng(0), (100,))) == {-1.0, 1.0}


def test_float64_cases_have_mantissas_that_float32_lacks() -> None:
    drawn = strategies.by_dtype({"x": values("gaussian")})
    assert drawn["float32"]["x"].dtype == np.float32
    np.testing.assert_array_equal(drawn["float64"]["x"].astype(np.float32), drawn["float32"]["x"])
    assert np.mean(drawn["float64"]["x"] != drawn["float32"]["x"]) > 0.9


def test_shapes_tell_their_dimensions_apart() -> None:
    assert any(len(set(shape)) == 3 for shape in products.SHAPES)
    assert any(len(set(shape)) == 1 and shape[0] > 1 for shape in products.SHAPES), "square, where a transposed weight fits"
    assert any(shape[1] % 8 for shape in products.SHAPES)
    assert max(shape[1] for shape in products.SHAPES) >= 1024


def drawn_cases(check: Check, count: int) -> list[Case]:
    cases: list[Case] = []

    @settings(max_examples=count, database=None, derandomize=True, deadline=None)
    @given(check.cases)
    def collect(case: Case) -> None:
        cases.append(case)

    collect()
    return cases


@pytest.mark.parametrize("check", [check for check in registry.CHECKS if check.operations], ids=lambda check: check.id)
def test_a_case_can_be_made_again_from_its_draw_and_asks_sound_requests(check: Check) -> None:
    from contract.worker.operation import expected_answer
    from contract.worker.operations import OPERATIONS

    for case in drawn_cases(check, 5):
        assert case.name
        for plan in check.plans:
            for request in plan.requests(case):
                assert expected_answer(OPERATIONS[request.op], request.attrs, request.tensors)
                assert request.attrs.get("dtype", "float32") == plan.dtype
                finite = all(np.isfinite(array).all() for array in request.tensors.values() if array.dtype.kind == "f")
                assert finite or check.id.endswith("_special") or check.id in WITH_INFINITIES
                assert [r.key() for r in plan.requests(case)] == [r.key() for r in plan.requests(case)]
                for name, narrow in request.narrow.items():
                    np.testing.assert_array_equal(narrow.astype(request.tensors[name].dtype), request.tensors[name])


@pytest.mark.parametrize("op", ["matmul", "linear"])
def test_every_operand_takes_the_role_of_the_odd_integers(op: str) -> None:
    check = next(check for check in products.CHECKS if check.id == f"a.{op}_exact")
    roles = {case.name.split("odd integers in ")[1].split(",")[0] for case in drawn_cases(check, 150)}
    assert roles == set(products.SHAPES_OF[op]((1, 1, 1)))


def test_failures_shrink_to_small_shapes_and_simple_values() -> None:
    check = next(check for check in products.CHECKS if check.id == "a.matmul")
    case = find(check.cases, lambda case: case.inputs["float32"]["a"].shape[1] > 1, settings=settings(database=None, derandomize=True))
    assert case.inputs["float32"]["a"].shape == (2, 3)
    assert "'a': 'small integers'" in case.name


def test_a_reference_is_made_once_a_case() -> None:
    case = Case(name="one", inputs={})
    made: list[int] = []
    for _ in range(3):
        assert case.once("x", lambda: made.append(1) or "value") == "value"
    assert made == [1]
