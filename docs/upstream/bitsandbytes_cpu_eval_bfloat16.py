"""bitsandbytes on a CPU with AVX512-BF16: Linear4bit in eval mode computes in bfloat16, whatever its compute dtype says.

Expected: float32, since compute_dtype=torch.float32. In eval mode the module re-packs its weight for a bfloat16 kernel instead, and
keeps it so: 257 times an identity is 256, back in train mode too.

Needs torch and bitsandbytes. Exit 1: the defect shows; 0: it doesn't (no AVX512-BF16).
"""

import sys
from importlib.metadata import version

import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit


def main() -> int:
    bfloat16 = "with" if functional.has_avx512bf16() else "without"
    print(f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}, {bfloat16} AVX512-BF16")
    layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=False)
    layer.load_state_dict({"weight": torch.eye(64)})
    layer = layer.to("cpu").eval()
    with torch.no_grad():
        y = layer(torch.full((1, 64), 257.0))
    print("expected: 257 times an identity is 257 in float32")
    print(f"measured: {y.unique().tolist()}, {y.dtype}")
    return int(bool((y != 257).any()))


if __name__ == "__main__":
    sys.exit(main())
