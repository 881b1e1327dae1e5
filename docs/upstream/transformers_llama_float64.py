"""transformers: Llama's norm and rotary embedding compute in float32 inside a float64 model.

Expected: float64's accuracy in a model that was made with dtype=torch.float64. LlamaRMSNorm casts to float32 and back;
LlamaRotaryEmbedding keeps inverse frequencies, angles, cos and sin in float32.

Needs torch, transformers and NumPy. Exit 1: the defect shows; 0: it doesn't.
"""

import sys
from importlib.metadata import version

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding


def main() -> int:
    print(f"transformers {version('transformers')}, torch {version('torch')}")
    x = np.random.default_rng(0).standard_normal((4, 64))
    norm = LlamaRMSNorm(64, eps=1e-6).to(torch.float64)
    with torch.no_grad():
        normed = norm(torch.from_numpy(x))
    norm_error = np.abs(normed.numpy() - x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-6)).max()
    rotary = LlamaRotaryEmbedding(LlamaConfig(hidden_size=128, num_attention_heads=2)).to(torch.float64)
    cos, _ = rotary(torch.zeros(1, 1, 64, dtype=torch.float64), torch.tensor([[8191]]))
    angles = 8191 * 10000.0 ** (-np.arange(0, 64, 2) / 64)
    rotary_error = np.abs(cos[0, 0].detach().numpy() - np.cos(np.concatenate([angles, angles]))).max()
    assert normed.dtype == cos.dtype == torch.float64
    print("expected: at most 1e-12, float64")
    print(f"measured: norm {norm_error:.0e}, cos at position 8,191 {rotary_error:.0e}")
    return int(norm_error > 1e-12 or rotary_error > 1e-12)


if __name__ == "__main__":
    sys.exit(main())
