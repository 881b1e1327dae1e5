"""Softmax and causal grouped attention with window and padding, one head and one row at a time in extended precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stacks.torch_qlora.attention import causal_softmax, grouped
from tests.stacks.torch_qlora.tiny_torch_graph import draw, gamma
from tests.stacks.torch_qlora.torch_compute import DTYPES, assert_rounded, computed, drawn, wide

B, H, K, T, E = 2, 6, 2, 7, 10
PADDED = np.array([[False, False, True, True, True, True, True], [True, True, True, True, True, False, False]])
"""The first two rows of sequence 0 see no token at all."""


def _tensors(dtype: str) -> dict[str, np.ndarray]:
    shapes = {"q": (B, H, T, E), "k": (B, K, T, E), "v": (B, K, T, E), "context_bar": (B, H, T, E)}
    return {name: drawn(seed, *shape, dtype=dtype) for seed, (name, shape) in enumerate(shapes.items())}


def _seen(window: int | None, valid: np.ndarray | None) -> np.ndarray:
    """[B, T, S], written token by token."""
    seen = np.zeros((B, T, T), bool)
    for b in range(B):
        for t in range(T):
            for s in range(t + 1):
                seen[b, t, s] = (valid is None or valid[b, s]) and (window is None or t - s < window)
    return seen


def _exact(given: dict[str, np.ndarray], seen: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs and gradients, and their sizes: the same with absolute values."""
    q, k, v, bar = (wide(given[name]) for name in ("q", "k", "v", "context_bar"))
    exact = {name: np.zeros(array.shape, np.longdouble) for name, array in (("context", q), ("q_grad", q), ("k_grad", k), ("v_grad", v))}
    size = {name: np.zeros_like(array) for name, array in exact.items()}
    root = np.sqrt(np.longdouble(E))
    for b in range(B):
        for h in range(H):
            kv = h // (H // K)
            for t in range(T):
                s = np.flatnonzero(seen[b, t])
                if len(s) == 0:
                    continue
                scores = k[b, kv, s] @ q[b, h, t] / root
                reach = 1 + (np.abs(k[b, kv, s]) @ np.abs(q[b, h, t]) / root).max()
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                shares = v[b, kv, s] @ bar[b, h, t]
                inner, of_inner = weights * (shares - weights @ shares), weights * (np.abs(v[b, kv, s]) @ np.abs(bar[b, h, t])).max() * 2
                exact["context"][b, h, t] = weights @ v[b, kv, s]
                size["context"][b, h, t] = reach * weights @ np.abs(v[b, kv, s])
                exact["q_grad"][b, h, t] = inner @ k[b, kv, s] / root
                size["q_grad"][b, h, t] = reach * of_inner @ np.abs(k[b, kv, s]) / root
                exact["k_grad"][b, kv, s] += np.outer(inner, q[b, h, t]) / root
                size["k_grad"][b, kv, s] += reach * np.outer(of_inner, np.abs(q[b, h, t])) / root
                exact["v_grad"][b, kv, s] += np.outer(weights, bar[b, h, t])
                size["v_grad"][b, kv, s] += reach * np.outer(weights, np.abs(bar[b, h, t]))
    return exact, size


