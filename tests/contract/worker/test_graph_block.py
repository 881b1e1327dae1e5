"""What `block` carries and answers, on the plan of small_plan.py."""

from __future__ import annotations

import numpy as np
import pytest

from contract.worker import graph, taps
from tests.contract.worker.small_plan import BAD_LABELS, B, T, ids, labels, plan, refuses


def block_inputs(section: str, *, dtype: str = "float64") -> dict[str, np.ndarray]:
    """All that may be given: what enters, every override, every cotangent."""
    shapes = {tap.name: graph.shape_of(section, tap, plan(), B, T) for tap in taps.section_taps(plan(), section)}
    tensors = {f"{kind}.{name}": np.ones(shape, dtype) for kind in ("override", "bar") for name, shape in shapes.items()}
    if section == "embedding":
        return tensors | {"ids": ids()}
    if section == "head":
        return tensors | {"input": np.ones((B, T, 14), dtype), "labels": labels()}
    tables = {f"override.rope.{name}": np.ones((T, 4), dtype) for name in ("cos", "sin")}
    return tensors | tables | {"input": np.ones((B, T, 14), dtype)}


@pytest.mark.parametrize("section", ["embedding", "layers.1", "head"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_block_takes_every_override_and_cotangent(section: str, dtype: str) -> None:
    whole = plan(dtype=dtype)
    assert graph.require_block(whole, section, block_inputs(section, dtype=dtype)) == (B, T)
    first = "ids" if section == "embedding" else "input"
    assert graph.require_block(whole, section, {first: block_inputs(section, dtype=dtype)[first]}) == (B, T)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("layers.0", {}, "section 'layers.0' is not open; open: embedding, layers.1, head"),
        ("layers.1", {"input": None}, r"block layers.1: input is missing, or not \[sequences, tokens, hidden_size\]"),
        ("layers.1", {"input": np.ones((T, 14))}, "block layers.1: input is missing, or not"),
        ("layers.1", {"input": np.ones((B, T, 13))}, r"input is float64\[5, 7, 13\], must be float64\[5, 7, 14\]"),
        ("layers.1", {"input": np.ones((0, T, 14))}, "input has 0 sequences of 7 tokens, allowed: at least one of each"),
        ("layers.1", {"input": np.ones((B, 0, 14))}, "input has 5 sequences of 0 tokens, allowed: at least one of each"),
        ("layers.1", {"input": np.ones((B, 10, 14))}, "5 sequences of 10 tokens, .* max_position_embeddings = 9 tokens at most"),
        ("layers.1", {"input": np.full((B, T, 14), np.nan)}, "input holds NaN or infinity"),
        ("layers.1", {"ids": ids()}, "there is no tensor 'ids'"),
        ("layers.1", {"labels": labels()}, "there is no tensor 'labels'"),
        ("layers.1", {"override.q_proj.base": np.ones((B, T, 24))}, "there is no tensor 'override.q_proj.base'"),
        ("layers.1", {"override.input": np.ones((B, T, 14))}, "there is no tensor 'override.input'"),
        ("layers.1", {"override.k_rope": np.ones((B, 6, T, 4))}, r"k_rope is float64\[5, 6, 7, 4\], must be float64\[5, 2, 7, 4\]"),
        ("layers.1", {"bar.output": np.ones((B, T, 14), np.float32)}, r"bar.output is float32\[5, 7, 14\], must be float64"),
        ("layers.1", {"bar.rope.cos": np.ones((T, 4))}, "there is no tensor 'bar.rope.cos'"),
        ("layers.1", {"override.rope.sin": np.ones((T, 2))}, r"rope.sin is float64\[7, 2\], must be float64\[7, 4\]"),
        ("layers.1", {"grad.output": np.ones((B, T, 14))}, "there is no tensor 'grad.output'"),
        ("layers.1", {"output": np.ones((B, T, 14))}, "there is no tensor 'output'"),
        ("embedding", {"ids": None}, r"block embedding: ids is missing, or not \[sequences, tokens\]"),
        ("embedding", {"ids": ids((B, T, 1))}, "block embedding: ids is missing, or not"),
        ("embedding", {"ids": ids(value=41)}, "ids lie in 41 .. 41"),
        ("embedding", {"input": np.ones((B, T, 14))}, "there is no tensor 'input'"),
        ("head", {"override.rope.cos": np.ones((T, 4))}, "there is no tensor 'override.rope.cos'"),
        ("head", {"labels": labels()[:, 1:]}, r"labels is int64\[5, 6\], must be int64\[5, 7\]"),
        ("head", {"labels": None}, r"there is no tensor 'bar.loss'"),
        *(("head", {"labels": got}, message) for got, message in BAD_LABELS),
    ],
)  # fmt: skip
def test_a_block_that_is_refused(section: str, change: dict[str, np.ndarray | None], message: str) -> None:
    held = plan(sections=("embedding", "layers.1", "head"))
    tensors = {name: tensor for name, tensor in (block_inputs(section) | change).items() if tensor is not None}
    refuses(message, graph.require_block, held, section, tensors)


