"""What is drawn from a seed: the initial adapter, dropout's masks, the numbers that tokens are drawn with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.checks import policy_files
from parity.checks.check import Answered, Arrays, Case
from parity.checks.policy_case import PolicyCase, golden
from parity.checks.trajectory_judges import ledger
from parity.judge import verdict
from parity.judge.verdict import Comparison
from parity.reference import policy

RANK, PATTERN, SEED = 32, {"v_proj": 7, "layers.1.up_proj": 40}, 11

_PHILOX = "Philox by its paper, with the documented key and counter (parity/reference/policy.py)"
_MASSART = "Massart 1990 (docs/theory.md, The shared policy)"
_HOEFFDING = "Hoeffding 1963 (docs/theory.md, The shared policy)"


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterCase(PolicyCase):
    """A run whose adapter has a rank of its own for some linears."""


def adapter_cases() -> Iterator[AdapterCase]:
    """One of them."""
    folder = tempfile.TemporaryDirectory(prefix="twostack-policy-")
    home = Path(folder.name)
    policy_files.write(home, [{"prompt": "a", "response": "b"}])
    adapter = {"rank": RANK, "rank_pattern": PATTERN}
    contract = policy_files.contract(home, adapter=adapter, exec={"seed": SEED})
    yield AdapterCase(name="the initial adapter", inputs={}, folder=folder, asked=(policy_files.asked(contract, count=0),))


def wanted_adapter() -> dict[str, np.ndarray]:
    """Every matrix by the documented formula."""
    found = {}
    for layer in range(2):
        for linear, (out, width) in policy_files.WIDTHS.items():
            path = f"layers.{layer}.{linear}"
            rank = PATTERN.get(path, PATTERN.get(linear, RANK))
            found[f"{path}.lora_a"] = policy.lora_a(f"{path}.lora_a", (rank, width), SEED)
            found[f"{path}.lora_b"] = np.zeros((out, rank), np.float32)
    return found


def judge_adapter(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """B is zero, so that a run begins with its base; A is as documented bit for bit, and distributed as PEFT's."""
    assert isinstance(case, AdapterCase)
    shown = {name.removeprefix("initial."): value for name, value in answered[0].answers[0].items() if name.startswith("initial.")}
    wanted = case.once("wanted", wanted_adapter)
    names = ledger("shapes", _shapes(shown), _shapes(wanted), "each linear's widths, rank and rank_pattern")
    if not names.passed:
        return [names]
    a, b = ([name for name in wanted if name.endswith(half)] for half in ("lora_a", "lora_b"))
    scaled = np.concatenate([(shown[name] * np.sqrt(np.float64(shown[name].shape[1]))).reshape(-1) for name in a])
    peft = np.array(golden("adapter")["scaled"], np.float64)
    return [
        names,
        ledger("B", _joined(shown, b), _joined(wanted, b), "LoRA begins with its base: B = 0 (arXiv:2106.09685, 4.1)"),
        ledger("A", _joined(shown, a), _joined(wanted, a), _PHILOX),
        _distance(
            "A sqrt(in), from uniform on (-1, 1)", _from_uniform(scaled), policy.dvoretzky_kiefer_wolfowitz(scaled.size, false_alarm)
        ),
        _distance(
            f"A sqrt(in), from PEFT {golden('adapter')['made_with']['peft']}'s", _between(scaled, peft),
            sum(policy.dvoretzky_kiefer_wolfowitz(one.size, false_alarm / 2) for one in (scaled, peft)),
        ),
    ]  # fmt: skip


ADAPTER_STATISTICAL = 2


def _shapes(matrices: Arrays) -> np.ndarray:
    """Names and shapes as numbers, so that any difference shows."""
    return np.frombuffer(repr(sorted((name, matrix.shape) for name, matrix in matrices.items())).encode(), np.uint8)


def _joined(matrices: Arrays, names: Sequence[str]) -> np.ndarray:
    return np.concatenate([matrices[name].reshape(-1) for name in names])


def _distance(name: str, observed: float, bound: float) -> Comparison:
    return verdict.at_most(name, observed, bound, "largest distance of distribution functions", _MASSART)


