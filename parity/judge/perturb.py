"""How far rounding errors may carry a graph's values: its response to random errors at every operation (docs/theory.md, section Graphs).

Monte-Carlo arithmetic (Parker 1997, *Monte Carlo Arithmetic*, UCLA CSD-970002; Denis, de Oliveira Castro & Petit 2016, Verificarlo,
arXiv:1509.01347): the float64 oracle is run again and again, each time with an independent error at each operation of the forward and
the backward pass, of the size that a correct implementation errs by there (parity/reference/rounding.py). To first order in u the
response is linear, so one set of runs at u = 2^-30 serves float32 and float64. At bfloat16's 2^-8 it is not: a plan in bfloat16 has runs
of its own, at that u. It's taken on the oracle: a threshold that is taken from a stack under test moves with that stack's bugs.

Legend: P runs, B sequences, T tokens; a row is a tensor's last axis.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit
from threadpoolctl import threadpool_limits

from contract.worker.plan import GraphPlan
from contract.worker.taps import prefix
from parity.judge.bounds import unit_roundoff
from parity.reference.graph import Batch, Trace
from parity.reference.proxy import oracle
from parity.reference.rounding import Mixed, Noise, Size, parts, together
from parity.reference.tape import Kind

INJECTED = 2.0**-30
"""The u of the runs: the square of it, which first order neglects, and float64's own u both lie far below it."""

ROWS_AT_ONCE = 128
"""Tokens times runs of one pass: enough that a weight read once serves many rows, few enough for their activations to fit."""

STORED = "bfloat16"
"""The dtype in which a graph stores what it computes in a wider one."""

INSIDE = "float32"
"""That wider one."""

_PARALLEL = 1 << 15
"""From so many elements on, runs draw their errors in parallel."""

Progress = Callable[[int, int], None]
_Part = Literal["alone", "mixed", "inside"]
"""Which errors are drawn: those of one dtype that does it all; of two; of two, but for the roundings to the one that is stored."""


@dataclass(frozen=True)
class Response:
    """What `runs` perturbed runs deviated by, per unit of u.

    rows: name (a tap's, or `grad.` and a matrix's) -> [shape[:-1]]: the root mean square over runs of the L2 norm of each row's
    deviation. A scalar is a row of its own, of shape ().
    """

    runs: int
    rows: Mapping[str, np.ndarray]


def respond(
    plan: GraphPlan, weight: Callable[[str], np.ndarray], adapter: Mapping[str, np.ndarray], batch: Batch, *,
    runs: int = 30, seed: int, ulp: float, keep: Callable[[str], bool] = all, progress: Progress = lambda done, total: None,
) -> tuple[Trace, Response]:  # fmt: skip
    """The exact pass and the response to it, of every tap and adapter gradient.

    A plan in float32 has RoPE tables that err by their cast alone; in float64 their angles err as well, so that plan's response holds
    for float32 too, but loosely there. A plan in bfloat16 has float32's errors inside of operations, and its own where they store.
    ulp: the worst that any stack under test declares of exp, log, and what else the graph takes. keep: which taps.
    """
    part, injected = _injected(plan.dtype)
    sizes = _Sizes(ulp, part)
    trace = oracle(plan, weight, adapter, noise=sizes).graph(batch, keep=keep)
    trace.bars.clear()  # of a real model hundreds of megabytes, which no comparison asks for
    sums = _RowSums(trace.taps | {f"grad.{name}": gradient for name, gradient in trace.grads.items()}, injected)

    def see(section: str, kind: Kind, name: str, value: np.ndarray) -> None:
        if kind != "bar" and name != "input":
            sums.add(("grad." if kind == "grad" else "") + prefix(section) + name, value)

    for noise in _chunks(sizes, injected, runs, seed, batch.ids.size, progress):
        oracle(plan, weight, adapter, noise=noise).walk(batch, see)
        sums.count(noise.runs)
    return trace, sums.response()


def respond_section(
    plan: GraphPlan, section: str, weight: Callable[[str], np.ndarray], adapter: Mapping[str, np.ndarray],
    tensors: Mapping[str, np.ndarray], *, runs: int = 30, seed: int, ulp: float,
) -> tuple[dict[str, np.ndarray], Response]:  # fmt: skip
    """As `respond`, for one `block` request: the exact answer and the response, by the answer's names.

    Where every tap is overridden, each is one operation's own error.
    """

    def answer(noise: Noise) -> dict[str, np.ndarray]:
        return oracle(plan, weight, adapter, noise=noise).answer(section, tensors)

    return _responded(answer, _Sizes(ulp, _injected(plan.dtype)[0]), _injected(plan.dtype)[1], rows=_tokens(tensors), runs=runs, seed=seed)


