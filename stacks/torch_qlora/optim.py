"""Gradient clipping and AdamW, by torch's own code.

Legend: N elements of a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """What a step of AdamW takes beside the tensors."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Moments:
    """AdamW's state of one parameter: m and v [N], and the number of steps taken."""

    m_N: torch.Tensor
    v_N: torch.Tensor
    step: int


def clip_gradients(gradients: Sequence[torch.Tensor], max_norm: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """norm = sqrt(sum of squares over all gradients), and each times min(1, max_norm / (norm + 1e-6)) (arXiv:1211.5063).

    The norm is that of the tensors' norms, as torch.nn.utils.clip_grad_norm_ takes it; the given tensors stay as they are.
    """
    parameters = [_with_gradient(gradient, gradient) for gradient in gradients]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm, [_gradient(parameter) for parameter in parameters]


def adamw_step(weight_N: torch.Tensor, gradient_N: torch.Tensor, moments: Moments, settings: AdamWSettings) -> tuple[torch.Tensor, Moments]:
    """One step of torch.optim.AdamW (arXiv:1711.05101): the weight [N] and the moments after it; what was given stays as it is.

    The decay is taken of the weight first; m and v are corrected for their bias; eps stands outside the root.

    Raises:
        ValueError: a negative number of steps, or more than float64 counts.
    """
    if not 0 <= moments.step < 2**53:
        raise ValueError(f"adamw_step: step is {moments.step}; allowed: 0 and more, the steps taken so far, below 2^53; start with 0")
    parameter = _with_gradient(weight_N, gradient_N)
    optimizer = torch.optim.AdamW(
        [parameter], lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, weight_decay=settings.weight_decay
    )
    # A step of float64: torch's own is float32, which counts no further than 2^24.
    step = torch.tensor(moments.step, dtype=torch.float64)
    state = {"step": step, "exp_avg": moments.m_N.clone(), "exp_avg_sq": moments.v_N.clone()}
    optimizer.state[parameter] = state
    optimizer.step()
    return parameter.detach(), Moments(m_N=state["exp_avg"], v_N=state["exp_avg_sq"], step=moments.step + 1)


def _with_gradient(value: torch.Tensor, gradient: torch.Tensor) -> nn.Parameter:
    """A copy as a parameter, with a copy of its gradient: torch's optimisers work in place."""
    parameter = nn.Parameter(value.detach().clone())
    parameter.grad = gradient.detach().clone()
    return parameter


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad
