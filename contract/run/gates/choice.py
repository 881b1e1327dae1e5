"""Which stack: there is one, it is installed, it may run in this lane."""

from __future__ import annotations

import difflib

from contract.run.facts import Facts, Refusal

_LISTED = 4
"""Records of other runs that are told of."""


def unknown_stack(facts: Facts) -> Refusal | None:
    """The stack that the contract names is known."""
    named = facts.contract.stack
    if named is None or named in facts.stacks:
        return None
    near = difflib.get_close_matches(named, facts.stacks, n=1)
    remedy = f"did you mean {near[0]}?" if near else "name one of them, or describe yours in parity.toml"
    return Refusal(gate="unknown_stack", got=f"stack {named}", allowed=_known(facts), remedy=remedy)


def no_stack(facts: Facts) -> Refusal | None:
    """Lane, method and base lead to one stack, where none is named."""
    contract = facts.contract
    if contract.stack is not None or len(facts.inferred) == 1:
        return None
    got = f"lane {contract.lane}, method {contract.adapter.method}, base {contract.quant.base}"
    if facts.inferred:
        remedy = f"name one with the field stack: {', '.join(facts.inferred)}"
        return Refusal(gate="no_stack", got=f"{got}, which lead to {len(facts.inferred)} stacks", allowed="one stack", remedy=remedy)
    remedy = f"name a stack with the field stack ({_known(facts)}), or change lane, adapter.method or quant.base"
    return Refusal(gate="no_stack", got=f"{got}, which lead to no stack", allowed=_ways(facts), remedy=remedy)


def forced_stack(facts: Facts) -> Refusal | None:
    """The stack that is named is the one that is inferred, or a research stack that was promoted for this very run."""
    contract, named = facts.contract, facts.contract.stack
    if named not in facts.stacks or not facts.inferred or named in facts.inferred:
        return None
    if facts.promotion is not None and facts.promotion.granted:
        return None
    inferred = " or ".join(facts.inferred)
    ways = f"lane {contract.lane}, method {contract.adapter.method} and base {contract.quant.base}"
    return Refusal(
        gate="forced_stack",
        got=f"stack {named}, while {ways} lead to {inferred}",
        allowed=f"stack {inferred}, or none named",
        remedy=f"leave stack out, or change lane, adapter.method or quant.base to what {named} is for",
    )


def not_installed(facts: Facts) -> Refusal | None:
    """The stack's packages are here."""
    if facts.stack is None or facts.capabilities is None or not facts.missing.get(facts.stack):
        return None
    return Refusal(
        gate="not_installed",
        got=f"stack {facts.stack} without {', '.join(facts.missing[facts.stack])}",
        allowed="a stack whose packages are installed",
        remedy=f"run: pip install 'twostack[{facts.capabilities.extra}]'",
    )


def no_training(facts: Facts) -> Refusal | None:
    """The stack declares which runs it takes."""
    if facts.stack is None or facts.training is not None:
        return None
    able = [name for name, capabilities in facts.stacks.items() if capabilities.training is not None]
    allowed = ", ".join(able) or "a stack that declares `training`"
    return Refusal(
        gate="no_training",
        got=f"stack {facts.stack}, which declares no training",
        allowed=allowed,
        remedy="name another stack, or declare `training` in its capabilities.json",
    )


def research_lane(facts: Facts) -> Refusal | None:
    """A research stack runs in the research lane, or with a promotion record for this very run."""
    if facts.capabilities is None or facts.capabilities.lane == "production" or facts.contract.lane == "research":
        return None
    promotion = facts.promotion
    if promotion is None or promotion.granted:
        return None
    more = f"; and {len(promotion.found) - _LISTED} more" if len(promotion.found) > _LISTED else ""
    there = f"; there: {'; '.join(promotion.found[:_LISTED])}{more}" if promotion.found else ""
    return Refusal(
        gate="research_lane",
        got=f"stack {facts.stack} of the research lane in a contract of the production lane, without a record{there}",
        allowed=f"lane research, or {promotion.wanted}",
        remedy="set lane to research, or have `parity promote` write the record",
    )


def _known(facts: Facts) -> str:
    return ", ".join(facts.stacks) or "none is installed"


def _ways(facts: Facts) -> str:
    """What leads to a stack, from the stacks' own declarations."""
    ways = [
        f"lane {rule.lane} with {' or '.join([f'method {one}' for one in rule.methods] + [f'base {one}' for one in rule.bases])} ({name})"
        for name, capabilities in facts.stacks.items()
        if capabilities.training is not None
        for rule in capabilities.training.inferred_for
    ]
    return "; ".join(ways) or "a stack that is named"


GATES = (unknown_stack, no_stack, forced_stack, not_installed, no_training, research_lane)
