"""The five limits of the deployment target mobile_edge."""

from __future__ import annotations

from contract.run.facts import Facts, Refusal

MAX_SEQ_LEN = 512
MAX_RANK = 32


def edge_full_proxy_stack(facts: Facts) -> Refusal | None:
    """No full proxy stack is required."""
    if not facts.contract.exec.require_full_proxy_stack:
        return None
    return _refused(facts, "edge_full_proxy_stack", "exec.require_full_proxy_stack true", "false", "set it to false")


def edge_seq_len(facts: Facts) -> Refusal | None:
    """Rows are short."""
    seq_len = facts.contract.exec.seq_len
    if seq_len <= MAX_SEQ_LEN:
        return None
    return _refused(facts, "edge_seq_len", f"exec.seq_len {seq_len:,}", f"{MAX_SEQ_LEN} at most", "shorten it")


def edge_rank(facts: Facts) -> Refusal | None:
    """Every rank is low."""
    adapter = facts.contract.adapter
    high = [f"adapter.rank {adapter.rank}"] if adapter.rank > MAX_RANK else []
    high += [f"adapter.rank_pattern {name}: {rank}" for name, rank in adapter.rank_pattern.items() if rank > MAX_RANK]
    return (
        _refused(facts, "edge_rank", ", ".join(high), f"{MAX_RANK} at most", "lower adapter.rank and adapter.rank_pattern")
        if high
        else None
    )


def edge_batch_size(facts: Facts) -> Refusal | None:
    """One row at a time."""
    batch_size = facts.contract.exec.batch_size
    if batch_size == 1:
        return None
    return _refused(facts, "edge_batch_size", f"exec.batch_size {batch_size}", "1", "set it to 1, and grad_accum higher")


def edge_device(facts: Facts) -> Refusal | None:
    """On the CPU."""
    device = facts.contract.exec.device
    return None if device == "CPU" else _refused(facts, "edge_device", f"exec.device {device}", "CPU", "set it to CPU")


def _refused(facts: Facts, gate: str, got: str, allowed: str, remedy: str) -> Refusal | None:
    if facts.contract.artifact.deployment_target != "mobile_edge":
        return None
    remedy = f"{remedy}, or set artifact.deployment_target to workstation"
    return Refusal(gate=gate, got=f"{got} for deployment_target mobile_edge", allowed=allowed, remedy=remedy)


GATES = (edge_full_proxy_stack, edge_seq_len, edge_rank, edge_batch_size, edge_device)
