"""The chain rule through one section by hand, over the values at which it is cut.

tinygrad's `gradient` does not pass a value that was computed already, and a step as one expression would take minutes to schedule. So the
forward pass computes section by section and keeps KEPT; the backward pass meets the section again, with each cut a leaf: one that was
kept is not computed again, so no product is computed twice, and norms, RoPE, scores, softmax and activations are. The gradient then goes
from cut to cut, in reverse.

Shape suffixes: B sequences, T tokens, D hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tinygrad import Tensor
from tinygrad.uop.ops import UOp

KEPT = frozenset({"q_proj", "k_proj", "v_proj", "context", "attention_residual", "gate_proj", "up_proj"})
"""Taps of a block that the forward pass keeps, beside its input: what products give, but for those that are only added."""

_CUT = frozenset(
    {"attention_norm", "mlp_norm", "norm", "final_norm", "scaled", "q_rope", "k_rope", "scores", "weights", "gated", "activation"}
)
"""Taps that a product takes, or that several kernels do: each is a kernel's output of its own, in both directions."""

Hook = Callable[[str, Tensor], Tensor]
Section = Callable[[Tensor, Hook], Tensor]
"""(input, hook) -> output."""


class Keep:
    """The forward pass's hook: what it keeps, by the tap's name."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The value, as a buffer where it is kept or cut."""
        if name in KEPT:
            self.kept[name] = value.contiguous()
            return self.kept[name]
        return value.contiguous() if name in _CUT else value


def backward(
    section: Section, x_BTD: Tensor, kept: Mapping[str, Tensor], bar_BTD: Tensor, parameters: Mapping[str, Tensor], *, of_input: bool
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The gradients of <output, bar>, not computed yet: with respect to the input, where it is wanted, and to each parameter.

    Args:
        kept: what `Keep` kept when the section was computed.
        bar_BTD: the output's cotangent.
    """
    leaves = _Leaves(kept)
    output_BTD = section(x_BTD, leaves)
    inner = {tensor.uop: name for name, tensor in leaves.tensors.items()}
    outer = {tensor.uop: name for name, tensor in parameters.items()} | ({x_BTD.uop: ""} if of_input else {})
    bars: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for name, value in reversed([*leaves.values.items(), ("output", output_BTD)]):
        bar = bar_BTD if name == "output" else bars.pop(name).contiguous()
        met = _met(value.uop, {**inner, **outer})
        for target, gradient in zip(met, value.gradient(*map(Tensor, met), gradient=bar), strict=True):
            into, target_name = (bars, inner[target]) if target in inner else (gradients, outer[target])
            into[target_name] = into[target_name] + gradient if target_name in into else gradient
    return gradients.pop("", None), gradients


class _Leaves:
    """The backward pass's hook: each cut's value as computed, and the leaf that stands for it in all that follows."""

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        self._kept = kept
        self.values: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if name not in KEPT and name not in _CUT:
            return value
        self.values[name] = value
        self.tensors[name] = self._kept[name] if name in self._kept else value.contiguous().detach()
        return self.tensors[name]


def _met(value: UOp, leaves: Mapping[UOp, str]) -> list[UOp]:
    """The leaves that a value is computed from, without those behind another leaf; in one order."""
    found: dict[UOp, None] = {}
    waiting, seen = [value], {value}
    while waiting:
        for source in waiting.pop().src:
            if source in leaves:
                found[source] = None
            elif source not in seen:
                seen.add(source)
                waiting.append(source)
    return sorted(found, key=lambda leaf: leaves[leaf])
