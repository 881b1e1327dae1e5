"""Gradient clipping and the AdamW step.

Numbers are tensors of shape [1], made on the host in float64 and rounded once: a step with another learning rate runs the same kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinygrad import Tensor

_NORM_EPS = 1e-6


def clip_gradients(gradients: Sequence[Tensor], max_norm_1: Tensor) -> tuple[Tensor, list[Tensor]]:
    """norm = sqrt(sum of squares over all gradients); each times min(1, max_norm / (norm + 1e-6)) (arXiv:1211.5063, as PyTorch has it).

    Args:
        gradients: float32 or float64, of any shapes; accumulated in that dtype.
        max_norm_1: the same dtype.

    Returns:
        norm, of shape [1], before clipping; the clipped gradients. Where the norm is NaN, they all are.
    """
    norm_1 = square_sum(gradients).sqrt()
    scale_1 = clip_scale(norm_1, max_norm_1)
    return norm_1, [(gradient.reshape(-1) * scale_1).reshape(gradient.shape) for gradient in gradients]


def square_sum(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of squares over all gradients, of shape [1]."""
    flat = [gradient.reshape(-1) for gradient in gradients]
    squares = [(one * one).sum(axis=0, keepdim=True, dtype=one.dtype) for one in flat]
    return squares[0].usum(*squares[1:])


def clip_scale(norm_1: Tensor, max_norm_1: Tensor) -> Tensor:
    """min(1, max_norm / (norm + 1e-6)), of shape [1]."""
    scale_1 = max_norm_1 / (norm_1 + _NORM_EPS)
    # not minimum: NaN must stay
    return (scale_1 > 1).where(1, scale_1)


def adamw_numbers(step: int, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float) -> dict[str, float]:
    """The numbers of the step that follows `step` steps, by the names of `adamw_step`'s `numbers`."""
    n = step + 1
    return {
        "decay": 1 - lr * weight_decay,
        "beta1": beta1,
        "beta1_rest": 1 - beta1,
        "beta2": beta2,
        "beta2_rest": 1 - beta2,
        "lr": lr,
        "correction1": 1 - beta1**n,
        "correction2": 1 - beta2**n,
        "eps": eps,
    }


def adamw_step(weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, numbers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW (arXiv:1711.05101, in the arrangement that torch.optim.AdamW documents), element by element.

        m' = beta1 m + (1 - beta1) g        v' = beta2 v + (1 - beta2) g^2
        w' = w (1 - lr weight_decay) - lr (m' / (1 - beta1^n)) / (sqrt(v' / (1 - beta2^n)) + eps)

    Args:
        weight, gradient, m, v: float32 or float64, of one shape.
        numbers: as `adamw_numbers` names them, each of shape [1] in that dtype.

    Returns:
        weight, m and v after the step.
    """
    m_next, v_next = adamw_moments(gradient, m, v, numbers)
    return adamw_weight(weight, m_next, v_next, numbers), m_next, v_next


def adamw_moments(gradient: Tensor, m: Tensor, v: Tensor, numbers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """m' and v' of `adamw_step`."""
    m_next = m * numbers["beta1"] + gradient * numbers["beta1_rest"]
    return m_next, v * numbers["beta2"] + gradient * gradient * numbers["beta2_rest"]


def adamw_weight(weight: Tensor, m_next: Tensor, v_next: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """w' of `adamw_step`."""
    denominator = (v_next / numbers["correction2"]).sqrt() + numbers["eps"]
    update = m_next / numbers["correction1"] / denominator * numbers["lr"]
    return weight * numbers["decay"] - update
