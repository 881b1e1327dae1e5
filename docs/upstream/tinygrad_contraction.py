"""tinygrad on CPU: a * b + c is a fused multiply-add or not, as the compiler likes: clang contracts by default.

Expected: the same bits on every machine, or an option that says so (-ffp-contract=off). With -march=native the result of a kernel
depends on whether the processor has FMA, and on what was fused into one kernel.

Needs tinygrad, NumPy and a C compiler (clang). Exit 1: the defect shows; 0: it doesn't (no FMA).
"""

import os
import sys
from importlib.metadata import version

import numpy as np

os.environ.setdefault("DEV", "CPU")
from tinygrad import Tensor


def main() -> int:
    print(f"tinygrad {version('tinygrad')}, DEV={os.environ['DEV']}")
    a, b, c = np.random.default_rng(0).standard_normal((3, 100_000)).astype(np.float32)
    got = (Tensor(a) * Tensor(b) + Tensor(c)).numpy()
    differing = np.mean(got != a * b + c)
    print("expected: 0 % differ from two roundings, float32")
    print(f"measured: {100 * differing:.0f} % differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
