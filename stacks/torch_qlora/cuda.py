"""What CUDA's libraries are told before a worker first asks them for anything: one order of every sum, and sums in float32."""

from __future__ import annotations

import os

import torch

from contract.worker.stack import NotSupported

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""cuBLAS' own variable (cuBLAS documentation, "Results reproducibility"), which it reads when it starts."""

ORDERED = (":4096:8", ":16:8")
"""The values with which cuBLAS adds in one order; the first takes 24 MiB, and torch allows no others where it is to be deterministic."""


def start(device: torch.device) -> None:
    """Makes the same request give the same bits, on CUDA; elsewhere nothing is to be done.

    Not `warn_only`: torch's attention kernels add in any order then (aten/src/ATen/native/transformers/cuda/attention_backward.cu asks
    for `deterministicAlgorithms() && !deterministicAlgorithmsWarnOnly()`). Nothing that this stack computes lacks an ordered form; what
    does raises, and is found by the gate.

    Raises:
        NotSupported: the user's CUBLAS_WORKSPACE_CONFIG lets cuBLAS add in any order.
    """
    if device.type != "cuda":
        return
    if os.environ.setdefault(WORKSPACE, ORDERED[0]) not in ORDERED:
        raise NotSupported(
            f"{WORKSPACE} is {os.environ[WORKSPACE]!r}, with which two runs differ; allowed: {' or '.join(ORDERED)}; unset it"
        )
    torch.use_deterministic_algorithms(True)
    # A bfloat16 product that is cut along its inner length adds its parts in bfloat16 unless it is told not to.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
