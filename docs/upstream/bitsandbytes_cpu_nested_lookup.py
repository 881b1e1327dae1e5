"""bitsandbytes on a CPU: quantize_blockwise looks a value up on a 16-bit grid, so that near a midpoint it gets the farther code.

Expected: the nearest entry of the map, as CUDA's kernel finds away from rounding's reach. Double quantisation (nested absmax) uses it.

Needs torch, bitsandbytes and NumPy. Exit 1: the defect shows; 0: it doesn't.
"""

import sys
from importlib.metadata import version

import numpy as np
import torch
from bitsandbytes import functional

BLOCK, BLOCKS = 256, 320


def main() -> int:
    print(f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}")
    values = np.random.default_rng(0).standard_normal((BLOCKS, BLOCK)).astype(np.float32)
    table = functional.create_dynamic_map().numpy()
    codes, state = functional.quantize_blockwise(torch.from_numpy(values), blocksize=BLOCK)
    scaled = values.astype(np.float64) / state.absmax.numpy()[:, None]
    chosen = np.abs(table[codes.numpy()].astype(np.float64) - scaled)
    nearest = np.min(np.abs(table.astype(np.float64)[:, None, None] - scaled), axis=0)
    farther = chosen > nearest + 1e-6  # far beyond what a rounding of the scaled value explains
    print(f"expected: each of {farther.size} codes is that of the nearest entry, to 1e-6")
    print(f"measured: {1000 * farther.mean():.1f} of 1,000 are not; the worst is {np.max(chosen - nearest):.0e} farther away")
    return int(farther.any())


if __name__ == "__main__":
    sys.exit(main())
