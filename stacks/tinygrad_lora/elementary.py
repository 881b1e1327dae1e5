"""exp, log, tanh and erf out of tinygrad's own additions, products, divisions and bit casts, in float32 and float64.

tinygrad 0.14 computes exp(x) as exp2(x * log2(e)): in float32 it is 61 units in the last place off at
|x| = 72, in float64 1e-13 relative. A bound on a softmax would be mostly that. Its tanh is 5 % off at 1e-6,
its erf 1e-7 everywhere. These are within two units (capabilities.json says exactly), and stay so whether or
not the compiler contracts a product and a sum to a fused multiply-add: each product whose error matters is exact.

tinygrad simplifies floats as if they were exact, so the order of operations is part of the algorithm:

- x * c0 + x * c1 becomes x * (c0 + c1), and (x + c) + y becomes (x + y) + c (uop/symbolic.py);
- x + (y + z) is written to C without its parentheses, which is (x + y) + z (renderer/cstyle.py);
- x / (1 + x) becomes 1 - 1 / (1 + x) (uop/symbolic.py).

So a sum stands only to the left of a plus, and a choice hides what must not be moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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

# Cephes, tanh.c; of x^2
_TANH_BORDER, _TANH_IS_X = 0.625, 2.0**-30
_TANH_P = (-1.61468768441708447952e3, -9.92877231001918586564e1, -9.64399179425052238628e-1)
_TANH_Q = (4.84406305325125486048e3, 2.23548839060100448583e3, 1.12811678491632931402e2, 1.0)

# fdlibm, s_erf.c; of x^2, of |x| - 1, and twice of 1 / x^2
_ERF_NEAR_END, _ERF_MIDDLE_END, _ERF_FAR_END = 0.84375, 1.25, 1 / 0.35
_ERF_OF_ONE = 8.45062911510467529297e-01
_ERF_NEAR_P = (
    1.28379167095512558561e-01, -3.25042107247001499370e-01, -2.84817495755985104766e-02, -5.77027029648944159157e-03,
    -2.37630166566501626084e-05,
)  # fmt: skip
_ERF_NEAR_Q = (
    1.0, 3.97917223959155352819e-01, 6.50222499887672944485e-02, 5.08130628187576562776e-03, 1.32494738004321644526e-04,
    -3.96022827877536812320e-06,
)  # fmt: skip
_ERF_MIDDLE_P = (
    -2.36211856075265944077e-03, 4.14856118683748331666e-01, -3.72207876035701323847e-01, 3.18346619901161753674e-01,
    -1.10894694282396677476e-01, 3.54783043256182359371e-02, -2.16637559486879084300e-03,
)  # fmt: skip
_ERF_MIDDLE_Q = (
    1.0, 1.06420880400844228286e-01, 5.40397917702171048937e-01, 7.18286544141962662868e-02, 1.26171219808761642112e-01,
    1.36370839120290507362e-02, 1.19844998467991074170e-02,
)  # fmt: skip
_ERF_FAR_P = (
    -9.86494403484714822705e-03, -6.93858572707181764372e-01, -1.05586262253232909814e+01, -6.23753324503260060396e+01,
    -1.62396669462573470355e+02, -1.84605092906711035994e+02, -8.12874355063065934246e+01, -9.81432934416914548592e+00,
)  # fmt: skip
_ERF_FAR_Q = (
    1.0, 1.96512716674392571292e+01, 1.37657754143519042600e+02, 4.34565877475229228821e+02, 6.45387271733267880336e+02,
    4.29008140027567833386e+02, 1.08635005541779435134e+02, 6.57024977031928170135e+00, -6.04244152148580987438e-02,
)  # fmt: skip
_ERF_FARTHEST_P = (
    -9.86494292470009928597e-03, -7.99283237680523006574e-01, -1.77579549177547519889e+01, -1.60636384855821916062e+02,
    -6.37566443368389627722e+02, -1.02509513161107724954e+03, -4.83519191608651397019e+02,
)  # fmt: skip
_ERF_FARTHEST_Q = (
    1.0, 3.03380607434824582924e+01, 3.25792512996573918826e+02, 1.53672958608443695994e+03, 3.19985821950859553908e+03,
    2.55305040643316442583e+03, 4.74528541206955367215e+02, -2.24409524465858183362e+01,
)  # fmt: skip


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
    # 0 is what is over -1 and of no sign: x == 0 is true of a NaN on WebGPU
    value = (x > 0).where(value, (x < 0).where(math.nan, (x > -1).where(-math.inf, x)))
    return _with_derivative(value, x, 1 / x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), element by element, in the dtype of x (float32 or float64); of a negative x as e^x / (1 + e^x).

    So no exponential overflows. The derivative is sigmoid(x) sigmoid(-x), in which nothing cancels.
    """
    decay = exp((x < 0).where(x, -x))
    # the choice hides that the numerator may be decay: 1 - 1 / (1 + decay), in its place, loses a small one
    value, of_minus_x = (x < 0).where(decay, 1) / (decay + 1), (x < 0).where(1, decay) / (decay + 1)
    return _with_derivative(value, x, value * of_minus_x)


