"""tinygrad: sin and cos in float64 lose accuracy with the angle: 1.5e-8 at 60, 1.9e-6 at 8,192, 2.4e-4 at 1,000,000.

Expected: 1e-15 everywhere, as NumPy's. The reduction of the angle is made for float32. RoPE's angles reach the longest position.

Needs tinygrad, NumPy and a C compiler (clang). Exit 1: the defect shows; 0: it doesn't.
"""

import os
import sys
from importlib.metadata import version

import numpy as np

os.environ.setdefault("DEV", "CPU")
from tinygrad import Tensor


def main() -> int:
    print(f"tinygrad {version('tinygrad')}, DEV={os.environ['DEV']}")
    errors = []
    for largest in (25, 60, 8_192, 1_000_000):
        x = np.random.default_rng(0).uniform(0, largest, 100_000)
        errors.append(float(np.abs(Tensor(x).sin().numpy() - np.sin(x)).max()))
    print("expected: at most 1e-14 for angles up to 25, 60, 8,192 and 1,000,000")
    print(f"measured: {', '.join(f'{error:.1e}' for error in errors)}")
    return int(max(errors) > 1e-14)


if __name__ == "__main__":
    sys.exit(main())
