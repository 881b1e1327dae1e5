"""AdamW with m and v in 8 bits, as bitsandbytes keeps them (arXiv:2110.02861); a state can be taken in float32 and given back exactly.

Legend: N elements of a parameter, B blocks of 256 of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW8bit
from torch import nn

from stacks.torch_qlora.optim import AdamWSettings, Moments

BLOCK_SIZE = 256
"""Elements that share an absmax; bitsandbytes' own, and no parameter of it."""

_STATES = (("state1", "absmax1", "qmap1"), ("state2", "absmax2", "qmap2"))
"""Where bitsandbytes has codes, absmax and map of m and of v."""

_LAST_STEP = 2**24
"""A step at which beta^step is 0 beside 1, so that bitsandbytes corrects no bias; a 32-bit integer to its kernel."""

_ULPS = (0, -1, 1, -2, 2)
"""How far absmax may lie from the quotient that is rounded to find it."""


class AdamW8:
    """`optim.AdamW`, with the moments of every parameter of 4,096 elements and more in 8 bits; smaller ones stay in float32.

    bitsandbytes' CUDA kernel applies the decay after the step and not before, and takes the powers in 1 - beta^step by an approximate
    intrinsic, which costs 4e-5 of an early update: so the decay is applied here and the biases are corrected here, in float64,

        lr m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + eps) = lr c / (1 - beta1^n) m / (sqrt(v) + c eps),    c = sqrt(1 - beta2^n)

    and bitsandbytes' own are off. Its kernel has beta1 and beta2 as float32 holds them, and 1 - beta2 of that: so they are rounded once,
    here, and are the same everywhere (0.999 is 0.99900001, and 1 - 0.999 would be 1.3e-5 of itself off).

    On a CPU bitsandbytes looks codes up on a grid of 2^-15: what is smaller than that, beside its block's absmax, gets a code that may
    stand for 48 times as much (docs/upstream/bitsandbytes_cpu_nested_lookup.py). There the step is taken here, and codes are searched
    exactly.

    Args:
        paged: m and v lie in memory that CUDA moves to the host when it runs short.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, beta1: float, beta2: float, eps: float, weight_decay: float, paged: bool
    ) -> None:
        self.updates = 0
        self._parameters, self._weight_decay = dict(parameters), weight_decay
        beta1, beta2 = (float(torch.tensor(beta, dtype=torch.float32)) for beta in (beta1, beta2))
        self._beta1, self._beta2, self._eps = beta1, beta2, eps
        self._on_host = not any(parameter.is_cuda for parameter in parameters.values())
        self._optimizer = AdamW8bit(list(parameters.values()), betas=(beta1, beta2), eps=eps, weight_decay=0.0, is_paged=paged)
        self._optimizer.initialized = True  # else the first step asks for overrides of layers, by modules' names
        for index, parameter in enumerate(parameters.values()):
            self._optimizer.init_state(self._optimizer.param_groups[0], parameter, 0, index)

    @torch.no_grad()
    def update(self, lr: float) -> None:
        """One step, with the parameters' gradients."""
        self.updates += 1
        root = math.sqrt(1 - self._beta2**self.updates)
        rate, eps = lr * root / (1 - self._beta1**self.updates), self._eps * root
        self._optimizer.param_groups[0] |= {"lr": rate, "eps": eps}
        for name, parameter in self._parameters.items():
            parameter.mul_(1 - lr * self._weight_decay)
            self._state(name)["step"] = _LAST_STEP
        if self._on_host:
            for name, parameter in self._parameters.items():
                self._take(name, parameter, rate, eps)
        else:
            self._optimizer.step()

    def moments(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """m and v by name: the float32 values that the codes stand for, which is all that the next step takes of them."""
        m, v = ({name: _widened(self._state(name), keys) for name in self._parameters} for keys in _STATES)
        return m, v

    def restore(self, m: Mapping[str, torch.Tensor], v: Mapping[str, torch.Tensor], updates: int) -> None:
        """Goes on from m and v that `moments` gave, after so many updates.

        Raises:
            ValueError: values that no 8-bit state stands for.
        """
        self.updates = updates
        for given, keys in zip((m, v), _STATES, strict=True):
            for name in self._parameters:
                _narrow(self._state(name), keys, given[name], name)

    def _take(self, name: str, parameter: nn.Parameter, rate: float, eps: float) -> None:
        """The step of one parameter on a CPU, after its decay."""
        assert parameter.grad is not None
        state, gradient = self._state(name), parameter.grad
        m, v = (_widened(state, keys) for keys in _STATES)
        m.mul_(self._beta1).add_(gradient, alpha=1 - self._beta1)
        v.mul_(self._beta2).addcmul_(gradient, gradient, value=1 - self._beta2)
        parameter.addcdiv_(m, v.sqrt().add_(eps), value=-rate)
        for value, keys in zip((m, v), _STATES, strict=True):
            _store(state, keys, value)

    def _state(self, name: str) -> dict[str, torch.Tensor | int]:
        state: dict[str, torch.Tensor | int] = self._optimizer.state[self._parameters[name]]
        return state


def adamw_step(weight_N: torch.Tensor, gradient_N: torch.Tensor, moments: Moments, settings: AdamWSettings) -> tuple[torch.Tensor, Moments]:
    """`optim.adamw_step` by AdamW8: from moments that such a state gave, to those that it then keeps.

    Raises:
        ValueError: moments that no 8-bit state stands for; a negative number of steps, or more than float64 counts.
    """
    if not 0 <= moments.step < 2**53:
        raise ValueError(f"adamw_8bit_step: step is {moments.step}; allowed: 0 and more, the steps taken so far, below 2^53; start with 0")
    parameter = nn.Parameter(weight_N.detach().clone())
    parameter.grad = gradient_N.detach().clone()
    named = {"weight": parameter}
    optimizer = AdamW8(named, beta1=settings.beta1, beta2=settings.beta2, eps=settings.eps, weight_decay=settings.weight_decay, paged=False)
    optimizer.restore({"weight": moments.m_N}, {"weight": moments.v_N}, moments.step)
    optimizer.update(settings.lr)
    (m_N,), (v_N,) = (tuple(one.values()) for one in optimizer.moments())
    return parameter.detach(), Moments(m_N=m_N, v_N=v_N, step=optimizer.updates)


def _widened(state: Mapping[str, torch.Tensor | int], keys: tuple[str, str, str]) -> torch.Tensor:
    codes, absmax, table = (state.get(key) for key in keys)
    assert isinstance(codes, torch.Tensor)
    if not isinstance(absmax, torch.Tensor) or not isinstance(table, torch.Tensor):
        return codes  # a small parameter's, in float32
    return _dequantized(codes, absmax, table)


def _dequantized(codes: torch.Tensor, absmax_B: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    state = functional.QuantState(absmax=absmax_B, code=table, blocksize=BLOCK_SIZE, dtype=torch.float32)
    # Paged codes are the host's to torch, wherever they lie.
    value: torch.Tensor = functional.dequantize_blockwise(codes.to(absmax_B.device), state)
    return value


def _store(state: Mapping[str, torch.Tensor | int], keys: tuple[str, str, str], value: torch.Tensor) -> None:
    """The nearest codes of a parameter's moments; a small one's are float32, and in their place already."""
    codes, absmax_B, table = (state.get(key) for key in keys)
    assert isinstance(codes, torch.Tensor)
    if isinstance(absmax_B, torch.Tensor) and isinstance(table, torch.Tensor):
        blocks = _blocks(value)
        absmax_B.copy_(blocks.abs().amax(dim=1))
        codes.copy_(_nearest(blocks, absmax_B, table).reshape(-1)[: value.numel()].view(value.shape))


def _blocks(value: torch.Tensor) -> torch.Tensor:
    """[B, 256]; zeros fill the last one."""
    flat = value.reshape(-1)
    return nn.functional.pad(flat, (0, -flat.numel() % BLOCK_SIZE)).view(-1, BLOCK_SIZE)


def _narrow(state: dict[str, torch.Tensor | int], keys: tuple[str, str, str], value: torch.Tensor, name: str) -> None:
    codes, absmax_B, table = (state.get(key) for key in keys)
    assert isinstance(codes, torch.Tensor)
    if not isinstance(absmax_B, torch.Tensor) or not isinstance(table, torch.Tensor):
        codes.copy_(value)
        return
    value = value.to(absmax_B.device)
    found_codes, found_absmax_B = requantized(value, table)
    wrong_N = _dequantized(found_codes, found_absmax_B, table) != value
    if bool(wrong_N.any()):
        raise ValueError(
            f"{int(wrong_N.sum())} of {value.numel()} moments of {name} are not what 8-bit codes stand for; allowed: a state that "
            "this optimiser gave, on such a device; resume with the optimiser that the checkpoint was made with"
        )
    codes.copy_(found_codes)
    absmax_B.copy_(found_absmax_B)


def requantized(value: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (of value's shape) and absmax [B] whose products are the given values, where there are such.

    Quantising again does not find them: the signed map ends at -0.993 and 1, so a block whose largest value is negative would come out
    with a smaller absmax. Its absmax is that value over -0.993 instead, to within a rounding of the product: the neighbours are tried.
    """
    blocks = _blocks(value)
    top_B = blocks.abs().amax(dim=1)
    quotient_B = top_B / table[0].abs().clamp(min=torch.finfo(torch.float32).tiny)
    best_codes, best_absmax_B = _nearest(blocks, top_B, table), top_B
    for ulps in _ULPS if table[0] < 0 else ():
        open_B = (table[best_codes.long()] * best_absmax_B[:, None] != blocks).any(dim=1)
        absmax_B = torch.where(open_B, _moved(quotient_B, ulps), best_absmax_B)
        best_codes = torch.where(open_B[:, None], _nearest(blocks, absmax_B, table), best_codes)
        best_absmax_B = absmax_B
    return best_codes.reshape(-1)[: value.numel()].view(value.shape), best_absmax_B


def _nearest(blocks: torch.Tensor, absmax_B: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The nearest code of each value; any of a block of zeros."""
    scaled = blocks / absmax_B.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return torch.bucketize(scaled, 0.5 * (table[:-1] + table[1:]), out_int32=True).to(torch.uint8)


def _moved(x: torch.Tensor, ulps: int) -> torch.Tensor:
    """x, some floating-point numbers further."""
    for _ in range(abs(ulps)):
        x = torch.nextafter(x, torch.full_like(x, float("inf") if ulps > 0 else 0.0))
    return x
