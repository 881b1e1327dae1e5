"""The tinygrad stack's graphs of every architecture: what tier C does not ask.

Which values are right is tier C's: `parity run --tier C`. Here one of each architecture meets the float64 oracle by night, and by day what
must hold to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract.data.batches import PADDING
from contract.worker import graph, taps
from contract.worker.plan import GraphPlan
from parity.judge.perturb import respond
from parity.reference.graph import Batch
from stacks.tinygrad_lora.models.build import build
from stacks.tinygrad_lora.ops import TinygradLora
from stacks.tinygrad_lora.session import Session
from tests.stacks.tinygrad_lora.tiny_tinygrad_graph import EXP_ULP, RUNS, outside, tensors_of
from tests.stacks.torch_qlora.tiny_architectures import ONE_EACH, batch, plan

T = 7


def opened(of: GraphPlan, tensors: dict[str, np.ndarray] | None = None) -> Session:
    TinygradLora("CPU")
    return Session(of, tensors_of(of) if tensors is None else tensors, device="CPU", channel=None)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ONE_EACH)
def test_one_of_each_against_the_oracle(name: str) -> None:
    of = plan(name)
    tensors, wanted = tensors_of(of), list(taps.full_names(of))
    adapter = {name: tensors[name] for name in graph.adapter(of)}
    got = opened(of, tensors).gradients(wanted, batch())
    trace, response = respond(of, tensors.__getitem__, adapter, Batch(**batch()), runs=RUNS, seed=1, ulp=EXP_ULP)
    exact = trace.taps | {f"grad.{name}": gradient for name, gradient in trace.grads.items()}
    assert set(got) == set(exact)
    assert outside(got, exact, response, of.dtype) == {}


def test_each_linear_has_its_own_scaling() -> None:
    """alpha / sqrt(rank), of the linear's own pattern, else of its kind's, else of all."""
    scalars = [build(plan("llama")).scalars(f"layers.{layer}") for layer in (0, 1)]
    found = [{name.removesuffix(".scaling"): value for name, value in one.items() if name.endswith(".scaling")} for one in scalars]
    usual = dict.fromkeys(("k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 7 / 3**0.5)
    common = usual | {"q_proj": 7 / 2**0.5, "up_proj": 2 / 3**0.5}
    assert found == [common | {"v_proj": 5 / 3**0.5}, common | {"down_proj": 7 / 2.0}]


@pytest.mark.parametrize(
    ("name", "divisors"),
    [("gpt2", (6**0.5, 6**0.5)), ("gpt2_unscaled", (1.0, 1.0)), ("gpt2_inverse", (6**0.5, 6**0.5 * 2, 6**0.5 * 3)),
     ("gpt2_unscaled_inverse", (1.0, 2.0)), ("qwen3", (6**0.5, 6**0.5))],
)  # fmt: skip
def test_what_scores_are_divided_by(name: str, divisors: tuple[float, ...]) -> None:
    assert tuple(build(plan(name)).scalars(f"layers.{layer}")["score_divisor"] for layer in range(len(divisors))) == divisors


@pytest.fixture(scope="module")
def packed() -> tuple[Session, dict[str, np.ndarray]]:
    """A GPT-2 of two layers, and a sequence that holds a text of three tokens, one of two, and padding before and after."""
    segments = np.array([[PADDING, 0, 0, 0, 1, 1, PADDING]])
    positions = np.array([[0, 0, 1, 2, 0, 1, 0]])
    return opened(plan("gpt2_unscaled")), {"ids": np.array([[9, 3, 1, 4, 1, 5, 9]]), "positions": positions, "segments": segments}


def logits(session: Session, request: dict[str, np.ndarray], **changed: Any) -> np.ndarray:
    return session.forward(["logits"], request | changed)["logits"]


def test_a_packed_text_depends_on_itself_alone(packed: tuple[Session, dict[str, np.ndarray]]) -> None:
    """To the last bit: whatever stands in the other text, in the padding, and at the padding's positions."""
    session, request = packed
    before, ids = logits(session, request), request["ids"]
    for others, own in ((slice(4, 6), slice(1, 4)), (slice(1, 4), slice(4, 6))):
        changed = ids.copy()
        changed[:, others], changed[:, [0, -1]] = 7, 8
        positions = request["positions"].copy()
        positions[:, [0, -1]] = 5
        after = logits(session, request, ids=changed, positions=positions)
        np.testing.assert_array_equal(after[:, own], before[:, own])
        assert (after[:, others] != before[:, others]).any()


def test_a_packed_text_is_the_text_alone(packed: tuple[Session, dict[str, np.ndarray]]) -> None:
    """The same text at the same places with nothing about it: as a sequence of its own, moved there by padding."""
    session, request = packed
    alone = {"segments": np.where(request["segments"] == 1, 0, PADDING), "ids": np.where(request["segments"] == 1, request["ids"], 0)}
    np.testing.assert_array_equal(logits(session, request, **alone)[:, 4:6], logits(session, request)[:, 4:6])


def test_padding_sees_nothing(packed: tuple[Session, dict[str, np.ndarray]]) -> None:
    session, request = packed
    got = session.forward(["layers.0.weights", "layers.1.context"], request)
    assert not got["layers.0.weights"][:, :, [0, -1]].any()
    assert not got["layers.1.context"][:, [0, -1]].any()
    assert got["layers.1.context"][:, 1:-1].any(axis=-1).all()


def test_positions_of_each_sequence(packed: tuple[Session, dict[str, np.ndarray]]) -> None:
    """With positions the rows of GPT-2's table have a leading dimension; without, they are those of 0 .. T - 1."""
    session, request = packed
    table = tensors_of(session.plan)["position_embedding"]
    given = session.forward(["position_embedding", "embedded"], request)
    np.testing.assert_array_equal(given["position_embedding"], table.astype(np.float64)[request["positions"]])
    assert session.forward(["position_embedding"], {"ids": request["ids"]})["position_embedding"].shape == (T, 18)
