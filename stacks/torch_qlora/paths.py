"""Which production paths a run takes: the fastest ones that fit into the memory that it may have.

No path changes what is computed, but for the order of sums (question 3, docs/adr/0002-three-questions.md). Those that memory decides on,
`checkpoint` and `nf4_linear`, change no bit on a CPU, so that a run gives the same bits on a machine with less memory.
"""

from __future__ import annotations

from pathlib import Path as File

import torch

from contract.run import device_memory, memory
from contract.run.survey import declared_memory
from contract.training.inputs import Run
from contract.worker.capabilities import Capabilities
from contract.worker.plan import GraphPlan, Path

ALWAYS: tuple[Path, ...] = ("chunked_loss", "fused_attention", "fused_lora", "fused_elementwise")


def chosen(run: Run, device: torch.device) -> tuple[GraphPlan, tuple[str, ...]]:
    """The run's graph with its paths, and a line for the manifest."""
    plan = run.plan
    if plan.graph != "full_causal":
        return _proxy(plan)
    paths = [*ALWAYS, *_by_memory(run, plan, device)]
    held = " (NF4 weights are dequantised once: there is memory for it)" if plan.base and "nf4_linear" not in paths else ""
    return plan.model_copy(update={"paths": tuple(paths)}), (f"paths: {', '.join(paths)}{held}",)


def _proxy(plan: GraphPlan) -> tuple[GraphPlan, tuple[str, ...]]:
    """The proxy graph is there to be small: its NF4 weights stay codes. It has no attention."""
    paths: list[Path] = ["chunked_loss", "fused_lora", "fused_elementwise", *_from_codes(plan)]
    return plan.model_copy(update={"paths": tuple(paths)}), (f"paths: {', '.join(paths)}",)


def _by_memory(run: Run, plan: GraphPlan, device: torch.device) -> list[Path]:
    """`nf4_linear` unless the dequantised weights fit, `checkpoint` only if nothing else does; NF4 alone where memory is not known."""
    from_codes = _from_codes(plan)
    name = device.type.upper()
    dtype = run.contract.exec.compute_dtype
    declared, found = declared_memory(_capabilities(), name, dtype), device_memory.measure(name)
    if declared is None or found is None:
        return from_codes
    allowed = run.contract.exec.max_vram_fraction * found.total
    needed, recomputed = memory.fitting(run.layout, run.contract, declared, allowed)
    if recomputed:
        return [*from_codes, "checkpoint"]
    dequantized = memory.ITEMSIZE[dtype] * memory.linear_values(run.layout)
    free = allowed if found.available is None else min(allowed, found.available)
    return [] if needed.total + dequantized <= free else from_codes


def _from_codes(plan: GraphPlan) -> list[Path]:
    return ["nf4_linear"] if plan.base and plan.dtype != "float64" else []  # bitsandbytes has no float64


def _capabilities() -> Capabilities:
    return Capabilities.model_validate_json(File(__file__).with_name("capabilities.json").read_bytes())
