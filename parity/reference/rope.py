"""Rotary position embedding and its vector-Jacobian product (Su et al. 2021, arXiv:2104.09864, eq. 34, in halves as Llama has it).

    f_i = theta^(-2 i / E)
    linear      f / factor                                                  Chen et al. 2023, arXiv:2306.15595, eq. 4
    llama3      f, f / factor, or between, by the wavelength 2 pi / f       arXiv:2407.21783; contract/model/layouts/rope.py

The tables are made in float64 and cast once, whatever the work dtype: their error is float64's and that cast's.

Legend: B sequences, T tokens, H heads, E head_dim, C = E / 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Arithmetic, Computed


def rope_tables(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """cos and sin of positions f, each twice over: [T, E]."""
    cos_TE, sin_TE = _tables(tensors["positions"], attrs["head_dim"], attrs["theta"], attrs["scaling"], one)
    return {"cos": cos_TE, "sin": sin_TE}


def rope(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """y = x cos + rotate_half(x) sin, rotate_half(a, b) = (-b, a); x_grad = y_bar cos - rotate_half(y_bar) sin."""
    x_BHTE = one.given(tensors["x"])
    cos_BTE, sin_BTE = _tables(tensors["positions"], x_BHTE.shape[-1], attrs["theta"], attrs["scaling"], one)
    cos_B1TE, sin_B1TE = cos_BTE[:, None], sin_BTE[:, None]
    answer = {"y": x_BHTE * cos_B1TE + _rotate_half(x_BHTE) * sin_B1TE}
    if "y_bar" in tensors:
        y_bar_BHTE = one.given(tensors["y_bar"])
        answer["x_grad"] = y_bar_BHTE * cos_B1TE - _rotate_half(y_bar_BHTE) * sin_B1TE
    return answer


def _tables(
    positions: np.ndarray, head_dim: int, theta: float, scaling: Mapping[str, float | str] | None, one: Arithmetic
) -> tuple[Computed, Computed]:
    """[..., T] -> twice [..., T, E]."""
    host = Arithmetic("float64", one.declared)
    frequency_C = _scaled(host.power(theta, host.exact(-np.arange(0, head_dim, 2)) / host.exact(head_dim)), scaling)
    angle = host.exact(positions)[..., None] * frequency_C
    cos, sin = one.cast(angle.cos()), one.cast(angle.sin())
    return Computed.concatenate([cos, cos], -1), Computed.concatenate([sin, sin], -1)


def _scaled(frequency_C: Computed, scaling: Mapping[str, float | str] | None) -> Computed:
    """Where llama3's three parts meet they agree, so that a wavelength rounded over the border costs what s was rounded by."""
    if scaling is None:
        return frequency_C
    host = frequency_C.arithmetic
    slow_C = frequency_C / host.exact(float(scaling["factor"]))
    if scaling["rope_type"] == "linear":
        return slow_C
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    wavelengths_C = float(scaling["original_max_position_embeddings"]) / (2 * np.pi) * frequency_C
    s_C = ((wavelengths_C.rounded(2) - low) / host.exact(high - low)).clipped(0.0, 1.0)
    return (1 - s_C) * slow_C + s_C * frequency_C


def _rotate_half(x: Computed) -> Computed:
    half = x.shape[-1] // 2
    return Computed.concatenate([-x[..., half:], x[..., :half]], -1)
