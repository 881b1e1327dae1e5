"""tinygrad: x - x is 0, x / x is 1 and x * 0 is 0 for NaN and infinities too, so that a NaN disappears.

Expected: NaN in each (IEEE 754). A value that went wrong earlier is reported as a right one.

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
    x = Tensor(np.array([np.nan, np.inf, -np.inf], dtype=np.float32))
    results = {"x - x": (x - x).numpy(), "x / x": (x / x).numpy(), "x * 0": (x * 0).numpy()}
    print("expected: NaN for x of NaN, inf, -inf")
    print(f"measured: {'; '.join(f'{name} {values.tolist()}' for name, values in results.items())}")
    return int(any(not np.isnan(values).all() for values in results.values()))


if __name__ == "__main__":
    sys.exit(main())
