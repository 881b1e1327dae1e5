"""The cache of keys and values: reading a prompt and writing on gives the logits of one pass over all tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from contract.artifacts.saved import ADAPTER
from contract.data.batches import PADDING
from contract.worker.graph import IGNORE_INDEX
from contract.worker.score import LOGITS
from parity.checks import artifact_judges as judges
from parity.checks.artifact_case import ArtifactCase, ScoreAsk, on_disk
from parity.checks.check import Answered, Ask, Case, Check, GraphNeeds, Plan, Question
from parity.checks.graph_draws import Draw
from parity.checks.graph_layouts import OPTIONS, PLAIN, Recipe
from parity.judge.verdict import Comparison
from parity.reference.graph import Batch

PROMPTS = {"qwen2": 5, "gpt2": 1}
"""Tokens that are read at once, before the others are written one by one: more than the window, and none but the first."""
LEFT = 2
"""Tokens of padding before the first sequence's own, as generation has before a shorter prompt."""
TOKENS = 11
"""Longer than the window; after either prompt enough single tokens for captured kernels to be replayed."""

RECIPES: tuple[Recipe, ...] = tuple(replace(recipe, batch=(2, TOKENS)) for recipe in (OPTIONS["qwen2"][0], PLAIN["gpt2"][0]))
"""A window in one of two layers, so that in the other the first token is seen to the end, and RoPE; learned positions."""


def cases() -> Iterator[ArtifactCase]:
    """Each recipe, padded on the left."""
    for seed, recipe in enumerate(RECIPES):
        case = Draw(recipes=(recipe,)).case(recipe, seed, initial=False, spiky=False)
        batch = _padded(case.batch)
        yield on_disk(replace(case, batch=batch, inputs={"float64": batch.tensors()}, _made={}))


def _padded(batch: Batch) -> Batch:
    segments, labels = np.zeros_like(batch.ids), batch.ids.copy()
    segments[0, :LEFT] = PADDING
    labels[0, : LEFT + 1] = IGNORE_INDEX
    held = segments != PADDING
    return Batch(ids=batch.ids, labels=labels, positions=np.where(held, np.cumsum(held, axis=1) - 1, 0), segments=segments)


def _asks(case: Case) -> tuple[Ask, ...]:
    assert isinstance(case, ArtifactCase)
    return tuple(ScoreAsk(case=case, dtype="float32", adapter=ADAPTER, prompt=prompt) for prompt in (None, _prompt(case)))


def _prompt(case: ArtifactCase) -> int:
    return PROMPTS[case.plan.layout.model_type]


def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """The way through the cache against the one pass, of the same stack in the same dtype."""
    assert isinstance(case, ArtifactCase)
    whole, through = (answer[LOGITS] for answer in answered[0].answers)
    first = _prompt(case) - 1
    return [
        judges.logits(
            "through the cache", case, through, answered[0].elementary, dtype="float32", false_alarm=false_alarm,
            expected=whole[:, first:].astype(np.float64), sides=2, first=first,
        )
    ]  # fmt: skip


def check() -> Check:
    """e.kv_cache."""
    layouts = [recipe.layout for recipe in RECIPES]
    needs = GraphNeeds(
        model_types=tuple(sorted({layout.model_type for layout in layouts})), score=True,
        layout_options=tuple(sorted({option for layout in layouts for option in layout.options})),
    )  # fmt: skip
    plan = Plan(question=Question.FAST_PATH, dtype="float32", requests=_asks, judge=judge, statistical=1, graph=needs)
    elsewhere = "asked of the pass without a cache by e.loaded"
    return Check(
        id="e.kv_cache", tier="E", title="reading and writing through the cache of keys and values", operations=(), plans=(plan,),
        not_applicable=dict.fromkeys((Question.SAME_FUNCTION, Question.PRECISION), elsewhere),
        cases=None, fixed_cases=cases, fixed_count=len(RECIPES),
    )  # fmt: skip
