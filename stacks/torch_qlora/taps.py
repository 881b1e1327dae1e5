"""A graph's inner values, to see and to override (contract/worker/taps.py)."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from contract.worker.taps import prefix
from stacks.torch_qlora import lora

Tap = Callable[[str, torch.Tensor], torch.Tensor]
"""(name, what was computed) -> what to go on with."""


def unseen(name: str, value: torch.Tensor) -> torch.Tensor:
    """The Tap of a pass that shows nothing."""
    return value


class Taps:
    """Records what a graph computes, and puts overrides in its place.

    Args:
        keep: full names of the taps to record.
        attached: those of them that stay part of autograd's graph, to be differentiated.
        overrides: by full name, what takes a tap's place for all that follows from it.
    """

    def __init__(self, *, keep: Container[str], attached: Container[str] = (), overrides: Mapping[str, torch.Tensor] | None = None) -> None:
        self.recorded: dict[str, torch.Tensor] = {}
        self._keep, self._attached, self._overrides = keep, attached, overrides or {}

    def tap(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Records the value as computed; the override in its place, if there is one."""
        if name in self._keep:
            # A checkpointed block computes its taps a second time in the backward pass: the first time counts.
            self.recorded.setdefault(name, value if name in self._attached else value.detach())
        return self._overrides.get(name, value)

    def under(self, section: str) -> Tap:
        """`tap` for a section's own names."""
        before = prefix(section)
        return lambda name, value: self.tap(before + name, value)


def under(shown: Taps | None, section: str) -> Tap:
    """A section's Tap; the one that shows nothing where nothing is to be shown."""
    return unseen if shown is None else shown.under(section)


@contextmanager
def tapped(section: nn.Module, tap: Tap) -> Iterator[None]:
    """For one pass, shows what each submodule of a section computes, peft's inner ones too, and lets `tap` replace it."""
    if tap is unseen:
        yield
        return

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
        return lambda _module, _inputs, output: tap(name, output)

    places = {tap_name: place for name, module in section.named_children() for tap_name, place in lora.places(name, module).items()}
    handles = [place.register_forward_hook(hook(tap_name)) for tap_name, place in places.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
