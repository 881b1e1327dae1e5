"""The tinygrad stack's proxy graph: what tier C does not ask."""

from __future__ import annotations

import numpy as np
import pytest

from contract.worker import graph
from contract.worker.plan import GraphPlan, Lora
from stacks.tinygrad_lora.models.build import build
from stacks.tinygrad_lora.ops import TinygradLora
from stacks.tinygrad_lora.session import Session
from tests.stacks.tinygrad_lora.tiny_tinygrad_graph import tensors_of
from tests.stacks.torch_qlora.tiny_architectures import gpt2

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def plan_of(middle_blocks: int | None) -> GraphPlan:
    return GraphPlan(
        graph="qlora_proxy_v1", layout=gpt2(), dtype="float64", middle_blocks=middle_blocks,
        lora=Lora(rank=3, alpha=6.0, rank_pattern={"lm_head": 2}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def session() -> Session:
    TinygradLora("CPU")
    return Session(plan_of(1), tensors_of(plan_of(1)), device="CPU", channel=None)


def test_logits_of_a_token_depend_on_it_alone(session: Session) -> None:
    """To the last bit: one id gives one row, wherever it stands, and neither positions nor segments change anything."""
    logits = session.forward(["lm_head"], {"ids": IDS})["lm_head"]
    rows: dict[int, np.ndarray] = {}
    for token, row in zip(IDS.ravel().tolist(), logits.reshape(IDS.size, -1), strict=True):
        np.testing.assert_array_equal(rows.setdefault(token, row), row)
    assert len({row.tobytes() for row in rows.values()}) == len(rows)
    places = {"positions": np.zeros_like(IDS), "segments": np.maximum(IDS - 5, -1)}
    np.testing.assert_array_equal(session.forward(["lm_head"], {"ids": IDS, **places})["lm_head"], logits)


def test_its_adapter_has_the_head(session: Session) -> None:
    answer = session.gradients([], {"ids": IDS, "labels": IDS})
    assert {name.removeprefix("grad.") for name in answer} == set(graph.adapter(session.plan))
    assert answer["grad.lm_head.lora_a"].shape == (2, 18)
    assert all(gradient.any() for gradient in answer.values())


def test_without_blocks_nothing_is_scaled() -> None:
    plan = plan_of(0)
    got = Session(plan, tensors_of(plan), device="CPU", channel=None).forward(["embedding", "scaled"], {"ids": IDS})
    np.testing.assert_array_equal(got["scaled"], got["embedding"])
    np.testing.assert_array_equal(got["embedding"], tensors_of(plan)["embedding"].astype(np.float64)[IDS])


@pytest.mark.parametrize(("blocks", "root"), [(None, 2**0.5), (1, 1.0), (0, 1.0)])
def test_the_root_of_the_blocks(blocks: int | None, root: float) -> None:
    assert build(plan_of(blocks)).scalars("head") == {"hidden_size": 18.0, "norm_eps": 1e-6, "sqrt_blocks": root, "lm_head.scaling": 3.0}
