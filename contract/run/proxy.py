"""How many middle blocks the proxy graph of a run has."""

from __future__ import annotations

from contract.run.spec import ExecSpec


def middle_blocks(run: ExecSpec, *, expected: int, matched: int) -> int:
    """n: all layers, or the first proxy_max_layers; none with lm_head_only, or where the checkpoint lacks a middle key.

    Args:
        expected: middle keys of a whole checkpoint, one a layer. matched: those that are there.
    """
    if run.lm_head_only or matched < expected:
        return 0
    return expected if run.proxy_max_layers is None else min(run.proxy_max_layers, expected)
