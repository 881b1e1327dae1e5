"""One AdamW step whose m and v are kept in 8 bits (Dettmers et al. 2022, arXiv:2110.02861, sections 2 and 3).

Per block of 256 elements: absmax = max |m|, and for each element the nearest value of the dynamic data type (arXiv:1511.04561) to
m / absmax. The weight is updated with m and v as they are before that.

Legend: N parameters, B blocks.
"""

from __future__ import annotations

import numpy as np

from parity.reference.adamw import averages, correction
from parity.reference.nf4 import DYNAMIC_MAP, UNSIGNED_DYNAMIC_MAP
from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import REFERENCE, Arithmetic, Computed

BLOCK_SIZE = 256
SMALLEST = 4096
"""A tensor of fewer elements keeps m and v in float32."""


MAPS = {"m": DYNAMIC_MAP, "v": UNSIGNED_DYNAMIC_MAP}


def adamw_8bit_step(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """As adamw.adamw_step; the errors of m_next and v_next are what 8 bits keep of them.

    The two corrections may be multiplied into lr and eps: lr c / (1 - beta1^n) m / (sqrt(v) + c eps), c = sqrt(1 - beta2^n).
    """
    host = REFERENCE.exact
    lr, n = host(attrs["lr"]), int(tensors["step"]) + 1
    weight_N, m_N, v_N = averages(tensors, attrs, one)
    first, root = correction(attrs["beta1"], n), correction(attrs["beta2"], n).sqrt()
    update_N = one.cast(lr * root / first) * (m_N / (v_N.sqrt() + one.cast(host(attrs["eps"]) * root)))
    decayed_N = weight_N * one.cast(1.0 - lr * host(attrs["weight_decay"])) if attrs["weight_decay"] else weight_N
    kept = kept_in_8_bits if weight_N.value.size >= SMALLEST else lambda x_N, table: x_N
    return {
        "weight_next": decayed_N - update_N,
        "m_next": kept(m_N, DYNAMIC_MAP),
        "v_next": kept(v_N, UNSIGNED_DYNAMIC_MAP),
        "step_next": one.exact(float(n)),
    }


def kept_in_8_bits(x_N: Computed, table: np.ndarray) -> Computed:
    """x, and how far what 8 bits keep of it may lie from it.

    With y = x / absmax and q its nearest value in the table: absmax |q - y|; the error of y, since the distance to the nearest value
    changes by no more than y does; and what the product rounds. Next to 0 the value may be the next one of y's own sign.
    """
    count, one = x_N.value.size, x_N.arithmetic
    blocks = _blocks(x_N.value), _blocks(x_N.error)
    x_BK = Computed(*blocks, one)
    absmax_B1 = Computed(np.abs(blocks[0]), blocks[1], one).max(1, keepdims=True)
    nothing = absmax_B1.size == 0
    y_BK = x_BK / Computed(np.where(nothing, 1.0, absmax_B1.value), absmax_B1.error, one)
    distance_BK = _distance(y_BK.value, table.astype(np.float64)) + y_BK.error
    error_BK = absmax_B1.size * (distance_BK + one.u * y_BK.size) + blocks[1] + np.where(nothing, 0.0, one.tiny)
    return Computed(x_N.value, error_BK.reshape(-1)[:count], one)


def _distance(y: np.ndarray, table: np.ndarray) -> np.ndarray:
    """To the nearest value of a sorted table; between 0 and its neighbours, to the further one."""
    above = np.clip(np.searchsorted(table, y), 1, len(table) - 1)
    low, high = table[above - 1], table[above]
    apart = np.abs(np.stack([y - low, high - y]))
    distance: np.ndarray = np.where((low == 0) | (high == 0), apart.max(axis=0), apart.min(axis=0))
    return distance


def _blocks(x_N: np.ndarray) -> np.ndarray:
    return np.pad(x_N, (0, -x_N.size % BLOCK_SIZE)).reshape(-1, BLOCK_SIZE)
