"""tinygrad: exp in float32 is 63 ulp off at |x| of 60 to 88, since it is exp2(x * log2(e)) with the product rounded.

Expected: within 1 or 2 ulp, as NumPy's, torch's and CUDA's. The rounding of x * log2(e), relative u, is absolute in exp2's argument.
float64 loses as much: 5e-14 relative at |x| of 700.

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
    x = np.linspace(-80, 88, 100_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(Tensor(x).exp().numpy() - exact) / np.spacing(exact.astype(np.float32))
    print("expected: at most 2 ulp for x in [-80, 88], float32")
    print(f"measured: {error.max():.0f} ulp, at x = {x[error.argmax()]:.0f}")
    return int(error.max() > 2)


if __name__ == "__main__":
    sys.exit(main())
