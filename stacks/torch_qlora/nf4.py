"""NF4 weights through bitsandbytes, held to the contract's rule.

The rule is `contract/worker/operations.py` (QLoRA, arXiv:2305.14314, sections 2 and 3). bitsandbytes
0.50.2 departs from it, or from itself, in places; each has a guard of its own below that says why.

Shape legend: O out_features, I in_features, E elements (O * I), P packed bytes, B blocks, S blocks of
absmax (256 each), T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from bitsandbytes import functional
from torch.autograd.function import once_differentiable

from contract.worker.operation import NESTED_BLOCK_SIZE

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
SMALLEST_ABSMAX = 1e-38
"""The smallest absmax whose reciprocal bitsandbytes takes; below it, this is taken in its place."""
LARGEST_CPU_KERNEL_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A weight in NF4: packed [P] uint8 (the earlier element in the high nibble), absmax [B] float32.

    flushed: what `kernel_flushes` says of absmax, which waits for the device; None: it is asked each time.
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    flushed: bool | None = None


@cache
def values(device: torch.device) -> torch.Tensor:
    """The 16 NF4 values, float32, ascending."""
    # bitsandbytes' own default device is "cuda", also where there is none.
    return functional.get_4bit_type("nf4", device=device)  # type: ignore[no-any-return]


@cache
def dynamic_map(device: torch.device) -> torch.Tensor:
    """The signed dynamic 8-bit map of nested absmax (arXiv:2110.02861), [256] float32, ascending."""
    return functional.create_dynamic_map().to(device)  # type: ignore[no-any-return]


# Quantise


def quantize(weight: torch.Tensor, block_size: int) -> Quantized:
    """code = nearest NF4 value to w * f32(1 / max(absmax, 1e-38)), the lower one at a midpoint, per block of the flattened weight.

    Args:
        weight: float32, any shape.

    Raises:
        ValueError: a block size that NF4 kernels lack, or a weight that is not finite.
    """
    require_block_size(block_size)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("nf4: the weight holds NaN or infinity, which NF4 can't; look for the layer that overflowed")
    elements = weight.numel()
    whole_blocks = _pad_to_whole_blocks(weight.reshape(-1), block_size)
    packed, state = functional.quantize_4bit(whole_blocks, blocksize=block_size, quant_type="nf4")
    absmax = _unflushed(state.absmax, whole_blocks, block_size)
    packed = _requantize(packed.reshape(-1), whole_blocks, absmax, block_size)
    return Quantized(packed=_cut_packed(packed, elements), absmax=absmax)


def unpack(packed: torch.Tensor, elements: int) -> torch.Tensor:
    """The codes of packed nibbles, one a byte, [E] uint8."""
    return torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1)[:elements]


def require_block_size(block_size: int) -> None:
    """Raises ValueError unless bitsandbytes has kernels for this block size."""
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"nf4: block_size is {block_size}; allowed: {', '.join(map(str, BLOCK_SIZES))}")


def _pad_to_whole_blocks(flat: torch.Tensor, block_size: int) -> torch.Tensor:
    """Guard: bitsandbytes on CPU divides a tail block by its absmax, where full blocks (and CUDA) multiply by the reciprocal.

    Codes near a midpoint then differ, and a zero tail block gets absmax 1e-38 instead of 0. Zeros in
    the tail's place change neither its absmax nor the codes that are kept.
    """
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block_size))


def _unflushed(absmax: torch.Tensor, whole_blocks: torch.Tensor, block_size: int) -> torch.Tensor:
    """Guard: bitsandbytes' CUDA kernel, built with fast math, stores a subnormal absmax as 0."""
    return absmax if absmax.device.type == "cpu" else whole_blocks.view(-1, block_size).abs().amax(dim=1)