def _from_uniform(values: np.ndarray) -> float:
    """sup |F_n - F|, F the uniform distribution on (-1, 1)."""
    values, count = np.sort(values), len(values)
    exact, ranks = np.clip((values + 1) / 2, 0, 1), np.arange(count)
    return float(max(np.max((ranks + 1) / count - exact), np.max(exact - ranks / count)))


def _between(one: np.ndarray, other: np.ndarray) -> float:
    """sup |F_n - G_m|."""
    every = np.concatenate([one, other])
    first, second = (np.searchsorted(np.sort(values), every, "right") / len(values) for values in (one, other))
    return float(np.max(np.abs(first - second)))


@dataclass(frozen=True, kw_only=True, eq=False)
class NumbersCase(PolicyCase):
    """Masks of two steps, of two linears, two layers and two seeds, and drawn numbers."""


PROBABILITY, WIDTH = 0.3, 37
_SITES: tuple[dict[str, Any], ...] = (
    {"seed": SEED, "step": 4, "layer": 1, "site": "q_proj"}, {"seed": SEED, "step": 5, "layer": 1, "site": "q_proj"},
    {"seed": SEED, "step": 4, "layer": 0, "site": "q_proj"}, {"seed": SEED, "step": 4, "layer": 1, "site": "k_proj"},
    {"seed": SEED + 1, "step": 4, "layer": 1, "site": "q_proj"},
)  # fmt: skip
_SAMPLES = np.array([0, 3, 2**33 + 1, -1, 7, 11, 5, 2], np.int64)[:, None]
_POSITIONS = np.arange(9, dtype=np.int64)[None]


def numbers_cases() -> Iterator[NumbersCase]:
    """One of them; of the edges of a probability, too."""
    tokens: dict[str, Any] = {"samples": _SAMPLES, "positions": _POSITIONS}
    masks = [{"of": "masks", **site, "width": WIDTH, "probability": PROBABILITY, **tokens} for site in _SITES]
    never = {"of": "masks", **_SITES[0], "width": 5, "probability": 0.0, **tokens}
    draws = {"of": "draws", "seed": SEED, "sequences": _SAMPLES + 1, "positions": _POSITIONS}
    yield NumbersCase(name="masks and draws", inputs={}, asked=(*masks, never, draws))


def judge_numbers(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Bit for bit as documented; as often as the probability says; and no two of the masks alike."""
    assert isinstance(case, NumbersCase)
    *shown, never, draws = answered[0].answers
    samples, positions = (part.reshape(-1).tolist() for part in np.broadcast_arrays(_SAMPLES, _POSITIONS))
    masks = [one["kept"].reshape(-1, one["kept"].shape[-1]) for one in shown]
    wanted = case.once("wanted", lambda: [_wanted(site, samples, positions) for site in _SITES])
    u = policy.draws([sample + 1 for sample in samples], positions, seed=SEED)
    first = masks[0].astype(np.float64)
    share, bound = abs(first.mean() - (1 - PROBABILITY)), policy.hoeffding(first.size, false_alarm)
    alike = [float(np.mean(masks[0] == other)) if other.shape == masks[0].shape else 1.0 for other in masks[1:]]
    apart = max(abs(one - PROBABILITY**2 - (1 - PROBABILITY) ** 2) for one in alike)
    return [
        ledger("masks", _bits(masks), _bits(wanted), _PHILOX),
        ledger("kept with probability 0", _bits([never["kept"]]), np.ones(never["kept"].size, np.int64), "all of it"),
        ledger("drawn numbers", draws["u"].reshape(-1).view(np.int64), u.view(np.int64), _PHILOX),
        verdict.at_most("share that is kept", share, bound, "difference from 1 - p", _HOEFFDING),
        verdict.at_most("masks that agree", apart, bound, "difference from p^2 + (1 - p)^2", _HOEFFDING),
    ]


NUMBERS_STATISTICAL = 1 + len(_SITES) - 1
"""The share that is kept, and each mask that is held against the first."""


def _wanted(site: dict[str, Any], samples: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    return policy.kept(samples, positions, **site, width=WIDTH, probability=PROBABILITY)


def _bits(masks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([mask.reshape(-1).astype(np.int64) for mask in masks])
