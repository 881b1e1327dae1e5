"""Elementary functions, as the primitives use them; their errors are declared in capabilities.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

FUNCTIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
}

ON_THE_HOST = ("sin", "cos")
"""What RoPE's tables take on the host in float64 (rope.py), whatever the device and the dtype."""


def elementary(function: str, x: torch.Tensor) -> torch.Tensor:
    """y = function(x), element by element, in x's dtype, where the primitives evaluate it.

    Raises:
        ValueError: an unknown function, or a dtype that no primitive evaluates it in.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"elementary: function is {function!r}; allowed: {', '.join(FUNCTIONS)}")
    if function not in ON_THE_HOST:
        return FUNCTIONS[function](x)
    if x.dtype != torch.float64:
        raise ValueError(f"elementary: {function} of {x.dtype}; allowed: torch.float64, in which RoPE's tables are made; ask in float64")
    return FUNCTIONS[function](x.cpu()).to(x.device)
