"""tinygrad: floats are simplified as if they were exact: results differ from what was written, some by 100 %.

Expected: each operation rounds once, as written. uop/symbolic.py and codegen/decomp/op.py rewrite

    x / (1 + x)          to  1 - 1 / (1 + x)       all digits are lost for small x
    (x + c) - c          to  x                     the classic way to round to a multiple
    x * c0 + x * c1      to  x * (c0 + c1)         a constant in two parts is one again
    w * (1 / a)          to  w / a                 another last bit: another NF4 code next to a midpoint

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
    one = np.float32
    x, a = np.random.default_rng(0).standard_normal((2, 100_000)).astype(one)
    small = np.abs(x) * one(1e-9)
    t, t_small = Tensor(x), Tensor(small)
    shares = {
        "x / (1 + x)": np.mean((t_small / (1 + t_small)).numpy() != small / (1 + small)),
        "(x + c) - c": np.mean(((t + 1e6) - 1e6).numpy() != (x + one(1e6)) - one(1e6)),
        "x * c0 + x * c1": np.mean((t * 0.1 + t * 0.7).numpy() != x * one(0.1) + x * one(0.7)),
        "w * (1 / a)": np.mean((t * (1 / Tensor(a))).numpy() != x * (1 / a)),
    }
    print("expected: 0 % differ from the same operations in NumPy, float32")
    print(f"measured: {'; '.join(f'{name} {100 * share:.0f} %' for name, share in shares.items())}")
    return int(any(shares.values()))


if __name__ == "__main__":
    sys.exit(main())
