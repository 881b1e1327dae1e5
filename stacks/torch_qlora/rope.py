"""Rotary position embedding by halves of a head (RoFormer, arXiv:2104.09864), with linear and llama3 scaling.

Legend: L any leading dimensions (heads, sequences), T tokens, E head_dim, I = E / 2.
"""

from __future__ import annotations

import math

import torch

from contract.model.layouts.rope import RopeScaling


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> torch.Tensor:
    """f[i] = theta^(-2 i / head_dim), i = 0 .. head_dim / 2 - 1, changed as `RopeScaling` says, [I] in float64 on the host.

    llama3's blend is written f / factor + s (f - f / factor): a factor of 1 then changes no bit.
    """
    exponents_I = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    f_I = theta**-exponents_I
    if scaling is None:
        return f_I
    slowed_I = f_I / scaling.factor
    if scaling.rope_type == "linear":
        return slowed_I
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None, "RopeScaling holds all three for llama3"
    assert high is not None
    assert length is not None
    wavelength_I = 2 * math.pi / f_I
    s_I = (length / wavelength_I - low) / (high - low)
    blended_I = slowed_I + s_I * (f_I - slowed_I)
    return torch.where(wavelength_I < length / high, f_I, torch.where(wavelength_I > length / low, slowed_I, blended_I))


def tables(
    positions_LT: torch.Tensor, frequencies_I: torch.Tensor, *, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of positions f, twice over, [L, T, E].

    On the host in float64, cast once: angles in float32 are off by 1e-7 of a turn per token and more.
    """
    angles_LTI = positions_LT.cpu().to(torch.float64).unsqueeze(-1) * frequencies_I
    angles_LTE = torch.cat((angles_LTI, angles_LTI), dim=-1)
    return angles_LTE.cos().to(device, dtype), angles_LTE.sin().to(device, dtype)


def rotate(x_LTE: torch.Tensor, cos_TE: torch.Tensor, sin_TE: torch.Tensor) -> torch.Tensor:
    """x cos + rotate_half(x) sin, [L, T, E], where rotate_half(a, b) = (-b, a), a and b the halves of a head."""
    a, b = x_LTE.chunk(2, dim=-1)
    return x_LTE * cos_TE + torch.cat((-b, a), dim=-1) * sin_TE


def require_positions(op: str, positions: torch.Tensor) -> None:
    """Refuses what no token stands at.

    Raises:
        ValueError: a negative position.
    """
    negative = (positions < 0).nonzero()
    if len(negative):
        place = negative[0].tolist()
        raise ValueError(f"{op}: positions{place} is {int(positions[tuple(place)])}; allowed: 0 and more; count positions from 0")