def _requantize(packed: torch.Tensor, whole_blocks: torch.Tensor, absmax: torch.Tensor, block_size: int) -> torch.Tensor:
    """Quantises by the rule, in torch, the blocks that bitsandbytes' kernel on this device may not."""
    chosen = _blocks_off_the_rule(absmax).nonzero()[:, 0]
    if chosen.numel() == 0:
        return packed
    reciprocal = 1.0 / absmax[chosen].clamp(min=SMALLEST_ABSMAX)
    scaled = whole_blocks.view(-1, block_size)[chosen] * reciprocal[:, None]
    codes = _nearest(scaled, values(packed.device)).reshape(-1, 2)
    packed = packed.clone()
    packed.view(-1, block_size // 2)[chosen] = (codes[:, 0] << 4 | codes[:, 1]).reshape(-1, block_size // 2)
    return packed


def _blocks_off_the_rule(absmax: torch.Tensor) -> torch.Tensor:
    """Guard: which blocks bitsandbytes quantises otherwise than the rule, [B] bool.

    CUDA's kernel takes an approximate reciprocal of absmax (it is built with fast math), which gives inputs within 2 ulp of a
    midpoint other codes than CPU's; and it has no lower limit on absmax, so that a zero block is 0 * inf = NaN, code 0, where
    the rule says 7. CPU's kernel keeps to the rule; blocks under the limit are quantised again there too, and come out the same.
    """
    if absmax.device.type == "cpu":
        return absmax < SMALLEST_ABSMAX
    return torch.ones_like(absmax, dtype=torch.bool)


def _cut_packed(packed: torch.Tensor, elements: int) -> torch.Tensor:
    """Guard: with an odd number of elements bitsandbytes' last nibble is the code of a zero (7); the rule says 0."""
    packed = packed[: (elements + 1) // 2].clone()
    if elements % 2:
        packed[-1] &= 0xF0
    return packed


def _nearest(scaled: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Index of the table's nearest value, the lower one at a midpoint; midpoints in float32."""
    midpoints = 0.5 * (table[:-1] + table[1:])
    return torch.bucketize(scaled, midpoints, out_int32=True, right=False).to(torch.uint8)


# Nested absmax


def offset(absmax_B: torch.Tensor) -> torch.Tensor:
    """mean(absmax), a scalar, as bitsandbytes takes it."""
    return absmax_B.mean()


def nest(absmax_B: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per 256 blocks: nested_absmax = max |absmax - offset|, code = nearest dynamic map value to (absmax - offset) / nested_absmax.

    The division is a product with f32(1 / nested_absmax); the lower code at a midpoint; code 0 where
    nested_absmax is 0. The search is torch's and not bitsandbytes' quantize_blockwise, which misses the nearest value next to a
    midpoint: on CPU it looks a value up on a 16-bit grid, on CUDA it scales by an approximate reciprocal.

    Returns:
        codes [B] uint8, nested_absmax [S] float32.
    """
    centred_B = absmax_B - mean
    whole_blocks = _pad_to_whole_blocks(centred_B, NESTED_BLOCK_SIZE).view(-1, NESTED_BLOCK_SIZE)
    nested_absmax_S = whole_blocks.abs().amax(dim=1)
    codes = _nearest(whole_blocks * (1.0 / nested_absmax_S)[:, None], dynamic_map(centred_B.device))
    codes_B = codes.reshape(-1)[: centred_B.numel()]
    constant_B = (nested_absmax_S == 0).repeat_interleave(NESTED_BLOCK_SIZE)[: codes_B.numel()]
    return codes_B.masked_fill(constant_B, 0), nested_absmax_S


def unnest(codes_B: torch.Tensor, nested_absmax_S: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """absmax = f32(f32(map[code] * nested_absmax) + offset), [B] float32."""
    state = functional.QuantState(
        absmax=nested_absmax_S, code=dynamic_map(codes_B.device), blocksize=NESTED_BLOCK_SIZE, dtype=torch.float32
    )
    return functional.dequantize_blockwise(codes_B, state) + mean  # type: ignore[no-any-return]


# Dequantise


def dequantize(quantized: Quantized, *, block_size: int, out_features: int, in_features: int) -> torch.Tensor:
    """weight = f32(nf4[code] * absmax of its block), [O, I] float32.

    Raises:
        ValueError: a block size that NF4 kernels lack, or bytes or blocks that are not the weight's.
    """
    _require_fit(quantized, block_size=block_size, elements=out_features * in_features)
    if _cpu_kernel_is_wrong_for(quantized.packed.device, in_features, block_size):
        return _dequantize_whole_blocks(quantized, block_size=block_size, elements=out_features * in_features).view(
            out_features, in_features
        )
    if kernel_flushes(quantized.absmax) if quantized.flushed is None else quantized.flushed:
        flat = values(quantized.packed.device)[unpack(quantized.packed, out_features * in_features).int()]
        return (flat * quantized.absmax.repeat_interleave(block_size)[: flat.numel()]).view(out_features, in_features)
    state = _state(quantized.absmax, block_size=block_size, shape=(out_features, in_features))
    # A weight of one byte comes back transposed: bitsandbytes takes its [1, 1] for an older layout.
    return functional.dequantize_4bit(quantized.packed[:, None], state).reshape(out_features, in_features)  # type: ignore[no-any-return]


def linear(
    x_TI: torch.Tensor, quantized: Quantized, bias_O: torch.Tensor | None, *, block_size: int, out_features: int, in_features: int
) -> torch.Tensor:
    """y = x dequantize(packed, absmax)^T + bias, [T, O] in x's dtype, differentiable in x; `frozen_linear` says what is kept.

    Raises:
        ValueError: as `dequantize`.
    """
    weight = partial(dequantize, quantized, block_size=block_size, out_features=out_features, in_features=in_features)
    return frozen_linear(x_TI, lambda: weight().to(x_TI.dtype), bias_O)


class _FrozenLinear(torch.autograd.Function):
    """y = x weight()^T + bias, differentiable in x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Callable[[], torch.Tensor], bias_O: torch.Tensor | None) -> torch.Tensor:
        """[..., O] of [..., I]."""
        ctx.weight = weight
        return torch.nn.functional.linear(x, weight(), bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """bar weight(), [..., I]."""
        return torch.matmul(bar, ctx.weight()), None, None


frozen_linear: Callable[..., torch.Tensor] = _FrozenLinear.apply
"""(x, weight, bias): y = x weight()^T + bias. The weight [O, I] is made by a function, once more in the backward pass, so that autograd
keeps no dequantised weight. bitsandbytes' matmul_4bit computes the same, with its dequantisation; this one's holds for every shape."""


def kernel_flushes(absmax: torch.Tensor) -> bool:
    """Guard: bitsandbytes' CUDA kernel, built with fast math, reads a subnormal absmax as 0, and gives 0 for a subnormal product."""
    if absmax.device.type == "cpu":
        return False
    table = values(absmax.device).abs()
    smallest = absmax * table[table > 0].min()
    return bool(((smallest < torch.finfo(torch.float32).smallest_normal) & (absmax > 0)).any())


def _cpu_kernel_is_wrong_for(device: torch.device, in_features: int, block_size: int) -> bool:
    """Guard: bitsandbytes' CPU kernel with AVX512 dequantises with the wrong absmax where rows are no whole number of blocks.

    (60, 160) with blocks of 64 and (64, 576) with blocks of 128 are such shapes. It is right for rows
    of one block each, which is what `_dequantize_whole_blocks` gives it.
    """
    return device.type == "cpu" and in_features % block_size != 0


def _dequantize_whole_blocks(quantized: Quantized, *, block_size: int, elements: int) -> torch.Tensor:
    """The flat weight [E], dequantised as rows of one block each."""
    blocks = quantized.absmax.numel()
    packed = torch.nn.functional.pad(quantized.packed, (0, blocks * block_size // 2 - quantized.packed.numel()))
    state = _state(quantized.absmax, block_size=block_size, shape=(blocks, block_size))
    return functional.dequantize_4bit(packed[:, None], state).reshape(-1)[:elements]  # type: ignore[no-any-return]


def _state(absmax_B: torch.Tensor, *, block_size: int, shape: tuple[int, int]) -> functional.QuantState:
    """bitsandbytes' description of a single-quantised float32 weight."""
    kernel_block, repeats = _kernel_blocks(absmax_B.device, block_size)
    if repeats > 1:
        absmax_B = absmax_B.repeat_interleave(repeats)
    return functional.QuantState(
        absmax=absmax_B,
        shape=torch.Size(shape),
        code=values(absmax_B.device),
        blocksize=kernel_block,
        quant_type="nf4",
        dtype=torch.float32,
    )


def _kernel_blocks(device: torch.device, block_size: int) -> tuple[int, int]:
    """Guard: the block size to ask of the kernel, and how many such blocks share an absmax.

    For blocks of 2,048 and more, bitsandbytes on CPU with AVX512 leaves its kernel for a torch.compile
    of each new shape (4 s apiece, and it needs a C++ compiler). Smaller blocks with the same absmax
    are the same products.
    """
    if device.type != "cpu" or block_size <= LARGEST_CPU_KERNEL_BLOCK:
        return block_size, 1
    return LARGEST_CPU_KERNEL_BLOCK, block_size // LARGEST_CPU_KERNEL_BLOCK


def _require_fit(quantized: Quantized, *, block_size: int, elements: int) -> None:
    """The kernels read past the end of what is too short, so sizes are checked here."""
    require_block_size(block_size)
    wanted = (elements + 1) // 2, -(-elements // block_size)
    got = quantized.packed.numel(), quantized.absmax.numel()
    if got != wanted:
        raise ValueError(
            f"nf4: got {got[0]} packed bytes and {got[1]} absmax; {elements} elements in blocks of {block_size} are {wanted[0]} bytes and "
            f"{wanted[1]} absmax; give the weight's own out_features, in_features and block_size"
        )
