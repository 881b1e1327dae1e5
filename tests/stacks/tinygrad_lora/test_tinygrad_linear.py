"""Products by panels: exact integers, sizes that fit no panel, blocks of a long inner length, and what takes the plain product."""

from __future__ import annotations

import numpy as np
import pytest
from tinygrad import Tensor, dtypes

from stacks.tinygrad_lora import linear
from stacks.tinygrad_lora.host import to_device, to_host

pytestmark = pytest.mark.usefixtures("cpu")

CASES = (("float64", (18, 683, 25)), ("float32", (16, 4100, 5)))
"""M, K, N: no N is a multiple of a panel's width, and the longer K ends inside a block."""


def integers(dtype: str, *shape: int, seed: int) -> np.ndarray:
    """Odd integers of 12 bits; with factors of +-1 every partial sum of a few thousand is one of float32."""
    return (2 * np.random.default_rng(seed).integers(-1024, 1024, shape) + 1).astype(dtype)


def signs(dtype: str, *shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 1.0], shape).astype(dtype)


@pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
def test_panels_are_exact(dtype: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    M, K, N = shape
    a, b, bar = integers(dtype, M, K, seed=1), signs(dtype, K, N, seed=2), signs(dtype, M, N, seed=3)
    asked: list[tuple[int, ...]] = []
    right = linear._product

    def watched(a: Tensor, b: Tensor) -> Tensor:
        asked.append((*a.shape, *b.shape))
        return right(a, b)

    monkeypatch.setattr(linear, "_product", watched)
    a_MK, b_KN, bar_MN = (Tensor(array).realize() for array in (a, b, bar))
    y_MN = linear.matmul(a_MK, b_KN)
    da_MK, db_KN = y_MN.gradient(a_MK, b_KN, gradient=bar_MN)
    np.testing.assert_array_equal(y_MN.numpy(), a @ b)
    np.testing.assert_array_equal(da_MK.numpy(), bar @ b.T)
    np.testing.assert_array_equal(db_KN.numpy(), a.T @ bar)
    assert asked[0] == (M, K, K, N)


def test_a_bfloat16_product_is_rounded_once() -> None:
    """Products of bfloat16 are exact in float32; the bias goes into the sum before the rounding."""
    generator = np.random.default_rng(4)
    x, weight, bias = (to_device(generator.standard_normal(shape).astype("bfloat16"), "CPU") for shape in ((2, 8, 40), (430, 40), (430,)))
    exact = to_host(x).astype(np.float64) @ to_host(weight).astype(np.float64).T + to_host(bias).astype(np.float64)
    y = linear.linear(x, weight, bias)
    assert y.dtype == dtypes.bfloat16
    apart = np.abs(to_host(y).astype(np.float64) - exact)
    # half a unit of bfloat16's last place, and 41 float32 roundings of sums no larger than the sum of magnitudes
    half_unit = 2.0 ** (np.frexp(exact)[1] - 9)
    sizes = [np.abs(to_host(one).astype(np.float64)) for one in (x, weight, bias)]
    magnitude = sizes[0] @ sizes[1].T + sizes[2]
    assert (apart <= half_unit + 42 * 2.0**-24 * magnitude).all()


def test_slices_round_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What devices other than the CPU take: the product and its gradient with respect to x, in three slices, and the bias."""
    monkeypatch.setattr(linear, "_on_cpu", lambda x: False)
    generator = np.random.default_rng(5)
    shapes = {"x": (2, 3, 40), "weight": (48, 40), "bias": (48,), "bar": (2, 3, 48)}
    given = {name: to_device(generator.standard_normal(shape).astype("bfloat16"), "CPU").realize() for name, shape in shapes.items()}
    x, weight, bias, bar = (to_host(one).astype(np.float64) for one in given.values())
    y = linear.frozen_linear(given["x"], given["weight"], given["bias"])
    (gradient,) = y.gradient(given["x"], gradient=given["bar"])
    sizes = {"y": np.abs(x) @ np.abs(weight).T + np.abs(bias), "gradient": np.abs(bar) @ np.abs(weight)}
    for found, exact, size in ((y, x @ weight.T + bias, sizes["y"]), (gradient, bar @ weight, sizes["gradient"])):
        assert found.dtype == dtypes.bfloat16
        # as above; no sum has more than 49 terms
        half_unit = 2.0 ** (np.frexp(exact)[1] - 9)
        assert (np.abs(to_host(found).astype(np.float64) - exact) <= half_unit + 50 * 2.0**-24 * size).all()


@pytest.mark.parametrize(("rows", "columns", "panels"), [(15, 2000, False), (16, 2000, True), (16, 100, False)])
def test_few_rows_and_small_factors_take_the_plain_product(rows: int, columns: int, panels: bool) -> None:
    assert linear._panelled(Tensor.empty(rows, 30), Tensor.empty(30, columns)) is panels


def test_only_the_cpu_has_panels() -> None:
    assert not linear._panelled(Tensor.empty(512, 512, device="CUDA"), Tensor.empty(512, 512, device="CUDA"))