def operation_limits(
    plan: GraphPlan, section: str, weight: Callable[[str], np.ndarray], adapter: Mapping[str, np.ndarray],
    tensors: Mapping[str, np.ndarray], *, runs: int = 30, seed: int, ulp: float, false_alarm: Callable[[int], float],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:  # fmt: skip
    """The exact answer of a `block` request in bfloat16 with every tap overridden, and the limit on each element's error, by name.

    Each answered tensor is one operation's work. Its roundings to bfloat16 have a hard bound, most u / (1 - after u); to that comes what
    it errs by inside, in float32, by its response; and where the exact value is not 0, the smallest normal number for each rounding and the
    last one inside, which may underflow (Higham 2002, section 2.1). `false_alarm`: number of elements -> that of one of them.
    """

    def answer(noise: Noise) -> dict[str, np.ndarray]:
        return {name: value[..., None] for name, value in oracle(plan, weight, adapter, noise=noise).answer(section, tensors).items()}

    assert plan.dtype == STORED
    sizes, u = _Sizes(ulp, "inside"), unit_roundoff(STORED)
    exact, response = _responded(answer, sizes, INJECTED, rows=_tokens(tensors), runs=runs, seed=seed)
    share, limits = false_alarm(sum(value.size for value in exact.values())), {}
    for name, value in exact.items():
        most, after = sizes.most[f"{section}/{name}"]
        inside = row_limits(response.rows[name], dtype=INSIDE, runs=runs, false_alarm=share)
        underflow = (value[..., 0] != 0) * (after + 1) * float(np.finfo(INSIDE).smallest_normal)  # bfloat16 has float32's exponents
        limits[name] = np.broadcast_to(most * u / (1 - after * u), (1, *value.shape[:-1]))[0] + inside + underflow
    return {name: value[..., 0] for name, value in exact.items()}, limits


def respond_to(
    compute: Callable[[Noise], Mapping[str, np.ndarray]], *, rows: int, runs: int = 30, seed: int, ulp: float, dtype: str = "float64",
    injected: float | None = None,
) -> tuple[dict[str, np.ndarray], Response]:  # fmt: skip
    """As `respond`, for any computation that shows its operations to a Noise: its exact results and their response, by name.

    Args:
        compute: gives arrays with a leading axis of runs.
        rows: how many rows one run takes, see ROWS_AT_ONCE.
        dtype: what it is computed in; in bfloat16 the runs are that dtype's own.
        injected: the u of the runs, where errors grow so far that first order ends before INJECTED.
    """
    part, u = _injected(dtype)
    return _responded(compute, _Sizes(ulp, part), u if injected is None else injected, rows=rows, runs=runs, seed=seed)


def _responded(
    compute: Callable[[Noise], Mapping[str, np.ndarray]], sizes: _Sizes, injected: float, *, rows: int, runs: int, seed: int
) -> tuple[dict[str, np.ndarray], Response]:
    exact = {name: value[0] for name, value in compute(sizes).items()}
    sums = _RowSums(exact, injected)
    for noise in _chunks(sizes, injected, runs, seed, rows, lambda done, total: None):
        for name, value in compute(noise).items():
            sums.add(name, value)
        sums.count(noise.runs)
    return exact, sums.response()


def _injected(dtype: str) -> tuple[_Part, float]:
    """Which errors the runs of a plan in a dtype draw, and at which u."""
    return ("mixed", unit_roundoff(STORED)) if dtype == STORED else ("alone", INJECTED)


def _tokens(tensors: Mapping[str, np.ndarray]) -> int:
    batch, tokens = next(tensors[name] for name in ("ids", "input") if name in tensors).shape[:2]
    return int(batch * tokens)


def row_limits(response_rows: np.ndarray, *, dtype: str, runs: int, false_alarm: float, sides: int = 1) -> np.ndarray:
    """The bound on the L2 norm of each row's error: sqrt(sides) u rows sqrt(F.isf(false_alarm, 1, runs)).

    To first order an error is Gaussian, its squared norm a quadratic form; of all such of one mean, that of rank one has the heaviest
    tail (Székely & Bakirov 2003, *Extremal probabilities for Gaussian quadratic forms*), and over the runs' mean square that is F
    with 1 and `runs` degrees of freedom, the square of Student's t. `sides`: 2 where two stacks, each with errors of its own, are compared.
    """
    quantile = -float(stdtrit(runs, false_alarm / 2))
    limits: np.ndarray = np.sqrt(sides) * unit_roundoff(dtype) * quantile * response_rows
    return limits


class _Sizes:
    """A Noise that adds nothing and writes down how large each operation's error is, in units of u; None where it is zero.

    most: of an operation that stores what it hands on, `Mixed.most` and `Mixed.after`.
    """

    def __init__(self, ulp: float, part: _Part) -> None:
        self.ulp, self.mixed, self._part = ulp, part != "alone", part
        self.of: dict[str, np.ndarray | None] = {}
        self.most: dict[str, tuple[np.ndarray, int]] = {}

    def __call__(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        assert site not in self.of, site
        found = self._of_part(site, parts(size()))
        if not np.isfinite(found).all():
            raise ValueError(f"{site}: the reference's values leave float64's range, so that nothing can be judged; look at the model")
        # float32 holds a size well enough, and half the memory; but for the range of a model that is far off
        narrow = np.float32 if np.max(found, initial=0) < np.finfo(np.float32).max else np.float64
        self.of[site] = np.broadcast_to(found, value.shape)[0].astype(narrow) if np.any(found) else None
        return value

    def _of_part(self, site: str, size: Mixed) -> np.ndarray:
        if self._part == "alone":
            return size.alone
        if self._part == "inside":
            self.most[site] = size.most, size.after
            return size.inside
        return together(size.inside * (unit_roundoff(INSIDE) / unit_roundoff(STORED)), size.stored)


class _Draws:
    """A Noise that adds an independent normal error of that size for each run; a run's errors are the same in any chunk."""

    def __init__(self, sizes: _Sizes, injected: float, seeds: Iterable[np.random.SeedSequence], pool: ThreadPoolExecutor) -> None:
        self.ulp, self.mixed, self._injected = sizes.ulp, sizes.mixed, injected
        self._sizes = sizes.of
        self._generators = [np.random.Generator(np.random.SFC64(seed)) for seed in seeds]
        self._pool = pool
        self.runs = len(self._generators)

    def __call__(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        scale = self._sizes[site]
        if scale is None:
            return value
        noisy = np.empty((self.runs, *value.shape[1:]))

        def draw(run: int) -> None:
            error = self._generators[run].standard_normal((1, *scale.shape), dtype=np.float32)
            error *= scale
            mine = slice(run, run + 1)
            np.multiply(error, self._injected, out=noisy[mine], dtype=np.float64)
            noisy[mine] += value[mine] if len(value) > 1 else value

        each = self._pool.map if scale.size >= _PARALLEL else map
        for _ in each(draw, range(self.runs)):
            pass
        return noisy


class _RowSums:
    """Sums over runs of the squared norm of each row's deviation from the exact value."""

    def __init__(self, exact: Mapping[str, np.ndarray], injected: float) -> None:
        self._exact, self._injected = exact, injected
        self._squares = {name: np.zeros(value.shape[:-1]) for name, value in exact.items()}
        self._runs = 0

    def add(self, name: str, value: np.ndarray) -> None:
        """One tensor of a chunk of runs [P, *shape]; one that no error has reached has P = 1 and deviates by nothing."""
        if name not in self._exact:
            return
        deviation = value - self._exact[name]
        of_rows = np.square(deviation) if deviation.ndim == 1 else np.einsum("...i,...i->...", deviation, deviation)
        self._squares[name] = self._squares[name] + np.sum(of_rows, axis=0)

    def count(self, runs: int) -> None:
        """So many runs more have been added."""
        self._runs += runs

    def response(self) -> Response:
        """Over all runs that were added."""
        rows = {name: np.sqrt(squares / self._runs) / self._injected for name, squares in self._squares.items()}
        return Response(runs=self._runs, rows=rows)


def _chunks(sizes: _Sizes, injected: float, runs: int, seed: int, tokens: int, progress: Progress) -> Iterable[_Draws]:
    seeds = np.random.SeedSequence(seed).spawn(runs)
    at_once = max(1, min(runs, ROWS_AT_ONCE // tokens))
    # OpenBLAS's threads wait for each other by spinning, and the stacks are at work on the same cores
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, runs, at_once):
            yield _Draws(sizes, injected, seeds[start : start + at_once], pool)
            progress(min(start + at_once, runs), runs)
