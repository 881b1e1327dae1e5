"""bitsandbytes: a weight whose codes are one byte comes back from dequantize_4bit transposed.

Expected: the shape that was quantised, (1, 2). The packed tensor [1, 1] is taken for an older layout, whose result is transposed.

Needs torch and bitsandbytes. Exit 1: the defect shows; 0: it doesn't.
"""

import sys
from importlib.metadata import version

import torch
from bitsandbytes import functional


def main() -> int:
    print(f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}")
    weight = torch.tensor([[1.0, -1.0]])
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    back = functional.dequantize_4bit(packed, state)
    print(f"expected: shape {tuple(weight.shape)}")
    print(f"measured: shape {tuple(back.shape)}")
    return int(back.shape != weight.shape)


if __name__ == "__main__":
    sys.exit(main())
