"""tinygrad: erf is an approximation of 1.4e-7, in float64 too, and has no relative accuracy near 0.

Expected: float64's own 1e-16, and erf(x) = 2 x / sqrt(pi) for small x. It is Abramowitz & Stegun 7.1.26, made for seven digits, and
9 % off at 1e-8.

Needs tinygrad, NumPy and a C compiler (clang). Exit 1: the defect shows; 0: it doesn't.
"""

import math
import os
import sys
from importlib.metadata import version

import numpy as np

os.environ.setdefault("DEV", "CPU")
from tinygrad import Tensor


def main() -> int:
    print(f"tinygrad {version('tinygrad')}, DEV={os.environ['DEV']}")
    x = np.linspace(-6, 6, 20_001)
    error = float(np.abs(Tensor(x).erf().numpy() - np.array([math.erf(one) for one in x])).max())
    small = np.full(1, 1e-8)
    relative = float(Tensor(small).erf().numpy()[0] / math.erf(1e-8) - 1)
    print("expected: at most 1e-15 absolute, and 1e-15 relative at x = 1e-8")
    print(f"measured: {error:.1e} absolute; {relative:.0e} relative at 1e-8")
    return int(error > 1e-15)


if __name__ == "__main__":
    sys.exit(main())
