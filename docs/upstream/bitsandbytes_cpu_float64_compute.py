"""bitsandbytes on a CPU: matmul_4bit (and Linear4bit) on a float64 input returns garbage, without a word.

Expected: the product, or an error that says that float64 is not supported.

Needs torch and bitsandbytes. Exit 1: the defect shows; 0: it doesn't.
"""

import sys
from importlib.metadata import version

import torch
from bitsandbytes import functional, matmul_4bit


def main() -> int:
    print(f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}")
    packed, state = functional.quantize_4bit(torch.eye(64), blocksize=64, quant_type="nf4")
    ones = torch.ones(1, 64, dtype=torch.float64)
    print("expected: ones times an identity is ones, or an error")
    try:
        wrong = matmul_4bit(ones, packed, quant_state=state) != ones
    except (RuntimeError, ValueError) as error:
        print(f"measured: an error: {error}")
        return 0
    print(f"measured: no error; {'some elements are' if wrong.any() else 'none is'} not 1")
    return int(wrong.any())


if __name__ == "__main__":
    sys.exit(main())
