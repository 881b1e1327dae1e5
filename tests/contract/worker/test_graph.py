"""What the requests on a whole graph carry and answer, by name, shape and dtype, and every refusal; on the plan of small_plan.py."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.model import checkpoint, weights
from contract.model.layout import Layout
from contract.worker import graph, taps
from contract.worker.graph import Invalid
from contract.worker.plan import GraphPlan, Lora, Nf4
from contract.worker.taps import LINEARS
from tests.contract.worker.small_plan import BAD_LABELS, GPT2, OTHERS, B, T, ids, labels, other_plan, plan, refuses

WEIGHTS = {
    "attention_norm": (14,), "mlp_norm": (14,), "q_proj": (24, 14), "k_proj": (8, 14), "v_proj": (8, 14), "o_proj": (14, 24),
    "gate_proj": (22, 14), "up_proj": (22, 14), "down_proj": (14, 22),
}  # fmt: skip
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def filled(expected: graph.Expected) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, dtype) for name, (shape, dtype) in expected.items()}


# The plan


def test_every_linear_is_a_target_unless_some_are_named() -> None:
    every = Lora(rank=16, alpha=6)
    assert plan(lora=every).targets == {*ATTENTION, *MLP}
    assert other_plan(GPT2, lora=every).targets == {*ATTENTION, "up_proj", "down_proj"}
    assert plan().targets == {"k_proj", "down_proj"}


PATTERNS = Lora(
    rank=3, alpha=5, targets=("k_proj", "down_proj"), rank_pattern={"k_proj": 4, "layers.1.k_proj": 2},
    alpha_pattern={"layers.0.down_proj": 8},
)  # fmt: skip


def test_a_linears_own_key_wins_over_its_kind() -> None:
    paths = ("layers.0.k_proj", "layers.1.k_proj", "layers.0.down_proj", "layers.1.down_proj")
    assert [PATTERNS.rank_of(path) for path in paths] == [4, 2, 3, 3]
    assert [PATTERNS.alpha_of(path) for path in paths] == [5, 5, 8, 5]
    assert [PATTERNS.scaling_of(path) for path in paths] == [5 / 4, 5 / 2, 8 / 3, 5 / 3]
    assert PATTERNS.model_copy(update={"rslora": True}).scaling_of("layers.0.k_proj") == 2.5
    matrices = graph.adapter(plan(lora=PATTERNS))
    assert matrices["layers.0.k_proj.lora_a"] == ((4, 14), "float32")
    assert matrices["layers.1.k_proj.lora_b"] == ((8, 2), "float32")
    shapes = graph.tap_shapes(plan(lora=PATTERNS), B, T)
    assert [shapes[f"{path}.lora_ax"][0][-1] for path in paths] == [4, 2, 3, 3]


@pytest.mark.parametrize("name", ["q_proj", "layers.2.k_proj", "layers.01.k_proj", "layers.0.q_proj", "k_proj\n", "x.k_proj", "lm_head"])
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_names_no_target(name: str, field: str) -> None:
    with pytest.raises(ValidationError, match=rf"{field} names .*; allowed: a target \(down_proj, k_proj\)"):
        plan(lora=PATTERNS.model_copy(update={field: {name: 2}}))


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0}, {"alpha": 0}, {"alpha": float("inf")}, {"alpha": float("nan")}, {"targets": ("q_projection",)},
        {"targets": ("q_proj\n",)}, {"targets": ("lm_head",)}, {"dropout": 0.1},
    ],
)  # fmt: skip
def test_lora_that_means_nothing(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Lora(**{"rank": 3, "alpha": 5} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "bfloat16"),
        ({"graph": "proxy"}, "qlora_proxy_v1"),
        ({"paths": ("fast",)}, "chunked_loss"),
        ({"paths": ("nf4_linear",)}, "base is None; give base, or leave the path out"),
        ({"base": {"block_size": 0}}, "greater than or equal to 1"),
        ({"sections": ()}, r"sections are \[\]; allowed: one or more of embedding, layers.0 .. layers.1, head, each once"),
        ({"sections": ("layers.2",)}, r"sections are \['layers.2'\]"),
        ({"sections": ("head", "head")}, "each once"),
        ({"sections": ("layers.00",)}, "sections are"),
    ],
)
def test_a_plan_that_means_nothing(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plan(**change)


def test_a_plan_survives_the_wire() -> None:
    whole = plan(base=Nf4(block_size=32, double_quant=False), paths=("nf4_linear", "checkpoint"), sections=("layers.1", "head"))
    assert GraphPlan.model_validate_json(whole.model_dump_json()) == whole
    assert (whole.held, whole.targets) == (("layers.1", "head"), {"k_proj", "down_proj"})
    assert plan().held == ("embedding", "layers.0", "layers.1", "head")


# Weights and adapter


def test_targets_that_the_layout_lacks() -> None:
    with pytest.raises(ValidationError, match="targets has gate_proj, which gpt2 lacks; allowed: q_proj, k_proj, v_proj, o_proj, up_proj"):
        other_plan(GPT2, lora=Lora(rank=1, alpha=1, targets=("gate_proj", "q_proj")))


@pytest.mark.parametrize("others", OTHERS, ids=lambda one: one.model_type)
def test_a_plan_of_any_architecture_survives_the_wire(others: Layout) -> None:
    whole = other_plan(others, paths=("fused_attention",))
    assert GraphPlan.model_validate_json(whole.model_dump_json()) == whole
    assert type(GraphPlan.model_validate_json(whole.model_dump_json()).layout) is type(others)


@pytest.mark.parametrize("attention_bias", [False, True])
@pytest.mark.parametrize("mlp_bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_the_whole_graph(attention_bias: bool, mlp_bias: bool, tied: bool) -> None:
    wanted: dict[str, tuple[int, ...]] = {"embedding": (41, 14), "final_norm": (14,)} | ({} if tied else {"lm_head": (41, 14)})
    biased = (ATTENTION if attention_bias else ()) + (MLP if mlp_bias else ())
    for section in ("layers.0", "layers.1"):
        wanted |= {f"{section}.{name}": shape for name, shape in WEIGHTS.items()}
        wanted |= {f"{section}.{name}.bias": WEIGHTS[name][:1] for name in biased}
    got = graph.weights(plan(attention_bias=attention_bias, mlp_bias=mlp_bias, tie_word_embeddings=tied))
    assert got == {name: (shape, "float32") for name, shape in wanted.items()}


@pytest.mark.parametrize(
    ("section", "tied", "names"),
    [
        ("embedding", False, {"embedding"}), ("embedding", True, {"embedding"}), ("head", False, {"final_norm", "lm_head"}),
        ("head", True, {"final_norm", "embedding"}), ("layers.1", True, {f"layers.1.{name}" for name in WEIGHTS}),
    ],
)  # fmt: skip
def test_weights_of_one_section(section: str, tied: bool, names: set[str]) -> None:
    part = graph.weights(plan(sections=(section,), tie_word_embeddings=tied))
    assert part.keys() == names
    assert part.items() <= graph.weights(plan(tie_word_embeddings=tied)).items()


@given(targets=st.sets(st.sampled_from(tuple(LINEARS))), section=st.sampled_from((None, *taps.sections(2))))
def test_adapter(targets: set[str], section: str | None) -> None:
    layers = ("layers.0", "layers.1") if section is None else (section,) if section.startswith("layers") else ()
    wanted = {}
    for name in targets:
        rows, columns = WEIGHTS[name]
        wanted |= {f"{layer}.{name}.lora_a": ((3, columns), "float32") for layer in layers}
        wanted |= {f"{layer}.{name}.lora_b": ((rows, 3), "float32") for layer in layers}
    assert graph.adapter(plan(targets=tuple(targets), sections=None if section is None else (section,))) == wanted


@pytest.mark.parametrize("others", OTHERS, ids=lambda one: one.model_type)
def test_weights_of_other_architectures_are_the_layouts(others: Layout) -> None:
    whole = other_plan(others)
    assert graph.weights(whole) == {weight.name: (weight.shape, "float32") for weight in weights.weights(others)}
    parts = [graph.weights(whole.model_copy(update={"sections": (section,)})) for section in whole.held]
    merged = {name: expected for part in parts for name, expected in part.items()}
    assert merged == graph.weights(whole)
    assert sum(map(len, parts)) == len(merged) + others.tie_word_embeddings  # a tied head needs the embedding again
    if others.model_type == "gpt2":
        assert parts[0].keys() == {"embedding", "position_embedding"}
        assert parts[-1].keys() == {"embedding", "final_norm", "final_norm.bias"}


def test_the_real_models_weights_are_what_a_whole_graph_needs() -> None:
    opened = checkpoint.locate("smollm2-135m")
    whole = GraphPlan(layout=opened.layout, dtype="float32", lora=Lora(rank=8, alpha=16))
    assert graph.weights(whole).keys() == opened.tensors.keys()
    part = {"layers.7.q_proj": ((576, 576), "float32"), "layers.7.k_proj": ((192, 576), "float32")}
    assert part.items() <= graph.weights(whole).items()
    graph.require(part, {name: checkpoint.load(opened, name) for name in part}, "open")


# require


EXPECTED: graph.Expected = {"w": ((2, 3), "float32"), "x": ((3,), "float64"), "ids": ((4,), "int64")}


def test_what_is_expected_passes() -> None:
    graph.require(EXPECTED, filled(EXPECTED), "open")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_narrower_weight_passes_unless_exact(dtype: type) -> None:
    narrow = filled(EXPECTED) | {"w": np.ones((2, 3), dtype)}
    graph.require(EXPECTED, narrow, "open")
    with pytest.raises(Invalid, match=r"open: w is .*16\[2, 3\], must be float32\[2, 3\]"):
        graph.require(EXPECTED, narrow, "open", exact=True)


def test_a_large_float64_is_finite() -> None:
    graph.require(EXPECTED, filled(EXPECTED) | {"x": np.array([1e300, -1e300, 5e-324])}, "block")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.ones((3, 2), np.float32)}, r"open: w is float32\[3, 2\], must be float32\[2, 3\]"),
        ({"w": np.ones((2, 3, 1), np.float32)}, r"open: w is float32\[2, 3, 1\], must be float32\[2, 3\]"),
        ({"w": np.ones((2, 3))}, r"open: w is float64\[2, 3\], must be float32\[2, 3\]"),
        ({"x": np.ones(3, np.float32)}, r"open: x is float32\[3\], must be float64\[3\]"),
        ({"x": np.ones(3, np.float16)}, r"open: x is float16\[3\], must be float64\[3\]"),
        ({"ids": np.ones(4, np.int32)}, r"open: ids is int32\[4\], must be int64\[4\]"),
        ({"y": np.ones(1)}, "open: there is no tensor 'y'; allowed: ids, w, x"),
        ({"w": np.full((2, 3), np.nan, np.float32)}, "open: w holds NaN or infinity; look for what made it"),
        ({"x": np.array([1, -np.inf, 1])}, "open: x holds NaN or infinity"),
        ({"w": np.full((2, 3), np.inf, ml_dtypes.bfloat16)}, "open: w holds NaN or infinity"),
    ],
)
def test_what_is_not_expected_is_named(change: dict[str, np.ndarray], message: str) -> None:
    refuses(message, graph.require, EXPECTED, filled(EXPECTED) | change, "open")


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_missing_is_named(name: str) -> None:
    tensors = {other: tensor for other, tensor in filled(EXPECTED).items() if other != name}
    refuses(f"open: {name} is missing; it takes 3 tensors", graph.require, EXPECTED, tensors, "open")


# Batches


@pytest.mark.parametrize("value", [0, 40])
def test_a_batch_at_the_limits_passes(value: int) -> None:
    graph.require_batch(plan(), ids((B, 9), value), None)
    graph.require_batch(plan(), ids((1, 1), value), None)
    graph.require_batch(plan(), ids(), labels(value))


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (ids((T,)), r"ids are int64\[7\], must be int64 \[sequences, tokens\], at least one of each"),
        (ids((B, T, 1)), r"ids are int64\[5, 7, 1\]"),
        (ids((0, T)), r"ids are int64\[0, 7\]"),
        (ids((B, 0)), r"ids are int64\[5, 0\]"),
        (ids().astype(np.int32), r"ids are int32\[5, 7\]"),
        (ids().astype(np.float64), r"ids are float64\[5, 7\]"),
        (ids((B, 10)), "10 tokens a sequence, allowed: max_position_embeddings = 9; cut them"),
        (ids(value=41), r"ids lie in 41 .. 41, allowed: 0 .. 40; is it this model's tokenizer\?"),
        (ids(value=-1), "ids lie in -1 .. -1, allowed: 0 .. 40"),
    ],
)
def test_ids_that_are_refused(got: np.ndarray, message: str) -> None:
    refuses(message, graph.require_batch, plan(), got, None)


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (labels()[:, 1:], r"labels are int64\[5, 6\], must be int64\[5, 7\], as ids"),
        (labels().astype(np.int32), r"labels are int32\[5, 7\]"),
        *BAD_LABELS,
    ],
)
def test_labels_that_are_refused(got: np.ndarray, message: str) -> None:
    refuses(message, graph.require_batch, plan(), ids(), got)


POSITIONS, SEGMENTS = np.tile([0, 1, 2, 0, 1, 2, 0], (B, 1)), np.tile([0, 0, 0, 1, 1, 1, -1], (B, 1))


def test_positions_may_start_anew_so_that_a_row_is_longer_than_the_model_has_positions() -> None:
    long = np.tile(POSITIONS, (1, 3))
    graph.require_batch(plan(), ids((B, 21)), None, long, np.tile(SEGMENTS, (1, 3)))
    graph.require_batch(plan(), ids(), labels(), POSITIONS, SEGMENTS)
    graph.require_batch(plan(), ids(), None, np.full((B, T), 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": POSITIONS[:, 1:]}, r"positions are int64\[5, 6\], must be int64\[5, 7\], as ids"),
        ({"positions": POSITIONS.astype(np.int32)}, r"positions are int32\[5, 7\]"),
        ({"positions": POSITIONS - 1}, r"positions lie in -1 .. 1, allowed: 0 .. 8 \(max_position_embeddings = 9\)"),
        ({"positions": POSITIONS + 7}, "positions lie in 7 .. 9, allowed: 0 .. 8"),
        ({"segments": SEGMENTS[:1]}, r"segments are int64\[1, 7\], must be int64\[5, 7\]"),
        ({"segments": SEGMENTS - 1}, "segments has -2, allowed: 0 and more, or -1 for padding"),
        ({"labels": ids(), "segments": SEGMENTS}, r"labels\[0, 3\] counts, and its token is padding or the first one of its segment"),
        ({"labels": np.where(SEGMENTS == -1, 3, labels()), "segments": SEGMENTS}, r"labels\[0, 6\] counts, and its token is padding"),
    ],
)
def test_places_that_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    refuses(message, lambda: graph.require_batch(plan(), ids(), **{"labels": None} | change))


# forward and gradients


def test_positions_give_the_tables_a_dimension_of_sequences() -> None:
    free, placed = (graph.tap_shapes(plan(), B, T, positions=given) for given in (False, True))
    assert {name for name in free if free[name] != placed[name]} == {"rope.cos", "rope.sin"}
    assert placed["rope.cos"] == ((5, 7, 4), "float64")
    assert graph.tap_shapes(other_plan(GPT2), B, T)["position_embedding"] == ((7, 12), "float64")
    assert graph.tap_shapes(other_plan(GPT2), B, T, positions=True)["position_embedding"] == ((5, 7, 12), "float64")


def test_in_bfloat16_the_loss_and_the_adapters_gradients_are_float32() -> None:
    answer = graph.expected_graph_answer(plan(dtype="bfloat16"), ("loss", "logits"), B, T, gradients=True)
    assert {name: dtype for name, (_, dtype) in answer.items() if dtype != "float32"} == {"logits": "bfloat16"}
    block = graph.expected_block_answer(plan(dtype="bfloat16"), "layers.0", ["input", "bar.output", "override.gated"], B, T)
    assert {dtype for name, (_, dtype) in block.items() if ".lora_" in name and name.startswith("grad")} == {"float32"}
    assert {dtype for name, (_, dtype) in block.items() if name in ("grad.input", "grad.gated", "gated", "output")} == {"bfloat16"}


@pytest.mark.parametrize(
    ("path", "tap"), [("chunked_loss", "logits"), ("fused_attention", "layers.1.weights"), ("fused_lora", "layers.0.k_proj.lora_ax")]
)
def test_a_tap_that_a_path_never_holds(path: str, tap: str) -> None:
    wanted = plan(paths=(path,))
    assert tap not in graph.tap_shapes(wanted, B, T)
    assert tap in graph.tap_shapes(plan(), B, T)
    message = f"the path {path} never holds the tap {tap}; leave it out"
    refuses(message, lambda: graph.expected_graph_answer(wanted, [tap], B, T, gradients=False))


def test_the_shapes_of_all_taps() -> None:
    shapes = graph.tap_shapes(plan(), B, T)
    assert tuple(shapes) == taps.full_names(plan())
    some = {
        "embedding": (5, 7, 14), "rope.cos": (7, 4), "layers.0.q_proj": (5, 7, 24), "layers.1.k_proj.base": (5, 7, 8),
        "layers.1.k_proj.lora_ax": (5, 7, 3), "layers.1.down_proj.lora_bax": (5, 7, 14), "layers.0.q_rope": (5, 6, 7, 4),
        "layers.0.k_rope": (5, 2, 7, 4), "layers.0.scores": (5, 6, 7, 7), "layers.0.context": (5, 7, 24), "layers.0.gated": (5, 7, 22),
        "logits": (5, 7, 41), "loss": (),
    }  # fmt: skip
    assert {name: shapes[name] for name in some} == {name: (shape, "float64") for name, shape in some.items()}
    assert set(graph.tap_shapes(plan(dtype="float32"), B, T).values()) == {(shape, "float32") for shape, _ in shapes.values()}


def test_what_forward_and_gradients_answer() -> None:
    wanted = ("loss", "layers.1.scores")
    forward = {"loss": ((), "float64"), "layers.1.scores": ((5, 6, 7, 7), "float64")}
    assert graph.expected_graph_answer(plan(), wanted, B, T, gradients=False) == forward
    grads = {f"grad.{name}": (shape, "float64") for name, (shape, _) in graph.adapter(plan()).items()}
    assert graph.expected_graph_answer(plan(), wanted, B, T, gradients=True) == forward | grads
    assert len(grads) == 8


def test_a_tap_that_is_none() -> None:
    for name in ("layers.2.output", "layers.0.q_proj.base", "head", "layers.0.input"):
        refuses(f"there is no tap '{name}'; allowed: embedding, rope.cos", lambda one: graph.expected_graph_answer(
            plan(), [one], B, T, gradients=False), name)  # fmt: skip


def test_offsets_that_are_given_are_part_of_what_open_carries() -> None:
    given = plan(base=Nf4(block_size=32, offsets_given=True))
    offsets = {name: expected for name, expected in graph.weights(given).items() if name.endswith(".offset")}
    assert set(offsets.values()) == {((), "float32")}
    assert set(offsets) == {f"layers.{layer}.{name}.offset" for layer in range(given.layout.num_hidden_layers) for name in ATTENTION + MLP}
    assert not any(name.endswith(".offset") for name in graph.weights(plan(base=Nf4(block_size=32))))


def test_offsets_without_double_quantisation_are_refused() -> None:
    with pytest.raises(ValueError, match="offsets_given without double_quant"):
        Nf4(double_quant=False, offsets_given=True)
