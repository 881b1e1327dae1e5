"""What the checks of clipping and AdamW draw."""

from __future__ import annotations

import numpy as np

from parity.checks import optimizer
from parity.reference.clip_gradients import SMALL
from tests.parity.checks.test_strategies import drawn_cases

CLIP, STEP, EXACT = optimizer.CHECKS


def test_clips_that_bind_and_clips_that_do_not() -> None:
    binds, barely, spread = [], 0, []
    for case in drawn_cases(CLIP, 100):
        exact = np.sqrt(sum(np.sum(case.inputs["float64"][name] ** 2) for name in ("a", "b")))
        barely += bool(exact < case.attrs["max_norm"] < exact + SMALL)
        a, b = (case.inputs["float32"][name].astype(np.float64) for name in ("a", "b"))
        norm = np.sqrt(np.sum(a * a) + np.sum(b * b))
        assert np.isfinite(np.float32(norm * norm))
        binds.append(bool(norm > case.attrs["max_norm"]))
        if a.any() and b.any():
            spread.append(np.linalg.norm(b) / np.linalg.norm(a))
        case32, case64 = (case.inputs[dtype]["b"] for dtype in ("float32", "float64"))
        assert case32.dtype == np.float32
        assert case64.dtype == np.float64
    assert 20 < sum(binds) < 80
    assert barely > 5, "a clip by the 1e-6 in the divisor alone: `if norm > max_norm` leaves it out"
    assert min(spread) < 1e-3
    assert max(spread) > 1e3


def test_every_setting_of_adamw_is_drawn_and_none_equals_another() -> None:
    cases = drawn_cases(STEP, 150)
    for name, count in (("lr", 2), ("beta1", 2), ("beta2", 2), ("eps", 2), ("weight_decay", 2)):
        assert len({case.attrs[name] for case in cases}) == count
    assert {int(case.inputs["float32"]["step"]) for case in cases} == {0, 1, 1000, 100_000}
    assert all(len(set(case.attrs.values())) == 5 for case in cases)
    assert any(
        case.attrs["lr"] == 0.5 and case.attrs["eps"] == 1e-2 and case.attrs["weight_decay"] and case.inputs["float32"]["weight"].any()
        for case in cases
    )


def test_gradients_and_moments_go_to_the_edges_of_the_domain() -> None:
    gradients, fresh = [], 0
    for case in drawn_cases(STEP, 150):
        for dtype in ("float32", "float64"):
            g, v = (case.inputs[dtype][name] for name in ("gradient", "v"))
            assert np.all(v >= 0)
            assert np.isfinite(g * g).all()
            assert np.isfinite(v / case.inputs[dtype]["weight"].dtype.type(1 - case.attrs["beta2"])).all()
        gradients.append(float(np.abs(case.inputs["float32"]["gradient"]).max()))
        fresh += not (case.inputs["float32"]["m"].any() or case.inputs["float32"]["v"].any() or case.inputs["float32"]["gradient"].any())
    assert min(gradients) == 0
    assert min(size for size in gradients if size) < 1e-28
    assert max(gradients) > 1e14
    assert fresh > 0, "nothing to do"


def test_integers_make_every_order_of_the_moments_exact() -> None:
    for case in drawn_cases(EXACT, 20):
        for dtype, most in (("float32", 2.0**24), ("float64", 2.0**53)):
            g, m, v = (case.inputs[dtype][name].astype(np.float64) for name in ("gradient", "m", "v"))
            assert np.all(np.abs(g) % 2 == 1)
            assert np.all(np.abs(m) % 2 == 1)
            assert (g * g + v).max() < most
            assert np.all((g * g + v) % 2 == 0)
