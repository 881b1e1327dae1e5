"""AdamW in 8 bits: its state in float32 goes back into the same codes, and it is AdamW but for what 8 bits keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stacks.torch_qlora.optim_8bit import BLOCK_SIZE, AdamW8, requantized

SETTINGS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
SHAPES = {"large": (64, 65), "small": (3, 5)}


def _parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def _steps(optimizer: AdamW8, parameters: dict[str, nn.Parameter], first: int, last: int) -> None:
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        for parameter in parameters.values():
            rows = 10.0 ** torch.randint(-6, 2, (len(parameter), 1), generator=generator)
            parameter.grad = torch.randn(parameter.shape, generator=generator) * rows
            parameter.grad[:1] = 0  # a block of zeros
        optimizer.update(1e-2)


def _bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


def test_going_on_from_a_state_is_going_on() -> None:
    """Of the codes themselves too: 3 steps, state, and 3 more are 6 steps."""
    straight, resumed = _parameters(), _parameters()
    one, first = AdamW8(straight, **SETTINGS, paged=False), AdamW8(resumed, **SETTINGS, paged=False)
    _steps(one, straight, 0, 6)
    _steps(first, resumed, 0, 3)
    m, v = first.moments()
    again = AdamW8(resumed, **SETTINGS, paged=False)
    again.restore(m, v, first.updates)
    assert [_bits(moments) for moments in again.moments()] == [_bits(m), _bits(v)]
    _steps(again, resumed, 3, 6)
    assert _bits(resumed) == _bits(straight)
    assert [_bits(moments) for moments in again.moments()] == [_bits(moments) for moments in one.moments()]
    assert again.updates == one.updates == 6


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", range(5))
def test_codes_and_absmax_are_found_again(sign: int, seed: int) -> None:
    """Also of a block whose largest value is negative: the signed map has no -1."""
    optimizer = AdamW8(_parameters(), **SETTINGS, paged=False)
    table = optimizer._optimizer.name2qmap["dynamic"]
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1, 255, (40, BLOCK_SIZE), generator=generator, dtype=torch.uint8)
    codes[:, 7] = 255 if sign > 0 else 0
    absmax = torch.rand(40, generator=generator) * 10.0 ** torch.randint(-20, 3, (40,), generator=generator)
    value = table[codes.long()] * absmax[:, None]
    found, found_absmax = requantized(value, table)
    assert np.array_equal((table[found.long()] * found_absmax[:, None]).numpy(), value.numpy())
    assert torch.equal(found, codes)


def test_a_state_of_another_optimiser_is_refused() -> None:
    parameters = _parameters()
    optimizer = AdamW8(parameters, **SETTINGS, paged=False)
    free = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match="moments of large are not what 8-bit codes stand for; allowed: a state that this optimiser gave"):
        optimizer.restore(free, {name: tensor.abs() for name, tensor in free.items()}, 3)


def test_the_codes_that_are_kept_are_the_nearest() -> None:
    """Also of moments far below their block's largest, which bitsandbytes' own look-up on a CPU takes for others."""
    parameters = _parameters()
    optimizer = AdamW8(parameters, **SETTINGS, paged=False)
    generator = torch.Generator().manual_seed(3)
    gradient = torch.randn(SHAPES["large"], generator=generator) * 10.0 ** (-8 * torch.rand(SHAPES["large"], generator=generator))
    parameters["large"].grad, parameters["small"].grad = gradient, torch.ones(SHAPES["small"])
    optimizer.update(1e-2)
    beta1, beta2 = (float(np.float32(SETTINGS[name])) for name in ("beta1", "beta2"))
    fresh = {"dynamic": (1 - beta1) * gradient.double(), "udynamic": (1 - beta2) * gradient.double() ** 2}
    for kept, (name, exact) in zip(optimizer.moments(), fresh.items(), strict=True):
        table = optimizer._optimizer.name2qmap[name].double()
        padding = (0, -exact.numel() % BLOCK_SIZE)
        blocks, found = (nn.functional.pad(one.reshape(-1).double(), padding).view(-1, BLOCK_SIZE) for one in (exact, kept["large"]))
        absmax = blocks.abs().amax(dim=1, keepdim=True)
        nearest = (blocks[..., None] - table * absmax[..., None]).abs().amin(dim=-1)
        roundings = 8 * 2.0**-24 * absmax  # of moment, quotient and product
        assert bool(((found - blocks).abs() <= nearest + roundings).all()), name


def test_it_is_adamw_but_for_the_codes() -> None:
    """The first update knows no old codes: m and v are exact, so the step is AdamW's; the decay comes first (arXiv:1711.05101)."""
    parameters = _parameters()
    before = {name: parameter.detach().double().numpy() for name, parameter in parameters.items()}
    _steps(AdamW8(parameters, **SETTINGS, paged=False), parameters, 0, 1)
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        gradient = parameter.grad.double().numpy()
        update = 1e-2 * gradient / (np.abs(gradient) + 1e-8)
        exact = before[name] * (1 - 1e-2 * 0.1) - update
        roundings = 16 * 2.0**-24  # one for each operation on the weight and on the update
        assert np.all(np.abs(parameter.detach().numpy() - exact) <= roundings * (np.abs(before[name]) + np.abs(update)))


def test_every_step_is_adamw_of_the_state_that_it_had() -> None:
    """m and v as the codes stand for them before a step; the step's own are in float32, whatever is then kept of them.

    beta1 and beta2 are float32's, also in the corrections.
    """
    beta1, beta2 = float(np.float32(SETTINGS["beta1"])), float(np.float32(SETTINGS["beta2"]))
    parameters = _parameters()
    optimizer = AdamW8(parameters, **SETTINGS, paged=False)
    for number in range(8):
        m, v = ({name: moment.double() for name, moment in moments.items()} for moments in optimizer.moments())
        before = {name: parameter.detach().double() for name, parameter in parameters.items()}
        _steps(optimizer, parameters, number, number + 1)
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            gradient = parameter.grad.double()
            first, second = beta1 * m[name] + (1 - beta1) * gradient, beta2 * v[name] + (1 - beta2) * gradient**2
            of_first = beta1 * m[name].abs() + (1 - beta1) * gradient.abs()
            root = (second / (1 - beta2 ** (number + 1))).sqrt() + 1e-8
            scale = 1e-2 / (1 - beta1 ** (number + 1)) / root
            exact = before[name] * (1 - 1e-2 * 0.1) - scale * first
            roundings = 20 * 2.0**-24  # as of adamw_step's formula: each operation's, those of a sum of its terms' size
            assert bool(((parameter.detach() - exact).abs() <= roundings * (before[name].abs() + scale * of_first)).all()), (name, number)
