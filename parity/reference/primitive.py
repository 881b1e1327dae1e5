"""What a primitive's reference is: a formula of its inputs, evaluated with its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity.reference.running_error import Arithmetic, Computed

Tensors = Mapping[str, np.ndarray]
Attributes = Mapping[str, Any]

Reference = Callable[[Tensors, Attributes, Arithmetic], dict[str, Computed]]
"""(inputs and cotangents, attributes, a dtype's arithmetic) -> outputs and gradients, by the names of contract/worker/operations.py."""
