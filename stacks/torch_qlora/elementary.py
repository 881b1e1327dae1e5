"""Elementary functions, as the loss uses them: exp(x - max), and log of a sum of up to V such terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

FUNCTIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"exp": torch.exp, "log": torch.log}


def elementary(function: str, x: torch.Tensor) -> torch.Tensor:
    """y = function(x), element by element, in x's dtype; errors are declared in capabilities.json.

    Raises:
        ValueError: an unknown function.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"elementary: function is {function!r}; allowed: {', '.join(FUNCTIONS)}")
    return FUNCTIONS[function](x)
