"""exp and log out of tinygrad's own additions, products and bit casts, in float32 and float64.

tinygrad 0.14 computes exp(x) as exp2(x * log2(e)): in float32 it is 61 units in the last place off at
|x| = 72, in float64 1e-13 relative. A bound on a softmax would be mostly that. These are within one
unit (capabilities.json says exactly), and stay so whether or not the compiler contracts a product and
a sum to a fused multiply-add: each product whose error matters is exact.

tinygrad simplifies floats as if they were exact, so the order of operations is part of the algorithm:

- x * c0 + x * c1 becomes x * (c0 + c1), and (x + c) + y becomes (x + y) + c (uop/symbolic.py);
- x + (y + z) is written to C without its parentheses, which is (x + y) + z (renderer/cstyle.py);
- x / (1 + x) becomes 1 - 1 / (1 + x) (uop/symbolic.py).

So a sum stands only to the left of a plus, and a choice hides what must not be moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType


@dataclass(frozen=True, kw_only=True)
class _Format:
    """What depends on the dtype. ln 2 = ln2_high + ln2_low; ln2_high is short enough that n * ln2_high is exact."""

    integer: DType
    mantissa_bits: int
    exponent_bias: int
    ln2_high: float
    ln2_low: float
    exp_low: float
    exp_high: float
    exp_degree: int
    sqrt_half_bits: int
    subnormal_shift: int
    log_coefficients: tuple[float, ...]


_FORMATS = {
    # constants of fdlibm's e_expf.c and e_logf.c, the last set in FreeBSD's arrangement
    dtypes.float32: _Format(
        integer=dtypes.int32, mantissa_bits=23, exponent_bias=127,
        ln2_high=float.fromhex("0x1.62e4p-1"), ln2_low=float.fromhex("0x1.7f7d1cp-20"),
        exp_low=-106.0, exp_high=90.0, exp_degree=7,
        sqrt_half_bits=0x3F3504F3, subnormal_shift=25,
        log_coefficients=tuple(float.fromhex(text) for text in ("0x1.555554p-1", "0x1.999c26p-2", "0x1.23d3dcp-2", "0x1.f13c4cp-3")),
    ),
    # constants of fdlibm's e_exp.c and e_log.c
    dtypes.float64: _Format(
        integer=dtypes.int64, mantissa_bits=52, exponent_bias=1023,
        ln2_high=6.93147180369123816490e-01, ln2_low=1.90821492927058770002e-10,
        exp_low=-748.0, exp_high=711.0, exp_degree=13,
        sqrt_half_bits=0x3FE6A09E667F3BCD, subnormal_shift=54,
        log_coefficients=(
            6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01,
            1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01,
        ),
    ),
}  # fmt: skip


def exp(x: Tensor) -> Tensor:
    """e^x, element by element, in the dtype of x (float32 or float64), subnormal results included.

    x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite, Software Manual for the Elementary Functions,
    1980); e^r from its Taylor series; times 2^n.
    """
    form = _FORMATS[x.dtype]
    # NaN takes the lower end too, so that the cast to an integer is defined
    inside = (x > form.exp_low).where((x < form.exp_high).where(x, form.exp_high), form.exp_low)
    scaled = inside * (1 / math.log(2))
    n = (scaled + (scaled < 0).where(-0.5, 0.5).cast(x.dtype)).cast(dtypes.int32)
    # n twice, written in two ways: tinygrad would add up the constants of n * high + n * low
    r = (inside - n.cast(x.dtype) * form.ln2_high) - (n * 2).cast(x.dtype) * (form.ln2_low / 2)
    series = r * (1 / math.factorial(form.exp_degree))
    for degree in range(form.exp_degree - 1, 1, -1):
        series = (series + 1 / math.factorial(degree)) * r
    mantissa = (series * r + r) + 1
    # 2^n in two halves: one of them alone would be subnormal, or infinite, before the product is
    half = n // 2
    value = (mantissa * _power_of_two(half, form, x.dtype)) * _power_of_two(n - half, form, x.dtype)
    value = (x == x).where(value, x)
    return _with_derivative(value, x, value)


def log(x: Tensor) -> Tensor:
    """ln x, element by element, in the dtype of x (float32 or float64).

    x = 2^k m with m in [sqrt(1/2), sqrt(2)), f = m - 1, s = f / (2 + f), ln m = 2 artanh s
    (fdlibm, e_log.c).
    """
    form = _FORMATS[x.dtype]
    one_bits, mantissa_mask = form.exponent_bias << form.mantissa_bits, (1 << form.mantissa_bits) - 1
    subnormal = x < 2.0 ** (1 - form.exponent_bias)
    bits = subnormal.where(x * 2.0**form.subnormal_shift, x).bitcast(form.integer) + (one_bits - form.sqrt_half_bits)
    k = (bits >> form.mantissa_bits) - form.exponent_bias - subnormal.where(form.subnormal_shift, 0)
    m = ((bits & mantissa_mask) + form.sqrt_half_bits).bitcast(x.dtype)
    # m - 1 is exact, (... + m) - 1 is not
    f = (x < math.inf).where(m - 1, m)
    s = f / (f + 2)
    z = s * s
    series = z * form.log_coefficients[-1]
    for coefficient in reversed(form.log_coefficients[:-1]):
        series = (series + coefficient) * z
    half_square = f * f * 0.5
    exponent = k.cast(x.dtype)
    value = (((s * (half_square + series) + exponent * form.ln2_low) - half_square) + f) + exponent * form.ln2_high
    value = (x < math.inf).where(value, x)
    value = (x == 0).where(-math.inf, (x < 0).where(math.nan, value))
    return _with_derivative(value, x, 1 / x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), element by element, in the dtype of x (float32 or float64); of a negative x as e^x / (1 + e^x).

    So no exponential overflows. The derivative is sigmoid(x) sigmoid(-x), in which nothing cancels.
    """
    decay = exp((x < 0).where(x, -x))
    # the choice hides that the numerator may be decay: 1 - 1 / (1 + decay), in its place, loses a small one
    value, of_minus_x = (x < 0).where(decay, 1) / (decay + 1), (x < 0).where(1, decay) / (decay + 1)
    return _with_derivative(value, x, value * of_minus_x)


def _power_of_two(n: Tensor, form: _Format, dtype: DType) -> Tensor:
    return ((n.cast(form.integer) + form.exponent_bias) << form.mantissa_bits).bitcast(dtype)


def _with_derivative(value: Tensor, x: Tensor, derivative: Tensor) -> Tensor:
    """`value`, whose gradient with respect to x is `derivative`.

    Automatic differentiation sees nothing through a bit cast. x - x.detach() is a zero with gradient one,
    which tinygrad folds away, so that it costs no rounding and an infinite x makes no NaN.
    """
    return value.detach() + (x - x.detach()) * derivative.detach()
