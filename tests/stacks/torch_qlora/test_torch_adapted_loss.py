"""The loss through a head with LoRA, by itself: which rows it takes, and in what it adds its chunks up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from contract.worker.graph import IGNORE_INDEX
from stacks.torch_qlora import adapted_loss
from stacks.torch_qlora.adapted_loss import adapted_cross_entropy
from stacks.torch_qlora.lora import Parts

ROWS, WIDTH, VOCABULARY, RANK = 7, 5, 11, 2


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def head(keep: torch.Tensor | None = None) -> Parts:
    weight = drawn(1, VOCABULARY, WIDTH)
    a, b = drawn(2, RANK, WIDTH).requires_grad_(), drawn(3, VOCABULARY, RANK).requires_grad_()
    return Parts(lora_a_RI=a, lora_b_OR=b, scale=1.5, weight=weight.to, keep=keep, dropout=0.0 if keep is None else 0.5)


def passed(x: torch.Tensor, parts: Parts, labels: torch.Tensor) -> list[torch.Tensor]:
    loss = adapted_cross_entropy(x, parts, labels, ignore_index=IGNORE_INDEX)
    return [loss.detach(), *torch.autograd.grad(loss, (parts.lora_a_RI, parts.lora_b_OR))]


def test_rows_that_do_not_count_take_their_masks_with_them() -> None:
    x, keep, labels = drawn(4, ROWS, WIDTH), drawn(5, ROWS, WIDTH) > 0, torch.arange(ROWS)
    labels[[0, 3, 4]] = IGNORE_INDEX
    counts = labels != IGNORE_INDEX
    found, alone = passed(x, head(keep), labels), passed(x[counts], head(keep[counts]), labels[counts])
    assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
    assert all(one.any() for one in found)


def test_chunks_are_added_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a thousand times over is a thousand times the row: in bfloat16 a sum stands still at some 256 of its terms."""
    monkeypatch.setattr(adapted_loss, "CHUNK_VALUES", VOCABULARY)
    times, parts = 1000, head()
    parts = replace(parts, lora_a_RI=parts.lora_a_RI.detach())  # its gradient is one product over all rows, rounded once
    row, label = drawn(4, 1, WIDTH).bfloat16(), torch.tensor([3])

    def gradient(count: int) -> torch.Tensor:
        loss = adapted_cross_entropy(row.expand(count, -1), parts, label.expand(count), ignore_index=IGNORE_INDEX)
        (found,) = torch.autograd.grad(loss, (parts.lora_b_OR,))
        assert loss.dtype == found.dtype == torch.float32
        return found

    one, many = gradient(1), gradient(times)
    assert ((many - times * one).abs() <= times * 2.0**-24 * (times * one).abs()).all()
    assert one.all()
