"""The elementary functions of MKL's vector library (VML), called once before threads can race for them."""

from __future__ import annotations

import torch

from stacks.torch_qlora.elementary import FUNCTIONS

DTYPES = (torch.float32, torch.float64)


def start() -> None:
    """Computes each elementary function of one number in each dtype, which torch does on one thread.

    VML finds out at its first call in a process which processor it runs on, and for a moment has stored a wrong answer. Where the first
    call is parallel, another thread may compute its part with the kernels of another processor: sqrt with 11 bits in float32 and 35 in
    float64 (torch 2.13, docs/upstream/torch_vml_first_call.py). AdamW's first root would then differ from run to run.
    """
    for function in FUNCTIONS.values():
        for dtype in DTYPES:
            function(torch.ones(1, dtype=dtype))