def tanh(x: Tensor) -> Tensor:
    """tanh x, element by element, in the dtype of x (float32 or float64), with full relative precision next to 0.

    x + x^3 P(x^2) / Q(x^2) up to |x| = 0.625 (a rational approximation as in Cody and Waite, 1980, chapter 13; the coefficients are
    those of Cephes' tanh.c), 1 - q with q = 2 / (e^(2 |x|) + 1) beyond. The derivative is 1 - tanh^2 there and q (2 - q) here, in which
    nothing cancels.
    """
    magnitude = (x < 0).where(-x, x)
    square = x * x
    near = x + x * (square * (_polynomial(square, _TANH_P) / _polynomial(square, _TANH_Q)))
    q = 2 / (exp(magnitude * 2) + 1)
    far = (x < 0).where(q - 1, 1 - q)
    # NaN takes the nearer formula, which is NaN for it; next to 0 the sum would lose the sign of -0
    is_far = magnitude > _TANH_BORDER
    value = is_far.where(far, (magnitude < _TANH_IS_X).where(x, near))
    return _with_derivative(value, x, is_far.where(q * (2 - q), 1 - near * near))


def erf(x: Tensor) -> Tensor:
    """erf x = 2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x, in the dtype of x (float32 or float64).

    With full relative precision next to 0. In the four pieces of fdlibm's s_erf.c, and with its coefficients, a = |x|:

        a < 0.84375     x + x P(x^2) / Q(x^2)
        a < 1.25        c + P(a - 1) / Q(a - 1), c = erf(1) rounded to float32
        a < 1 / 0.35    1 - e^(-a^2 - 0.5625 + P(1 / a^2) / Q(1 / a^2)) / a
        beyond          as that, with another P and Q

    In the last two, erfc's relative error is a^2 u, and erfc itself at most 0.08. The derivative is 2 / sqrt(pi) e^(-x^2).
    """
    magnitude = (x < 0).where(-x, x)
    square = x * x
    near = x + x * (_polynomial(square, _ERF_NEAR_P) / _polynomial(square, _ERF_NEAR_Q))
    from_one = magnitude - 1
    middle = _polynomial(from_one, _ERF_MIDDLE_P) / _polynomial(from_one, _ERF_MIDDLE_Q) + _ERF_OF_ONE
    # 1 where the piece is not used, so that nothing divides by zero
    beyond = (magnitude < _ERF_MIDDLE_END).where(1, magnitude)
    inverse = 1 / (beyond * beyond)
    ratio = (magnitude < _ERF_FAR_END).where(
        _polynomial(inverse, _ERF_FAR_P) / _polynomial(inverse, _ERF_FAR_Q),
        _polynomial(inverse, _ERF_FARTHEST_P) / _polynomial(inverse, _ERF_FARTHEST_Q),
    )
    far = 1 - exp((ratio - 0.5625) - beyond * beyond) / beyond
    outer = (magnitude < _ERF_MIDDLE_END).where(middle, far)
    value = (magnitude >= _ERF_NEAR_END).where((x < 0).where(-outer, outer), near)
    return _with_derivative(value, x, exp(-square) * (2 / math.sqrt(math.pi)))


def sqrt(x: Tensor) -> Tensor:
    """The square root, element by element: tinygrad's own, which is the device's instruction."""
    return x.sqrt()


def reciprocal(x: Tensor) -> Tensor:
    """1 / x, element by element: tinygrad's own, which is the device's division."""
    return x.reciprocal()


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """The sum of coefficients[i] x^i, by Horner's scheme."""
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        value = value * x + coefficient
    return value


def _power_of_two(n: Tensor, form: _Format, dtype: DType) -> Tensor:
    return ((n.cast(form.integer) + form.exponent_bias) << form.mantissa_bits).bitcast(dtype)


def _with_derivative(value: Tensor, x: Tensor, derivative: Tensor) -> Tensor:
    """`value`, whose gradient with respect to x is `derivative`.

    Automatic differentiation sees nothing through a bit cast. x - x.detach() is a zero with gradient one,
    which tinygrad folds away, so that it costs no rounding and an infinite x makes no NaN.
    """
    return value.detach() + (x - x.detach()) * derivative.detach()


FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "exp": exp,
    "log": log,
    "sqrt": sqrt,
    "reciprocal": reciprocal,
    "tanh": tanh,
    "erf": erf,
}
"""By the names of contract/worker/capabilities.py."""
