"""Gradient clipping and AdamW, by torch's own code.

Legend: N elements of a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    norm = clip(parameters, max_norm)
    return norm, [_gradient(parameter) for parameter in parameters]


def clip(parameters: Sequence[nn.Parameter], max_norm: float) -> torch.Tensor:
    """The norm; `clip_gradients` of the parameters' own gradients, in place."""
    return nn.utils.clip_grad_norm_(parameters, max_norm)


def adamw_step(weight_N: torch.Tensor, gradient_N: torch.Tensor, moments: Moments, settings: AdamWSettings) -> tuple[torch.Tensor, Moments]:
    """One step of torch.optim.AdamW (arXiv:1711.05101): the weight [N] and the moments after it; what was given stays as it is.

    The decay is taken of the weight first; m and v are corrected for their bias; eps stands outside the root.

    Raises:
        ValueError: a negative number of steps, or more than float64 counts.
    """
    if not 0 <= moments.step < 2**53:
        raise ValueError(f"adamw_step: step is {moments.step}; allowed: 0 and more, the steps taken so far, below 2^53; start with 0")
    parameter = _with_gradient(weight_N, gradient_N)
    beta1, beta2, eps, weight_decay = settings.beta1, settings.beta2, settings.eps, settings.weight_decay
    optimizer = AdamW({"weight": parameter}, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    optimizer.restore({"weight": moments.m_N}, {"weight": moments.v_N}, moments.step)
    optimizer.update(settings.lr)
    (m_N,), (v_N,) = (tuple(one.values()) for one in optimizer.moments())
    return parameter.detach(), Moments(m_N=m_N, v_N=v_N, step=optimizer.updates)


class AdamW:
    """torch.optim.AdamW over named parameters, in place, with a state that can be taken and given.

    The decay applies to each of them: LoRA's matrices are weights, and no norm or bias is trained. `updates` counts the updates done.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
        self.updates = 0
        self._parameters = dict(parameters)
        # One kernel for many tensors on a GPU, the same arithmetic; on a CPU torch would loop all the same.
        on_gpu = any(parameter.is_cuda for parameter in parameters.values())
        self._optimizer = torch.optim.AdamW(
            list(parameters.values()), betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, foreach=on_gpu
        )
        zeros = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.restore(zeros, zeros, 0)

    def update(self, lr: float) -> None:
        """One step, with the parameters' gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self.updates += 1

    def moments(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """m and v by name; the tensors that later updates change."""
        states = {name: self._optimizer.state[parameter] for name, parameter in self._parameters.items()}
        return {name: one["exp_avg"] for name, one in states.items()}, {name: one["exp_avg_sq"] for name, one in states.items()}

    def restore(self, m: Mapping[str, torch.Tensor], v: Mapping[str, torch.Tensor], updates: int) -> None:
        """Goes on from copies of m and v, after so many updates."""
        self.updates = updates
        for name, parameter in self._parameters.items():
            # A step of float64: torch's own is float32, which counts no further than 2^24.
            step = torch.tensor(updates, dtype=torch.float64)
            moments = {"exp_avg": m[name].clone(), "exp_avg_sq": v[name].clone()}
            self._optimizer.state[parameter] = {"step": step, **moments}


def _with_gradient(value: torch.Tensor, gradient: torch.Tensor) -> nn.Parameter:
    """A copy as a parameter, with a copy of its gradient: torch's optimisers work in place."""
    parameter = nn.Parameter(value.detach().clone())
    parameter.grad = gradient.detach().clone()
    return parameter


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad
