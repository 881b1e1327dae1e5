"""bitsandbytes on a CPU with AVX512: dequantize_4bit takes a neighbour's absmax where rows are no whole number of blocks.

Expected: value of the code * absmax of its block, as CUDA and CPUs without AVX512 give. The last dimension is a multiple of 16 and not
of the block size: 160 in blocks of 64. The codes and absmax are right; Linear4bit uses the same kernel.

Needs torch, bitsandbytes and NumPy. Exit 1: the defect shows; 0: it doesn't (no AVX512).
"""

import sys
from importlib.metadata import version

import numpy as np
import torch
from bitsandbytes import functional

ROWS, COLUMNS, BLOCK = 60, 160, 64


def main() -> int:
    print(f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}, {torch.backends.cpu.get_cpu_capability()}")
    weight = torch.arange(1, ROWS * COLUMNS + 1, dtype=torch.float32).view(ROWS, COLUMNS)
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    nibbles = packed.reshape(-1).numpy()
    codes = np.stack((nibbles >> 4, nibbles & 15), axis=1).reshape(-1, BLOCK)
    right = functional.get_4bit_type("nf4", device="cpu").numpy()[codes] * state.absmax.numpy()[:, None]
    wrong = functional.dequantize_4bit(packed, state).numpy() != right.reshape(ROWS, COLUMNS)
    print(f"expected: 0 of {wrong.size} elements differ from value * absmax")
    print(f"measured: {100 * wrong.mean():.0f} % differ")
    return int(wrong.any())


if __name__ == "__main__":
    sys.exit(main())
