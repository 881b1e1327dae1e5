"""Laws of whole graphs, of each architecture, on the plain path and with fused attention, in float64.

What should be equal is bit-exact where shapes are the same, and else within what roundings make of it (transformers_witness.py).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from contract.data.batches import Batch, collate
from contract.data.row import Example
from contract.worker import graph
from contract.worker.plan import GraphPlan, Path
from stacks.torch_qlora.ops import TorchQlora
from tests.stacks.torch_qlora.tiny_architectures import LAYOUTS, ONE_EACH, ROPE, batch, plan
from tests.stacks.torch_qlora.tiny_torch_graph import GRAPH, opened, weights
from tests.stacks.torch_qlora.transformers_witness import Answers, allowed, own, responses

PATHS: dict[str, tuple[Path, ...]] = {"plain": (), "fused": ("fused_attention",)}
LENGTHS = (9, 4, 6)
"""Of three examples; the windows are shorter than the first."""


@cache
def stack(name: str, paths: str) -> TorchQlora:
    return opened(plan(name, paths=PATHS[paths]), weights(plan(name)))


@cache
def sizes(name: str) -> dict[bool, float]:
    """What roundings of 2^-53 may make of any tap, and of any gradient (True), relative to its largest value: the largest of three."""
    wanted, found = plan(name), []
    for tensors in (batch(), request(collate([examples()], pad_id=0)), request(collate([examples()[:1]], pad_id=0))):
        single, double = (own(wanted, weights(wanted), tensors, dtype) for dtype in ("float32", "float64"))
        found.append(responses(single, double))
    unit = allowed({"logits": np.ones(1), "grad.": np.ones(1)}, found, "float64")
    return {False: unit["logits"], True: unit["grad."]}


def close(name: str, got: np.ndarray, wanted: np.ndarray, *, gradient: bool = False) -> bool:
    return bool(np.abs(got - wanted).max() <= sizes(name)[gradient] * np.abs(wanted).max())


def examples() -> list[Example]:
    rng = np.random.default_rng(4)
    found = []
    for sample, length in enumerate(LENGTHS):
        ids = rng.integers(0, ROPE["vocab_size"], length).astype(np.int32)
        found.append(Example(sample=sample, ids=ids, labels=np.where(np.arange(length) > sample, ids, graph.IGNORE_INDEX).astype(np.int32)))
    return found


def request(batch: Batch) -> dict[str, np.ndarray]:
    return {"ids": batch.ids_BT, "labels": batch.labels_BT, "positions": batch.positions_BT, "segments": batch.segments_BT}


def answer(name: str, paths: str, tensors: Answers, *more: str) -> Answers:
    return stack(name, paths).gradients(GRAPH, ["logits", "loss", *more], tensors).tensors


def sums(found: list[tuple[Answers, int]]) -> Answers:
    """The gradients of the sum of all losses, from means over so many tokens each."""
    names = [name for name in found[0][0] if name.startswith("grad.")]
    return {name: sum(np.asarray(answer[name]) * tokens for answer, tokens in found) for name in names}  # type: ignore[misc]


def contexts(wanted: GraphPlan) -> list[str]:
    return [f"layers.{layer}.context" for layer in range(wanted.layout.num_hidden_layers)]


every = pytest.mark.parametrize("name", ONE_EACH)
both = pytest.mark.parametrize("paths", PATHS)


@every
@both
def test_packed_rows_are_rows_apart(name: str, paths: str) -> None:
    """Three examples in one row, with padding behind them: logits, losses and gradients are those of each alone."""
    packed = collate([examples()], pad_id=0, width=sum(LENGTHS) + 2)
    assert packed.ids_BT.shape[1] > LAYOUTS[name].max_position_embeddings  # more tokens than positions, and that is fine
    whole = answer(name, paths, request(packed))
    alone = []
    start = 0
    for example in examples():
        single = collate([[example]], pad_id=0)
        found = answer(name, paths, {"ids": single.ids_BT, "labels": single.labels_BT})
        length = len(example.ids)
        assert close(name, whole["logits"][:, start : start + length], found["logits"])
        alone.append((found, single.tokens))
        start += length
    together, apart = sums([(whole, packed.tokens)]), sums(alone)
    assert packed.tokens == sum(tokens for _, tokens in alone)
    for gradient in together:
        assert close(name, together[gradient], apart[gradient], gradient=True), gradient


@every
@both
def test_a_section_of_a_packed_batch_is_its_part_of_the_whole(name: str, paths: str) -> None:
    tensors = request(collate([examples()], pad_id=0, width=sum(LENGTHS) + 2))
    whole = answer(name, paths, tensors, "layers.0.output", "layers.1.output")
    given = {"input": whole["layers.0.output"], "positions": tensors["positions"], "segments": tensors["segments"]}
    found = stack(name, paths).block(GRAPH, "layers.1", given).tensors
    assert found["output"].tobytes() == whole["layers.1.output"].tobytes()


@every
@both
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_and_sees_nothing(name: str, paths: str, side: str) -> None:
    example = examples()[0]
    single = collate([[example]], pad_id=0)
    plain = answer(name, paths, {"ids": single.ids_BT, "labels": single.labels_BT})
    wide, pad = request(collate([[example]], pad_id=0, width=13)), slice(9, 13)
    if side == "left":
        wide, pad = {tensor: np.roll(array, 4, axis=1) for tensor, array in wide.items()}, slice(0, 4)
    names = contexts(plan(name))
    padded = answer(name, paths, wide, *names)
    kept = np.delete(padded["logits"], np.arange(13)[pad], axis=1)
    assert close(name, kept, plain["logits"])
    for gradient in (tensor for tensor in plain if tensor.startswith("grad.")):
        assert close(name, padded[gradient], plain[gradient], gradient=True), gradient
    for tap in names:
        assert not padded[tap][:, pad].any()
        assert padded[tap].any()
    # what stands in the padding is never seen, by a single bit
    wide["ids"] = wide["ids"].copy()
    wide["ids"][:, pad] = 17
    other = answer(name, paths, wide, *names)
    assert np.delete(other["logits"], np.arange(13)[pad], axis=1).tobytes() == kept.tobytes()
    assert all(other[tensor].tobytes() == padded[tensor].tobytes() for tensor in padded if tensor != "logits")


@every
@both
def test_a_later_token_changes_no_earlier_value(name: str, paths: str) -> None:
    first = batch()
    changed = first | {"ids": first["ids"].copy()}
    changed["ids"][:, 7] = (changed["ids"][:, 7] + 1) % ROPE["vocab_size"]
    one, other = (answer(name, paths, tensors)["logits"] for tensors in (first, changed))
    assert one[:, :7].tobytes() == other[:, :7].tobytes()
    assert (one[:, 7:] != other[:, 7:]).any(axis=2).all()


@every
@both
def test_a_batch_permuted_gives_its_answers_permuted(name: str, paths: str) -> None:
    first, order = batch(), np.array([5, 2, 7, 0, 3, 1, 6, 4])
    one, other = (answer(name, paths, tensors) for tensors in (first, {tensor: array[order] for tensor, array in first.items()}))
    assert close(name, other["logits"], one["logits"][order])
    for gradient in (tensor for tensor in one if tensor.startswith("grad.")):
        assert close(name, other[gradient], one[gradient], gradient=True), gradient


@every
def test_positions_that_are_counted_are_the_ones_that_are_given(name: str) -> None:
    first = batch()
    positions = np.broadcast_to(np.arange(first["ids"].shape[1]), first["ids"].shape).copy()
    one, other = (answer(name, "plain", tensors) for tensors in (first, first | {"positions": positions}))
    assert all(one[tensor].tobytes() == other[tensor].tobytes() for tensor in one)
    turned = answer(name, "plain", first | {"positions": positions[:, ::-1].copy()})
    assert not close(name, turned["logits"], one["logits"])


@every
def test_tokens_see_as_far_as_their_window(name: str) -> None:
    """The first token reaches the last one through as many layers as windows of one step each need, and no fewer."""
    layout = LAYOUTS[name]
    reach = sum((layout.window(layer) or math.inf) - 1 for layer in range(layout.num_hidden_layers))
    first = batch()
    changed = first | {"ids": first["ids"].copy()}
    changed["ids"][:, 0] = (changed["ids"][:, 0] + 1) % ROPE["vocab_size"]
    for paths in PATHS:
        one, other = (answer(name, paths, tensors)["logits"] for tensors in (first, changed))
        touched = (one != other).any(axis=(0, 2))
        assert touched.tolist() == [token <= reach for token in range(len(touched))]


@every
def test_fused_attention_is_attention(name: str) -> None:
    packed = request(collate([examples(), examples()[::-1]], pad_id=0, width=sum(LENGTHS) + 2))
    for tensors in (batch(), packed):
        plain, fused = (answer(name, paths, tensors, *contexts(plan(name))) for paths in PATHS)
        for tensor in plain:
            assert close(name, fused[tensor], plain[tensor], gradient=tensor.startswith("grad.")), tensor
        assert any(fused[tensor].tobytes() != plain[tensor].tobytes() for tensor in plain)


@every
@pytest.mark.parametrize("paths", [("checkpoint",), ("checkpoint", "fused_attention", "chunked_loss")], ids="-".join)
def test_a_packed_batch_through_the_production_paths(name: str, paths: tuple[Path, ...]) -> None:
    packed = request(collate([examples(), examples()[::-1]], pad_id=0, width=sum(LENGTHS) + 2))
    plain = answer(name, "plain", packed)
    fast = opened(plan(name, paths=paths), weights(plan(name))).gradients(GRAPH, ["loss"], packed).tensors
    for tensor in fast:
        assert close(name, fast[tensor], plain[tensor], gradient=tensor.startswith("grad.")), tensor
