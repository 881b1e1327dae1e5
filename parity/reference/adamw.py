"""One AdamW step (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2; bias correction: Kingma & Ba 2015, arXiv:1412.6980; arranged
as PyTorch documents `torch.optim.AdamW`: decay on the weight first, eps outside the root).

Legend: N parameters.
"""

from __future__ import annotations

import numpy as np

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import REFERENCE, ULP_IN_U, Arithmetic, Computed


def adamw_step(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """n = step + 1; w = weight (1 - lr weight_decay); m and v as `averages`; weight_next = w - lr mhat / (sqrt(vhat) + eps).

    mhat = m_next / (1 - beta1^n), vhat = v_next / (1 - beta2^n). What is the same for all parameters is the host's, in float64.
    """
    host = REFERENCE.exact
    lr, n = host(attrs["lr"]), int(tensors["step"]) + 1
    weight_N, m_N, v_N = averages(tensors, attrs, one)
    first, second = (correction(attrs[name], n) for name in ("beta1", "beta2"))
    of_root_N = v_N.sqrt() / one.cast(second.sqrt())
    root_N = of_root_N.either((v_N / one.cast(second)).sqrt()) + one.cast(host(attrs["eps"]))
    update_N = one.cast(lr / first) * (m_N / root_N)
    apart_N = one.cast(lr) * ((m_N / one.cast(first)) / root_N)
    decayed_N = weight_N * one.cast(1.0 - lr * host(attrs["weight_decay"])) if attrs["weight_decay"] else weight_N
    return {
        "weight_next": decayed_N - update_N.either(apart_N),
        "m_next": m_N,
        "v_next": v_N,
        "step_next": one.exact(float(n)),
    }


def averages(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> tuple[Computed, Computed, Computed]:
    """The weight, m_next = beta1 m + (1 - beta1) g and v_next = beta2 v + (1 - beta2) g^2.

    Each average may be taken as m + (1 - beta1) (g - m), too, which is right where beta is 1/2 or more. g^2 must not overflow.
    """
    weight_N, gradient_N, m_N, v_N = (one.given(tensors[name]) for name in ("weight", "gradient", "m", "v"))
    found = []
    for old_N, new_N, beta in ((m_N, gradient_N, attrs["beta1"]), (v_N, gradient_N * gradient_N, attrs["beta2"])):
        kept, taken = one.cast(REFERENCE.exact(beta)), one.cast(1.0 - REFERENCE.exact(beta))
        plain_N = kept * old_N + taken * new_N
        found.append(plain_N.either(old_N + taken * (new_N - old_N)))
    return weight_N, found[0], found[1]


def correction(beta: float, n: int) -> Computed:
    """1 - beta^n in float64; a library's power is right to one ulp, and beta^1 is beta."""
    power = np.asarray(float(beta) ** n)
    error = np.asarray(0.0 if n == 1 else ULP_IN_U * REFERENCE.u * float(power))
    return 1.0 - Computed(power, error, REFERENCE)
