"""mlx: mx.fast's rms_norm, layer_norm, rope and scaled_dot_product_attention return float64 that was computed in float32.

Expected: float64's accuracy, or an error: the inputs are float64 on the CPU device, and so says the result's dtype.

Needs mlx and NumPy. Exit 1: the defect shows; 0: it doesn't.
"""

import sys
from importlib.metadata import version

import mlx.core as mx
import numpy as np


def errors() -> dict[str, float]:
    """Largest error of each relative to the largest value."""
    rng = np.random.default_rng(0)
    x, w, q, k, v = rng.standard_normal((4, 64)), rng.standard_normal(64), *rng.standard_normal((3, 1, 2, 5, 8))
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    angles = (1000 + np.arange(5))[:, None] * 10000.0 ** (-np.arange(4) / 4)
    first, second = q[..., :4], q[..., 4:]
    turned = (first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles))
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(8))
    with mx.stream(mx.cpu):
        tx, tw, tq, tk, tv = (mx.array(one, dtype=mx.float64) for one in (x, w, q, k, v))
        pairs = {
            "rms_norm": (mx.fast.rms_norm(tx, tw, 1e-6), x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-6) * w),
            "layer_norm": (mx.fast.layer_norm(tx, tw, tw, 1e-6), (x - mean) / np.sqrt(variance + 1e-6) * w + w),
            "rope": (mx.fast.rope(tq, 8, traditional=False, base=10000.0, scale=1.0, offset=1000), np.concatenate(turned, axis=-1)),
            "attention": (
                mx.fast.scaled_dot_product_attention(tq, tk, tv, scale=8**-0.5), scores / scores.sum(axis=-1, keepdims=True) @ v
            ),
        }  # fmt: skip
        assert all(got.dtype == mx.float64 for got, _ in pairs.values())
        return {name: float(np.abs(np.array(got) - exact).max() / np.abs(exact).max()) for name, (got, exact) in pairs.items()}


def main() -> int:
    print(f"mlx {version('mlx')}")
    found = errors()
    print("expected: at most 1e-13 relative, float64")
    print(f"measured: {', '.join(f'{name} {error:.0e}' for name, error in found.items())}")
    return int(max(found.values()) > 1e-13)


if __name__ == "__main__":
    sys.exit(main())
