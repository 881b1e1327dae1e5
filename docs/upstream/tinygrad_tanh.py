"""tinygrad: tanh has no relative accuracy near 0: it is 2 sigmoid(2 x) - 1, which cancels.

Expected: within some ulp of x for small x. In float32 it is up to 14 % off near 1e-6; in float64 3e-4 near 1e-12.

Needs tinygrad, NumPy and a C compiler (clang). Exit 1: the defect shows; 0: it doesn't.
"""

import os
import sys
from importlib.metadata import version

import numpy as np

os.environ.setdefault("DEV", "CPU")
from tinygrad import Tensor


def worst(x: np.ndarray) -> float:
    """The largest relative error."""
    return float(np.abs(Tensor(x).tanh().numpy() / np.tanh(x.astype(np.float64)) - 1).max())


def main() -> int:
    print(f"tinygrad {version('tinygrad')}, DEV={os.environ['DEV']}")
    single = worst(np.linspace(5e-7, 2e-6, 10_001, dtype=np.float32))
    double = worst(np.linspace(5e-13, 2e-12, 10_001))
    print("expected: at most 1e-6 relative for x in [5e-7, 2e-6], float32; at most 1e-15 for x in [5e-13, 2e-12], float64")
    print(f"measured: {single:.1g} float32; {double:.0e} float64")
    return int(single > 1e-6 or double > 1e-15)


if __name__ == "__main__":
    sys.exit(main())
