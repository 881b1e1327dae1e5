"""bitsandbytes on CUDA: NF4 flushes subnormal numbers to zero, where the CPU keeps them.

Expected: one weight, one result. CUDA's kernels are built with fast math. A subnormal absmax is stored as 0; a block with an absmax near
float32's largest number, whose reciprocal is subnormal, gets codes of a block scaled by 0; a subnormal dequantised weight is 0.

Needs torch, bitsandbytes, NumPy and a GPU. Exit 1: the defect shows; 0: it doesn't; 2: there is no GPU here.
"""

import sys
from importlib.metadata import version

import numpy as np
import torch
from bitsandbytes import functional

BLOCK = 64


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, functional.QuantState]:
    return functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")


def differing(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((one.cpu() != other.cpu()).sum())


def main() -> int:
    print(f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}")
    if not torch.cuda.is_available():
        print("needs a GPU")
        return 2
    ramp = torch.from_numpy(np.linspace(-1, 1, BLOCK, dtype=np.float32))[None]
    shows = False
    for absmax in (5e-39, 3.4e38):
        weight = ramp * absmax
        packed, state = quantized(weight)
        packed_cuda, state_cuda = quantized(weight.cuda())
        wrong = [differing(packed, packed_cuda), differing(state.absmax, state_cuda.absmax)]
        back = functional.dequantize_4bit(packed, state)
        state_cuda.absmax = state.absmax.cuda()
        wrong.append(differing(back, functional.dequantize_4bit(packed.cuda(), state_cuda)))
        print(f"absmax {absmax}: on CUDA {wrong[0]} of 32 bytes of codes, {wrong[1]} of 1 absmax, and of the same codes and absmax")
        print(f"    {wrong[2]} of 64 dequantised weights are not the CPU's; expected 0")
        shows |= any(wrong)
    return int(shows)


if __name__ == "__main__":
    sys.exit(main())
