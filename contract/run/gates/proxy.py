"""The proxy graph's own fields, and the middle keys that it needs."""

from __future__ import annotations

from contract.model.fit import LISTED
from contract.run.facts import Facts, Refusal
from contract.run.proxy import middle_blocks


def proxy_fields(facts: Facts) -> Refusal | None:
    """Fields of the proxy graph stand only where it is the graph."""
    contract = facts.contract
    if contract.graph == "qlora_proxy_v1":
        return None
    given = {
        "exec.lm_head_only": contract.exec.lm_head_only,
        "exec.proxy_max_layers": contract.exec.proxy_max_layers is not None,
        "exec.require_full_proxy_stack": contract.exec.require_full_proxy_stack,
        "adapter.targets lm_head_proxy": contract.adapter.targets == "lm_head_proxy",
    }
    named = ", ".join(name for name, there in given.items() if there)
    if not named:
        return None
    return Refusal(
        gate="proxy_fields",
        got=f"{named} with graph {contract.graph}",
        allowed="these fields with graph qlora_proxy_v1 only",
        remedy="leave them out, or set graph to qlora_proxy_v1",
    )


def proxy_targets(facts: Facts) -> Refusal | None:
    """The proxy graph has LoRA on its own linears, and on no others."""
    contract = facts.contract
    if contract.graph != "qlora_proxy_v1" or (contract.adapter.targets == "lm_head_proxy" and not contract.adapter.target_modules):
        return None
    named = f" and target_modules {', '.join(contract.adapter.target_modules)}" if contract.adapter.target_modules else ""
    return Refusal(
        gate="proxy_targets",
        got=f"adapter.targets {contract.adapter.targets}{named} with graph qlora_proxy_v1",
        allowed="adapter.targets lm_head_proxy without target_modules, or graph full_causal",
        remedy="set adapter.targets to lm_head_proxy and leave target_modules out, or set graph to full_causal",
    )


def proxy_base(facts: Facts) -> Refusal | None:
    """The proxy graph is made of NF4 linears."""
    contract = facts.contract
    if contract.graph != "qlora_proxy_v1" or contract.quant.base == "nf4":
        return None
    return Refusal(
        gate="proxy_base",
        got=f"quant.base {contract.quant.base} with graph qlora_proxy_v1",
        allowed="quant.base nf4, or graph full_causal",
        remedy="set quant.base to nf4, or graph to full_causal",
    )


def proxy_layers(facts: Facts) -> Refusal | None:
    """No middle blocks, or some of them: not both."""
    run = facts.contract.exec
    if not run.lm_head_only or not run.proxy_max_layers:
        return None
    return Refusal(
        gate="proxy_layers",
        got=f"exec.lm_head_only true with exec.proxy_max_layers {run.proxy_max_layers}",
        allowed="lm_head_only without proxy_max_layers, or with 0",
        remedy="leave one of the two out",
    )


def full_proxy_stack(facts: Facts) -> Refusal | None:
    """Every middle key is there, where that is required."""
    if not facts.contract.exec.require_full_proxy_stack or facts.proxy is None or facts.proxy.matched == facts.proxy.expected:
        return None
    missing = facts.proxy.expected - facts.proxy.matched
    listed = facts.proxy.missing[:LISTED]
    more = f" and {missing - len(listed)} more" if missing > len(listed) else ""
    return Refusal(
        gate="full_proxy_stack",
        got=f"{facts.proxy.matched} of {facts.proxy.expected} middle keys; missing: {', '.join(listed)}{more}",
        allowed=f"all {facts.proxy.expected}, since exec.require_full_proxy_stack is true",
        remedy="take a whole checkpoint, or set require_full_proxy_stack to false: the LM head alone is then trained",
    )


def proxy_square(facts: Facts) -> Refusal | None:
    """A middle block takes the residual stream and adds to it, so its linear is square."""
    contract, layout = facts.contract, facts.layout
    if contract.graph != "qlora_proxy_v1" or layout is None or facts.proxy is None:
        return None
    wide, hidden = layout.num_attention_heads * layout.head_dim, layout.hidden_size
    if wide == hidden or not middle_blocks(contract.exec, expected=facts.proxy.expected, matched=facts.proxy.matched):
        return None
    return Refusal(
        gate="proxy_square",
        got=f"a {layout.model_type} model whose attention's output projection is [{hidden}, {wide}]",
        allowed="a square one (num_attention_heads * head_dim = hidden_size), or the LM head alone",
        remedy="set exec.lm_head_only to true, or graph to full_causal",
    )


GATES = (proxy_fields, proxy_targets, proxy_base, proxy_layers, full_proxy_stack, proxy_square)
