"""Gradient clipping by the global norm (Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, algorithm 1; the 1e-6 as PyTorch documents
`torch.nn.utils.clip_grad_norm_`).

Legend: M, K rows and columns of a; N elements of b.
"""

from __future__ import annotations

import numpy as np

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Arithmetic, Computed

SMALL = 1e-6
"""What keeps a zero norm from dividing."""


def clip_gradients(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """norm = sqrt(sum of squares over both tensors), each times scale = min(1, max_norm / (norm + 1e-6)).

    The norm may be taken over all elements or over the tensors' norms. Where scale is 1 for sure, nothing is rounded.
    """
    gradients = {name: one.given(tensors[name]) for name in ("a", "b")}
    squares = [flat * flat for flat in (gradient.reshape(-1) for gradient in gradients.values())]
    of_each = [one_of.sum(0, keepdims=True).sqrt() for one_of in squares]
    norm = Computed.concatenate(squares, 0).sum(0).sqrt()
    norm = norm.either(Computed.concatenate([part * part for part in of_each], 0).sum(0).sqrt())
    ratio = one.cast(one.exact(attrs["max_norm"])) / (norm + SMALL)
    binds = bool(ratio.value - ratio.error < 1)
    scale = Computed(np.minimum(ratio.value, 1.0), ratio.error, one)
    return {"norm": norm, **{f"{name}_clipped": gradient * scale if binds else gradient for name, gradient in gradients.items()}}
