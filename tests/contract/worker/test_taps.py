"""The table of taps: its names, and that each tap's inputs and dimensions are those of its formula, computed here in NumPy.

Legend of dimensions as in contract/worker/taps.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.worker import taps
from contract.worker.graph import shape_of
from contract.worker.taps import LINEARS
from tests.contract.worker.small_plan import B, T, plan

ALL = frozenset(LINEARS)
TARGETS = (frozenset[str](), frozenset({"q_proj"}), frozenset({"k_proj", "down_proj"}), ALL)
SECTIONS = ("embedding", "layers.3", "head")

BLOCK = [
    "attention_norm", "q_proj", "k_proj", "v_proj", "q_rope", "k_rope", "scores", "weights", "context", "o_proj", "attention_residual",
    "mlp_norm", "gate_proj", "up_proj", "activation", "gated", "down_proj", "output",
]  # fmt: skip

targets_drawn = st.frozensets(st.sampled_from(tuple(LINEARS)))


def with_lora(names: list[str], targets: frozenset[str]) -> list[str]:
    parts = {name: [f"{name}.base", f"{name}.lora_ax", f"{name}.lora_bax", name] for name in targets}
    return [part for name in names for part in parts.get(name, [name])]


# Names


@given(targets=targets_drawn)
def test_a_blocks_names_in_the_order_of_computation(targets: frozenset[str]) -> None:
    assert [tap.name for tap in taps.block_taps(targets)] == with_lora(BLOCK, targets)


def test_the_names_before_and_after_the_blocks() -> None:
    assert [tap.name for tap in taps.embedding_taps()] == ["embedding", "rope.cos", "rope.sin"]
    assert [tap.name for tap in taps.head_taps()] == ["final_norm", "logits", "loss"]


@given(layers=st.integers(1, 12), targets=targets_drawn)
def test_full_names_are_unique_and_in_order(layers: int, targets: frozenset[str]) -> None:
    blocks = [f"layers.{layer}.{name}" for layer in range(layers) for name in with_lora(BLOCK, targets)]
    names = taps.full_names(layers, targets)
    assert names == ("embedding", "rope.cos", "rope.sin", *blocks, "final_norm", "logits", "loss")
    assert len(set(names)) == len(names)


@given(layers=st.integers(1, 1000))
def test_sections(layers: int) -> None:
    assert taps.sections(layers) == ("embedding", *(f"layers.{layer}" for layer in range(layers)), "head")


@pytest.mark.parametrize(("section", "before"), [("embedding", ""), ("layers.0", "layers.0."), ("layers.12", "layers.12."), ("head", "")])
def test_prefix(section: str, before: str) -> None:
    assert taps.prefix(section) == before


# What follows from what


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("section", SECTIONS)
def test_inputs_are_earlier_taps(section: str, targets: frozenset[str]) -> None:
    known = {"input"} | ({"rope.cos", "rope.sin"} if section == "layers.3" else set())
    for tap in taps.section_taps(section, targets):
        assert set(tap.inputs) <= known, tap.name
        assert tap.formula
        known.add(tap.name)


@pytest.mark.parametrize("targets", TARGETS)
def test_no_tap_leads_nowhere(targets: frozenset[str]) -> None:
    """A value that nothing follows from would be outside of the graph that is compared."""
    used: set[str] = set()
    for section in SECTIONS:
        used |= {name for tap in taps.section_taps(section, targets) for name in tap.inputs}
    known = {tap.name for section in SECTIONS for tap in taps.section_taps(section, targets)}
    assert known - used == {"embedding", "output", "loss"}
    assert used - known == {"input"}


@pytest.mark.parametrize("name", LINEARS)
def test_a_linear_takes_and_gives_what_its_tap_says(name: str) -> None:
    dims = {tap.name: tap.dims for tap in taps.block_taps(frozenset())}
    linear = LINEARS[name]
    assert linear.name == name
    assert dims[linear.input] == f"BT{linear.in_dim}"
    assert dims[name] == f"BT{linear.out_dim}"


def heads(x_BTQ: np.ndarray) -> np.ndarray:
    return x_BTQ.reshape(B, T, -1, 4).transpose(0, 2, 1, 3)


def rotated(x_BTQ: np.ndarray, cos_TE: np.ndarray, sin_TE: np.ndarray) -> np.ndarray:
    x_BHTE = heads(x_BTQ)
    first, second = np.split(x_BHTE, 2, axis=-1)
    return x_BHTE * cos_TE + np.concatenate([-second, first], axis=-1) * sin_TE


def softmax(scores_BHTS: np.ndarray) -> np.ndarray:
    weights = np.exp(np.where(np.tri(T, dtype=bool), scores_BHTS, -np.inf))
    return weights / weights.sum(axis=-1, keepdims=True)


def norm(x_BTD: np.ndarray) -> np.ndarray:
    return x_BTD / np.sqrt((x_BTD**2).mean(axis=-1, keepdims=True) + 1e-5)


def angles() -> np.ndarray:
    return np.tile(np.arange(T)[:, None] * 1e4 ** (-2 * np.arange(2) / 4), 2)


def mean_loss(logits_BTV: np.ndarray) -> np.ndarray:
    labels_BT = np.arange(B * T).reshape(B, T)
    log_total = np.log(np.exp(logits_BTV).sum(axis=-1))[:, :-1]
    picked = np.take_along_axis(logits_BTV[:, :-1], labels_BT[:, 1:, None], axis=-1)[..., 0]
    return np.asarray((log_total - picked).mean())


def formulas(targets: frozenset[str]) -> Mapping[str, Callable[..., np.ndarray]]:
    """Each tap's formula, over its inputs alone, in their order; weights at random."""
    rng, sizes = np.random.default_rng(5), {"D": 14, "Q": 24, "N": 8, "F": 22}

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) / np.sqrt(shape[0])

    made: dict[str, Callable[..., np.ndarray]] = {
        "embedding": lambda ids: random(41, 14)[ids],
        "rope.cos": lambda: np.cos(angles()), "rope.sin": lambda: np.sin(angles()),
        "attention_norm": norm, "mlp_norm": norm, "final_norm": norm,
        "q_rope": rotated, "k_rope": rotated,
        "scores": lambda q, k: q @ np.repeat(k, 3, axis=1).swapaxes(-1, -2) / 2,
        "weights": softmax,
        "context": lambda weights, v: (weights @ np.repeat(heads(v), 3, axis=1)).transpose(0, 2, 1, 3).reshape(B, T, -1),
        "attention_residual": np.add, "output": np.add,
        "activation": lambda gate: gate / (1 + np.exp(-gate)),
        "gated": np.multiply,
        "logits": lambda x: x @ random(14, 41),
        "loss": mean_loss,
    }  # fmt: skip
    for name, linear in LINEARS.items():
        i, o = sizes[linear.in_dim], sizes[linear.out_dim]
        product = (lambda w: lambda x: x @ w)(random(i, o))
        made[f"{name}.base" if name in targets else name] = product
        if name in targets:
            made[f"{name}.lora_ax"] = (lambda a: lambda x: x @ a)(random(i, 3))
            made[f"{name}.lora_bax"] = (lambda b: lambda ax: ax @ b)(random(3, o))
            made[name] = lambda base, bax: base + 5 / 3 * bax
    return made


@pytest.mark.parametrize("targets", TARGETS)
def test_dimensions_are_those_of_the_formulas(targets: frozenset[str]) -> None:
    known: dict[str, np.ndarray] = {"input": np.arange(B * T).reshape(B, T)}
    formula = formulas(targets)
    for section in ("embedding", "layers.0", "layers.1", "head"):
        for tap in taps.section_taps(section, targets):
            known[tap.name] = formula[tap.name](*(known[name] for name in tap.inputs))
            assert known[tap.name].shape == shape_of(tap, plan(targets=tuple(targets)), B, T), f"{section} {tap.name} {tap.dims}"
        known["input"] = known.get("output", known["embedding"])
    assert np.isfinite(known["loss"])


def test_the_table_does_not_change() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        LINEARS["q_proj"] = LINEARS["k_proj"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        taps.head_taps()[0].name = "other"  # type: ignore[misc]
