"""tinygrad: the C renderer drops the parentheses of x + (y + z) and of x * (y * z), which C then evaluates from the left.

Expected: the order that was written: floating-point sums are not associative, and compensated sums and ranges reduced in two parts
depend on it. renderer/cstyle.py strips the parentheses of an operand that is the same associative operation.

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
    x, y, z = np.random.default_rng(0).standard_normal((3, 100_000)).astype(np.float32)
    x *= np.float32(1e-4)
    got = (Tensor(x) + (Tensor(y) + Tensor(z))).numpy()
    right, left = np.mean(got == x + (y + z)), np.mean(got == (x + y) + z)
    print("expected: 100 % equal x + (y + z), float32")
    print(f"measured: {100 * right:.0f} % equal it; {100 * left:.0f} % equal (x + y) + z")
    return int(right < 1)


if __name__ == "__main__":
    sys.exit(main())
