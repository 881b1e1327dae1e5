"""bitsandbytes on CUDA: NF4 codes near a midpoint differ from the CPU's, and a zero block gets another code.

Expected: one weight, one set of codes. The CPU kernel multiplies by the rounded reciprocal of absmax; CUDA's, built with fast
math, takes an approximate one, so that inputs within 2 ulp of a midpoint between two NF4 values get the neighbouring code. A zero
block is 0 * (1 / 0) = NaN there, which gets code 0 (the value -1) instead of 7 (the value 0).

Needs torch, bitsandbytes, NumPy and a GPU. Exit 1: the defect shows; 0: it doesn't; 2: there is no GPU here.
"""

import sys
from importlib.metadata import version

import numpy as np
import torch
from bitsandbytes import functional

BLOCK = 64
BLOCKS = 3_200


def near_midpoints() -> np.ndarray:
    """float32 [BLOCKS, BLOCK]: midpoint * absmax of the block, up to 2 ulp to either side; the first of each block is absmax."""
    rng = np.random.default_rng(0)
    values = functional.get_4bit_type("nf4", device="cpu").numpy()
    midpoints = (values[1:] + values[:-1]) / np.float32(2)
    absmax = rng.uniform(0.01, 3.0, (BLOCKS, 1)).astype(np.float32)
    weight = (rng.choice(midpoints, (BLOCKS, BLOCK)) * absmax).astype(np.float32)
    weight = (weight.view(np.int32) + rng.integers(-2, 3, weight.shape)).astype(np.int32).view(np.float32)
    weight[:, 0] = absmax[:, 0]
    return weight


def codes(weight: np.ndarray, device: str) -> np.ndarray:
    """One code a byte."""
    packed, _ = functional.quantize_4bit(torch.from_numpy(weight).to(device), blocksize=BLOCK, quant_type="nf4")
    nibbles = packed.reshape(-1).cpu().numpy()
    return np.stack((nibbles >> 4, nibbles & 15), axis=1).reshape(-1)


def main() -> int:
    print(f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}")
    if not torch.cuda.is_available():
        print("needs a GPU")
        return 2
    weight, zero = near_midpoints(), np.zeros((1, BLOCK), dtype=np.float32)
    differing = int(np.count_nonzero(codes(weight, "cuda") != codes(weight, "cpu")))
    zeros = sorted({int(code) for code in codes(zero, "cuda")}), sorted({int(code) for code in codes(zero, "cpu")})
    print(f"{torch.cuda.get_device_name()}: {differing} of {weight.size} codes differ from the CPU's; expected 0")
    print(f"codes of a zero block: CUDA {zeros[0]}, CPU {zeros[1]}; expected [7] on both")
    return int(differing > 0 or zeros[0] != [7])


if __name__ == "__main__":
    sys.exit(main())
