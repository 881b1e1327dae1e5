"""Softmax and attention of the tinygrad stack against their formulas in NumPy; masked rows are exactly zero."""

from __future__ import annotations

import numpy as np
import pytest

from contract.worker.process import RequestFailed, StackProcess
from tests.stacks.tinygrad_lora.tinygrad_worker import DTYPES, Arrays, ask, close, double, draw

# 1 < K < H, E no multiple of 4
B, H, K, T, E = 2, 6, 2, 5, 6
SHAPES = {"q": (B, H, T, E), "k": (B, K, T, E), "v": (B, K, T, E), "context_bar": (B, H, T, E)}
LEFT_AND_RIGHT = np.array([[False, False, True, True, True], [True, True, True, False, False]])


def softmax(x: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(x - np.where(np.isfinite(x), x, -np.inf).max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def reference(given: Arrays, window: int | None, valid: np.ndarray | None) -> dict[str, np.ndarray]:
    """One head, one token at a time, over what it sees alone."""
    answer = {"context": np.zeros(given["q"].shape), **{f"{name}_grad": np.zeros(given[name].shape) for name in "qkv"}}
    for b, h, t in np.ndindex(B, H, T):
        kept = [s for s in range(t + 1) if (window is None or t - s < window) and (valid is None or valid[b, s])]
        if not kept:
            continue
        q, k, v, bar = given["q"][b, h, t], given["k"][b, h // (H // K)][kept], given["v"][b, h // (H // K)][kept], given["context_bar"]
        weights = softmax(k @ q / np.sqrt(E))
        answer["context"][b, h, t] = weights @ v
        weights_bar = v @ bar[b, h, t]
        scores_bar = weights * (weights_bar - weights @ weights_bar) / np.sqrt(E)
        answer["q_grad"][b, h, t] = scores_bar @ k
        answer["k_grad"][b, h // (H // K), kept] += np.outer(scores_bar, q)
        answer["v_grad"][b, h // (H // K), kept] += np.outer(weights, bar[b, h, t])
    return answer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("valid", [None, LEFT_AND_RIGHT], ids=["whole", "padded"])
def test_attention(stack: StackProcess, dtype: str, valid: np.ndarray | None) -> None:
    tensors = draw(dtype, 7, **SHAPES)
    given = tensors | ({} if valid is None else {"valid": valid})
    for window in (None, 1, 3, T, T + 9):
        answer = ask(stack, "attention", given, window=window)
        for name, wanted in reference(double(tensors), window, valid).items():
            assert np.abs(wanted).max() > 0 or window == 1  # a softmax over one token has no derivative
            np.testing.assert_allclose(answer[name], wanted, rtol=0, atol=200 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_sees_nothing_is_exactly_zero(stack: StackProcess, dtype: str) -> None:
    tensors = draw(dtype, 8, **SHAPES)
    tensors["q"] *= 1e3
    answer = ask(stack, "attention", {**tensors, "valid": LEFT_AND_RIGHT}, window=2)
    # sequence 0 has two padding tokens on the left, sequence 1 two on the right: its last one sees padding alone
    for b, t in ((0, 0), (0, 1), (1, 4)):
        assert not answer["context"][b, :, t].any()
        assert not answer["q_grad"][b, :, t].any()
    for name in ("k_grad", "v_grad"):
        assert not answer[name].transpose(0, 2, 1, 3)[~LEFT_AND_RIGHT].any()
    assert all(np.isfinite(array).all() for array in answer.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_softmax(stack: StackProcess, dtype: str, shift: float) -> None:
    tensors = draw(dtype, 9, x=(6, 13), y_bar=(6, 13))
    tensors["x"] += np.dtype(dtype).type(shift)
    tensors["x"][1, 3:] = -np.inf
    answer, given = ask(stack, "softmax", tensors), double(tensors)
    y = softmax(given["x"])
    close(answer["y"], y, 64)
    close(answer["x_grad"], y * (given["y_bar"] - (y * given["y_bar"]).sum(axis=1, keepdims=True)), 64)
    assert not answer["y"][1, 3:].any()
    assert not answer["x_grad"][1, 3:].any()


@pytest.mark.parametrize(
    ("shapes", "window", "message"),
    [
        (SHAPES, 0, "window is 0; allowed: an integer of at least 1, or null"),
        (SHAPES, 2.0, r"window is 2\.0; allowed"),
        ({**SHAPES, "k": (B, 4, T, E), "v": (B, 4, T, E)}, None, "q has 6 heads, k and v have 4"),
    ],
)
def test_what_is_refused(stack: StackProcess, shapes: dict[str, tuple[int, ...]], window: object, message: str) -> None:
    with pytest.raises(RequestFailed, match=message) as caught:
        ask(stack, "attention", draw("float32", 1, **shapes), window=window)
    assert caught.value.error_class == "ValueError"
