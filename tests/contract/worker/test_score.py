"""What the request `score` takes, and what it must answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from contract.worker.graph import Invalid
from contract.worker.plan import GraphPlan, Lora
from contract.worker.score import Score, Tokens, expected_score, require_tokens
from parity.checks.graph_layouts import PLAIN

PLAN = GraphPlan(layout=PLAIN["llama"][0].layout, dtype="float64", lora=Lora(rank=1, alpha=1.0, targets=()))
IDS = np.array([[3, 0, 5, 7], [1, 2, 3, 4]])
LEFT = {
    "ids": IDS, "positions": np.array([[0, 0, 1, 2], [0, 1, 2, 3]]), "segments": np.array([[-1, 0, 0, 0], [0, 0, 0, 0]]),
}  # fmt: skip


def request(**values: Any) -> Score:
    return Score.model_validate({"model": "base", "dtype": "float64"} | values)


def tokens(prompt: int | None = None, **tensors: np.ndarray) -> Tokens:
    return require_tokens(request(prompt=prompt), PLAN, tensors)


def test_positions_and_segments_are_filled_in() -> None:
    found = tokens(ids=IDS)
    assert found.plain
    assert found.positions_BT.tolist() == [[0, 1, 2, 3]] * 2
    assert not found.segments_BT.any()
    assert not tokens(**LEFT).plain
    assert not tokens(2, **LEFT).plain
    assert not tokens(ids=IDS, positions=IDS * 0 + 3).plain


@pytest.mark.parametrize(("prompt", "scored"), [(None, 4), (1, 4), (3, 2), (4, 1)])
def test_logits_begin_with_the_prompt_s_last_token(prompt: int | None, scored: int) -> None:
    assert expected_score(request(prompt=prompt), PLAN, (2, 4)) == {"logits": ((2, scored, 61), "float64")}


WRONG: dict[str, tuple[int | None, dict[str, np.ndarray], str]] = {
    "nothing": (None, {}, "got no tensors; give ids"),
    "labels": (None, {"ids": IDS, "labels": IDS}, "got ids, labels; give ids"),
    "no such id": (None, {"ids": IDS + 60}, "ids lie in 60 .. 67, allowed: 0 .. 60"),
    "a prompt that is too long": (5, {"ids": IDS}, "prompt is 5; allowed: 1 to 4"),
    "packed": (1, {"ids": IDS, "segments": np.array([[0, 0, 1, 1]] * 2)}, "the cache holds one text a sequence"),
    "padded on the right": (1, {"ids": IDS, "segments": np.array([[0, 0, 0, -1]] * 2)}, "padding on the left"),
    "nothing but padding": (1, {"ids": IDS, "segments": np.full((2, 4), -1)}, "padding on the left"),
    "other positions": (1, {"ids": IDS, "positions": np.array([[0, 1, 2, 4]] * 2)}, "count from 0 after the padding"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_can_t_be_scored_is_refused(name: str) -> None:
    prompt, tensors, message = WRONG[name]
    with pytest.raises(Invalid, match=message):
        tokens(prompt, **tensors)


def test_values_are_held_too() -> None:
    for wrong in ({"prompt": 0}, {"cached": True}, {"dtype": "float16"}, {"base": "int8"}):
        with pytest.raises(ValidationError):
            request(**wrong)