@pytest.mark.parametrize("valid", [None, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("window", [None, 1, 3, T])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_and_its_gradients_are_the_formula(dtype: str, window: int | None, valid: np.ndarray | None) -> None:
    given = _tensors(dtype)
    got = computed("attention", {"window": window}, given | ({} if valid is None else {"valid": valid}), dtype)
    exact, size = _exact(given, _seen(window, valid))
    for name, array in got.items():
        if window == 1 and name in ("q_grad", "k_grad"):  # one weight, and that is 1 whatever the scores
            assert not exact[name].any()
            assert np.all(np.abs(array) <= gamma(4 * (E + T), dtype) * size[name])
        else:
            assert_rounded(array, exact[name], size[name], 4 * (E + T), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_sees_nothing_is_zero_and_passes_nothing_back(dtype: str) -> None:
    """Its queries, and the keys and values of padding, may hold anything finite."""
    given = _tensors(dtype)
    given["q"][0, :, :2] = 1e30
    for name in ("k", "v"):
        given[name][0, :, :2] = -1e30
    got = computed("attention", {"window": None}, given | {"valid": PADDED}, dtype)
    assert not got["context"][0, :, :2].any()
    assert not got["q_grad"][0, :, :2].any()
    assert all(not got[name][0, :, :2].any() and not got[name][1, :, 5:].any() for name in ("k_grad", "v_grad"))
    assert all(np.isfinite(array).all() for array in got.values())


def test_what_is_hidden_has_a_weight_of_zero_and_changes_nothing() -> None:
    scores, hidden = draw(B, H, T, T) * 50, ~_seen(3, PADDED)
    spoilt = scores + torch.from_numpy(np.where(hidden, 1000.0, 0.0))[:, None]
    weights = causal_softmax(scores, window=3, valid_BT=torch.from_numpy(PADDED))
    assert not weights.numpy()[np.broadcast_to(hidden[:, None], weights.shape)].any()
    assert torch.equal(weights, causal_softmax(spoilt, window=3, valid_BT=torch.from_numpy(PADDED)))
    sums = weights.sum(-1)
    seeing = torch.from_numpy(~hidden.all(-1))[:, None].expand_as(sums)
    assert bool(((sums[seeing] - 1).abs() <= gamma(2 * T, "float64")).all())


def test_a_window_of_the_whole_length_and_padding_of_nothing_change_no_bit() -> None:
    scores = draw(B, H, T, T)
    plain = causal_softmax(scores)
    assert torch.equal(plain, causal_softmax(scores, window=T))
    assert torch.equal(plain, causal_softmax(scores, valid_BT=torch.ones(B, T, dtype=torch.bool)))
    assert not torch.equal(plain, causal_softmax(scores, window=T - 1))


def test_query_heads_share_key_heads_in_groups_of_neighbours() -> None:
    q, k = draw(2, 6, T, E), draw(2, 2, E, T, seed=4)
    got = grouped(q, k)
    for head in range(6):
        exact = np.einsum("bte,bes->bts", wide(q[:, head].numpy()), wide(k[:, head // 3].numpy()))
        bound = gamma(E, "float64") * torch.matmul(q[:, head].abs(), k[:, head // 3].abs()).numpy()
        assert np.all(np.abs(got[:, head].numpy() - exact) <= bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_and_its_gradient_are_the_formula(dtype: str) -> None:
    given = {"x": 10 * drawn(0, T, 33, dtype=dtype), "y_bar": drawn(1, T, 33, dtype=dtype)}
    given["x"] = given["x"].astype(dtype).astype(np.float64)
    got = computed("softmax", {}, given, dtype)
    x, bar = wide(given["x"]), wide(given["y_bar"])
    y = np.exp(x - x.max(-1, keepdims=True))
    y /= y.sum(-1, keepdims=True)
    steps = 2 * 33 + 10 + int(np.ceil(np.ptp(x, axis=-1).max()))  # x - max is rounded once, and counts by its size
    assert_rounded(got["y"], y, y, steps, dtype)
    gradient = y * (bar - (y * bar).sum(-1, keepdims=True))
    assert_rounded(got["x_grad"], gradient, 2 * y * (np.abs(bar) + (y * np.abs(bar)).sum(-1, keepdims=True)), steps, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_of_an_infinitely_small_logit_is_zero_and_huge_logits_do_not_overflow(dtype: str) -> None:
    x = np.array([[0.0, -np.inf, 0.0], [1e4, 1e4, -1e4], [-np.inf, 5.0, -np.inf]])
    got = computed("softmax", {}, {"x": x, "y_bar": drawn(1, 3, 3)}, dtype)
    np.testing.assert_array_equal(got["y"], np.array([[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 1, 0]]).astype(dtype))
    assert not got["x_grad"][np.isinf(x)].any()
    assert np.isfinite(got["x_grad"]).all()


@pytest.mark.parametrize("window", [0, -1, 2.0, True, "3"])
def test_a_window_that_is_no_count_is_refused(window: object) -> None:
    with pytest.raises(ValueError, match=r"attention: window is .*; allowed: an integer of at least 1"):
        computed("attention", {"window": window}, {name: _tensors("float32")[name] for name in ("q", "k", "v")}, "float32")
