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

from contract.worker import graph, taps
from contract.worker.graph import shape_of
from contract.worker.plan import GraphPlan, Lora
from contract.worker.taps import LINEARS
from tests.contract.worker.small_plan import GPT2, OTHERS, B, T, other_plan, plan

ALL = frozenset(LINEARS)
TARGETS = (frozenset[str](), frozenset({"q_proj"}), frozenset({"k_proj", "down_proj"}), ALL)
SECTIONS = ("embedding", "layers.1", "head")

BLOCK = [
    "attention_norm", "q_proj", "k_proj", "v_proj", "q_rope", "k_rope", "scores", "weights", "context", "o_proj", "attention_residual",
    "mlp_norm", "gate_proj", "up_proj", "activation", "gated", "down_proj", "output",
]  # fmt: skip

targets_drawn = st.frozensets(st.sampled_from(tuple(LINEARS)))


def with_lora(names: list[str], targets: frozenset[str]) -> list[str]:
    parts = {name: [f"{name}.base", f"{name}.lora_ax", f"{name}.lora_bax", name] for name in targets}
    return [part for name in names for part in parts.get(name, [name])]


# Names


def named(whole: GraphPlan, section: str) -> list[str]:
    return [tap.name for tap in taps.section_taps(whole, section)]


@given(targets=targets_drawn)
def test_a_blocks_names_in_the_order_of_computation(targets: frozenset[str]) -> None:
    assert named(plan(targets=tuple(targets)), "layers.1") == with_lora(BLOCK, targets)


def test_the_names_before_and_after_the_blocks() -> None:
    assert named(plan(), "embedding") == ["embedding", "rope.cos", "rope.sin"]
    assert named(plan(), "head") == ["final_norm", "logits", "loss"]
    assert taps.entering(plan().layout) == "embedding"


NO_LORA = Lora(rank=1, alpha=1, targets=())


def test_the_names_of_other_architectures() -> None:
    gpt2, *_, qwen3 = (other_plan(others, lora=NO_LORA) for others in OTHERS)
    assert named(gpt2, "embedding") == ["embedding", "position_embedding", "embedded"]
    assert taps.entering(GPT2) == "embedded"
    assert named(gpt2, "layers.0") == [name for name in BLOCK if name not in ("q_rope", "k_rope", "gate_proj", "gated")]
    turned = BLOCK.index("q_rope")
    assert named(qwen3, "layers.0") == [*BLOCK[:turned], "q_norm", "k_norm", *BLOCK[turned:]]
    for others in OTHERS[1:3]:
        assert named(other_plan(others, lora=NO_LORA), "layers.0") == BLOCK


def test_what_a_path_leaves_out_and_what_then_follows_from_what() -> None:
    fused = {tap.name: tap.inputs for tap in taps.section_taps(plan(paths=("fused_attention", "fused_lora")), "layers.0")}
    assert list(fused) == [name for name in BLOCK if name not in ("scores", "weights")]
    assert fused["context"] == ("q_rope", "k_rope", "v_proj")
    assert set(fused["down_proj"]) == {"gated"}
    chunked = {tap.name: tap.inputs for tap in taps.section_taps(plan(paths=("chunked_loss",)), "head")}
    assert chunked == {"final_norm": ("input",), "loss": ("final_norm",)}


@given(layers=st.integers(1, 12), targets=targets_drawn)
def test_full_names_are_unique_and_in_order(layers: int, targets: frozenset[str]) -> None:
    blocks = [f"layers.{layer}.{name}" for layer in range(layers) for name in with_lora(BLOCK, targets)]
    names = taps.full_names(plan(targets=tuple(targets), num_hidden_layers=layers))
    assert names == ("embedding", "rope.cos", "rope.sin", *blocks, "final_norm", "logits", "loss")
    assert len(set(names)) == len(names)


@given(layers=st.integers(1, 1000))
def test_sections(layers: int) -> None:
    assert taps.sections(layers) == ("embedding", *(f"layers.{layer}" for layer in range(layers)), "head")


@pytest.mark.parametrize(("section", "before"), [("embedding", ""), ("layers.0", "layers.0."), ("layers.12", "layers.12."), ("head", "")])
def test_prefix(section: str, before: str) -> None:
    assert taps.prefix(section) == before


# What follows from what


PLANS = [*(plan(targets=tuple(targets)) for targets in TARGETS), *(other_plan(others) for others in OTHERS)]


def described(whole: GraphPlan) -> str:
    return f"{whole.layout.model_type}-{len(whole.targets)}"


@pytest.mark.parametrize("whole", PLANS, ids=described)
@pytest.mark.parametrize("section", SECTIONS)
def test_inputs_are_earlier_taps(section: str, whole: GraphPlan) -> None:
    known = {"input"} | ({"rope.cos", "rope.sin"} if section == "layers.1" else set())
    for tap in taps.section_taps(whole, section):
        assert set(tap.inputs) <= known, tap.name
        assert tap.formula
        known.add(tap.name)


@pytest.mark.parametrize("whole", PLANS, ids=described)
def test_no_tap_leads_nowhere(whole: GraphPlan) -> None:
    """A value that nothing follows from would be outside of the graph that is compared."""
    used: set[str] = set()
    for section in SECTIONS:
        used |= {name for tap in taps.section_taps(whole, section) for name in tap.inputs}
    known = {tap.name for section in SECTIONS for tap in taps.section_taps(whole, section)}
    assert known - used == {taps.entering(whole.layout), "output", "loss"}
    assert used - known == {"input"}


@pytest.mark.parametrize("whole", PLANS, ids=described)
def test_a_linear_takes_and_gives_what_its_tap_says(whole: GraphPlan) -> None:
    shapes = graph.tap_shapes(whole, B, T)
    linears = taps.linears(whole.layout)
    assert tuple(linears) == whole.layout.linears
    for name, linear in linears.items():
        assert linear.name == name
        out_features, in_features = whole.layout.widths[name]
        assert shapes[f"layers.0.{linear.input}"][0] == (B, T, in_features)
        assert shapes[f"layers.0.{name}"][0] == (B, T, out_features)


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
        for tap in taps.section_taps(plan(targets=tuple(targets)), section):
            known[tap.name] = formula[tap.name](*(known[name] for name in tap.inputs))
            assert known[tap.name].shape == shape_of(section, tap, plan(targets=tuple(targets)), B, T), f"{section} {tap.name} {tap.dims}"
        known["input"] = known.get("output", known["embedding"])
    assert np.isfinite(known["loss"])


def test_the_table_does_not_change() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        LINEARS["q_proj"] = LINEARS["k_proj"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        taps.section_taps(plan(), "head")[0].name = "other"  # type: ignore[misc]