def test_a_float32_block_takes_no_narrower_values() -> None:
    tensors = block_inputs("layers.1", dtype="float32") | {"override.output": np.ones((B, T, 14), np.float16)}
    refuses("override.output is float16", graph.require_block, plan(dtype="float32"), "layers.1", tensors)


@pytest.mark.parametrize("section", ["embedding", "layers.1", "head"])
def test_a_block_answers_its_taps_and_without_cotangents_no_gradient(section: str) -> None:
    given_names = [name for name in block_inputs(section) if not name.startswith("bar.")]
    taps_of_it = {tap.name: (graph.shape_of(section, tap, plan(), B, T), "float64") for tap in taps.section_taps(plan(), section)}
    assert graph.expected_block_answer(plan(), section, given_names, B, T) == taps_of_it


def test_the_loss_is_there_with_labels_alone() -> None:
    assert graph.expected_block_answer(plan(), "head", ["input"], B, T).keys() == {"final_norm", "logits"}
    assert graph.expected_block_answer(plan(), "head", ["input", "labels"], B, T).keys() == {"final_norm", "logits", "loss"}


def gradients_of(section: str, names: list[str]) -> dict[str, tuple[int, ...]]:
    answer = graph.expected_block_answer(plan(), section, names, B, T)
    assert {dtype for _, dtype in answer.values()} == {"float64"}
    return {name.removeprefix("grad."): shape for name, (shape, _) in answer.items() if name.startswith("grad.")}


LORA_GRADIENTS = {
    "k_proj.lora_a": (3, 14), "k_proj.lora_b": (8, 3), "down_proj.lora_a": (3, 22), "down_proj.lora_b": (14, 3),
}  # fmt: skip


def test_one_cotangent_asks_for_the_gradients_of_input_overrides_and_adapter() -> None:
    names = ["input", "bar.context", "override.k_rope", "override.scores", "override.rope.cos", "override.rope.sin"]
    assert gradients_of("layers.1", names) == {"input": (5, 7, 14), "k_rope": (5, 2, 7, 4), "scores": (5, 6, 7, 7)} | LORA_GRADIENTS
    assert gradients_of("layers.1", ["input", "bar.output"]) == {"input": (5, 7, 14)} | LORA_GRADIENTS


def test_gradients_outside_of_the_blocks() -> None:
    assert gradients_of("embedding", ["ids", "bar.embedding"]) == {}
    assert gradients_of("embedding", ["ids", "bar.embedding", "override.embedding", "override.rope.cos"]) == {"embedding": (5, 7, 14)}
    assert gradients_of("head", ["input", "labels", "bar.loss"]) == {"input": (5, 7, 14)}
    names = ["input", "labels", "bar.loss", "override.logits", "override.loss"]
    assert gradients_of("head", names) == {"input": (5, 7, 14), "logits": (5, 7, 41), "loss": ()}


def test_every_tap_has_a_gradient_when_every_tap_is_overridden() -> None:
    names = [tap.name for tap in taps.section_taps(plan(), "layers.1")]
    assert gradients_of("layers.1", list(block_inputs("layers.1"))).keys() == {"input", *names, *LORA_GRADIENTS}
