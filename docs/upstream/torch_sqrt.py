"""torch, CPU with MKL: sqrt is not correctly rounded, as IEEE 754-2019 (5.4.1) requires and as NumPy's is.

A process's first call may be far worse, by a race that one call on one thread prevents: torch_vml_first_call.py.

Needs torch and NumPy. Exit 1: the defect shows; 0: it doesn't.
"""

import sys

import numpy as np
import torch


def main() -> int:
    print(f"torch {torch.__version__}, MKL {torch.backends.mkl.is_available()}")
    torch.sqrt(torch.ones(1))
    wrong = {}
    for dtype in (np.float32, np.float64):
        x = np.random.default_rng(0).uniform(1, 4, 100_000).astype(dtype)
        wrong[x.dtype.name] = int(np.count_nonzero(torch.sqrt(torch.from_numpy(x)).numpy() != np.sqrt(x)))
    print("expected: 0 of 100000 roots differ from the correctly rounded ones")
    print(f"measured: {wrong['float32']} float32; {wrong['float64']} float64")
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
