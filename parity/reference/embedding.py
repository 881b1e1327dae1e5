"""The embedding's rows, and the gradient of its weight (Bengio et al. 2003, section 3.1: a row of C for each word).

Legend: V vocabulary, D width, T tokens.
"""

from __future__ import annotations

import numpy as np

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Arithmetic, Computed


def embedding(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """y[t] = weight[ids[t]]; weight_grad[v] = the sum of y_bar[t] over the places t of v, 0 where it has none."""
    weight_VD, ids_T = one.given(tensors["weight"]), tensors["ids"]
    answer = {"y": weight_VD[ids_T]}
    if "y_bar" in tensors:
        place_VT = np.arange(weight_VD.shape[0])[:, None] == ids_T
        y_bar_VTD = one.given(np.broadcast_to(tensors["y_bar"], (*place_VT.shape, weight_VD.shape[1])))
        answer["weight_grad"] = y_bar_VTD.where(place_VT[:, :, None]).sum(1)
    return answer
