"""bitsandbytes on a CPU: a tail block is divided by its absmax where whole blocks are multiplied by 1 / absmax, and has absmax 1e-38.

Expected: the codes of an element don't depend on whether its block is whole. They do within 2 ulp of a midpoint between two NF4
values. And a tail block of zeros has absmax 0, as a whole block of zeros has.

Needs torch, bitsandbytes and NumPy. Exit 1: the defect shows; 0: it doesn't.
"""

import sys
from importlib.metadata import version

import numpy as np
import torch
from bitsandbytes import functional

BLOCK, TAIL, TRIALS = 64, 48, 500


def codes(weight: np.ndarray) -> np.ndarray:
    packed, _ = functional.quantize_4bit(torch.from_numpy(weight), blocksize=BLOCK, quant_type="nf4")
    nibbles = packed.reshape(-1).numpy()
    return np.stack((nibbles >> 4, nibbles & 15), axis=1).reshape(-1)


def main() -> int:
    print(f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}")
    rng = np.random.default_rng(0)
    values = functional.get_4bit_type("nf4", device="cpu").numpy()
    midpoints = (values[1:] + values[:-1]) / np.float32(2)
    differing = 0
    for _ in range(TRIALS):
        absmax = np.float32(rng.uniform(0.01, 3.0))
        tail = (rng.choice(midpoints, TAIL) * absmax).astype(np.float32)
        tail = (tail.view(np.int32) + rng.integers(-2, 3, TAIL)).astype(np.int32).view(np.float32)
        tail[0] = absmax
        whole = np.concatenate([tail, np.zeros(BLOCK - TAIL, dtype=np.float32)])
        differing += int(np.count_nonzero(codes(tail) != codes(whole)[:TAIL]))
    _, zeros = functional.quantize_4bit(torch.zeros(BLOCK + TAIL), blocksize=BLOCK, quant_type="nf4")
    print("expected: no code of a tail differs from the same elements padded with zeros; absmax of zeros [0, 0]")
    print(
        f"measured: {100 * differing / (TRIALS * TAIL):.0f} % of the codes near midpoints differ; absmax of zeros {zeros.absmax.tolist()}"
    )
    return int(differing > 0 or bool(zeros.absmax.any()))


if __name__ == "__main__":
    sys.exit(main())
