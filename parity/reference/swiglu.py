"""SwiGLU without its linears, and its vector-Jacobian product (Shazeer 2020, arXiv:2002.05202, eq. 6).

Legend: T tokens, D width.
"""

from __future__ import annotations

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Arithmetic, Computed
from parity.reference.silu import sigmoid, vector_jacobian


def swiglu(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """y = silu(gate) up; gate_grad = y_bar up silu'(gate), up_grad = y_bar silu(gate)."""
    gate_TD, up_TD = one.given(tensors["gate"]), one.given(tensors["up"])
    sigma_TD = sigmoid(gate_TD)
    swish_TD = gate_TD * sigma_TD
    answer = {"y": swish_TD * up_TD}
    if "y_bar" in tensors:
        y_bar_TD = one.given(tensors["y_bar"])
        answer["gate_grad"] = vector_jacobian(gate_TD, sigma_TD, y_bar_TD * up_TD)
        answer["up_grad"] = y_bar_TD * swish_TD
    return answer
