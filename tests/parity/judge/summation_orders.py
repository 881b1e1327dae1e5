"""Sums and products in torch whose terms are added in a given order, forward and backward: all of them legal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.parity.reference.plain_graph import Arithmetic

Reduce = Callable[[Tensor], Tensor]


def one_after_the_other(terms: Tensor) -> Tensor:
    total = terms[..., 0]
    for index in range(1, terms.shape[-1]):
        total = total + terms[..., index]
    return total


def backwards(terms: Tensor) -> Tensor:
    return one_after_the_other(terms.flip(-1))


def permuted(terms: Tensor) -> Tensor:
    return one_after_the_other(terms[..., torch.randperm(terms.shape[-1], generator=torch.Generator().manual_seed(0))])


def pairwise(terms: Tensor) -> Tensor:
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = torch.cat([terms, torch.zeros_like(terms[..., :1])], -1)
        terms = terms[..., ::2] + terms[..., 1::2]
    return terms[..., 0]


def in_blocks(terms: Tensor) -> Tensor:
    return one_after_the_other(torch.stack([one_after_the_other(block) for block in terms.split(8, -1)], -1))


def largest_last(terms: Tensor) -> Tensor:
    """Adversarial on purpose: the order follows the data."""
    return one_after_the_other(terms.gather(-1, terms.abs().argsort(-1)))


def largest_first(terms: Tensor) -> Tensor:
    return one_after_the_other(terms.gather(-1, terms.abs().argsort(-1, descending=True)))


ORDERS: dict[str, Reduce] = {
    order.__name__: order for order in (one_after_the_other, backwards, permuted, pairwise, in_blocks, largest_last, largest_first)
}


def arithmetic(reduce: Reduce) -> Arithmetic:
    """Every sum in that order."""

    def times(a: Tensor, b: Tensor) -> Tensor:
        return reduce(a[..., :, None, :] * b.transpose(-1, -2)[..., None, :, :])

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, a: Tensor, b: Tensor) -> Tensor:
            context.save_for_backward(a, b)
            return times(a, b)

        @staticmethod
        def backward(context: Any, y_bar: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            a, b = context.saved_tensors
            if b.ndim == 2:
                b_bar = times(a.flatten(0, -2).T, y_bar.flatten(0, -2))
            else:
                b_bar = times(a.transpose(-1, -2), y_bar)
            return times(y_bar, b.transpose(-1, -2)), b_bar

    class Total(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            context.shape = x.shape
            return reduce(x)[..., None]

        @staticmethod
        def backward(context: Any, y_bar: Tensor) -> Tensor:  # type: ignore[override]
            return y_bar.expand(context.shape)

    return Arithmetic(product=Product.apply, total=Total.apply)
