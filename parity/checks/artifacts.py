"""Tier E: artifacts. What a stack saves, loads and merges; what every reader makes of the same files (docs/theory.md, Artifacts)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from contract.artifacts.saved import ADAPTER, PEFT
from contract.worker.plan import Nf4
from contract.worker.score import LOGITS
from parity.checks import artifact_cache, artifact_checkpoint, artifact_files
from parity.checks import artifact_judges as judges
from parity.checks import artifact_packed as _registers  # noqa: F401  (how its cases travel)
from parity.checks.artifact_case import ArtifactCase, MergeAsk, SaveAsk, ScoreAsk, in_bfloat16, on_disk
from parity.checks.artifact_files import BASE, MERGED, NARROW, V2
from parity.checks.check import Answered, Ask, Case, Check, GraphNeeds, Judge, Plan, Question
from parity.checks.graph_draws import Draw
from parity.checks.graph_layouts import OPTIONS, PLAIN, Recipe
from parity.judge.verdict import Comparison


def _rank_stabilised(recipe: Recipe) -> Recipe:
    return replace(recipe, lora=recipe.lora.model_copy(update={"rslora": True}))


NF4 = Nf4(block_size=32, double_quant=False)
"""Without nested absmax, whose offset no two programs sum alike: both stacks have the same weights from the files alone."""

RECIPES: tuple[tuple[Recipe, Nf4 | None], ...] = (
    (_rank_stabilised(OPTIONS["llama"][0]), None),
    (PLAIN["gpt2"][0], None),
    (PLAIN["llama"][0], NF4),
)
"""rslora, ranks and alphas of single linears, biases, a head of its own; transposed and fused weights, a tied head; an NF4 base."""

_PLAIN_ONLY = "a stack's loading has one path; generation's, through the cache, is e.kv_cache's"


NARROW_FILES = 1
"""Which of them is of values that bfloat16 holds, and lies in it: files in 16 bits are read by code of their own."""


def _cases(which: Sequence[int]) -> Iterator[Case]:
    for seed in which:
        recipe, base = RECIPES[seed]
        draw = Draw(recipes=(recipe,), base=base)
        case = draw.case(recipe, seed, initial=False, spiky=False)
        yield on_disk(in_bfloat16(case) if seed == NARROW_FILES else case)


def _needs(which: Sequence[int], *requests: str, score: bool = False) -> GraphNeeds:
    every = [Draw(recipes=(RECIPES[one][0],), base=RECIPES[one][1]).needs() for one in which]
    return GraphNeeds(
        model_types=tuple(sorted({name for one in every for name in one.model_types})), nf4=any(one.nf4 for one in every),
        layout_options=tuple(sorted({option for one in every for option in one.layout_options})),
        patterns=any(one.patterns for one in every), score=score, requests=requests,
    )  # fmt: skip


def _check(name: str, title: str, plans: tuple[Plan, ...], not_applicable: dict[Question, str], which: Sequence[int]) -> Check:
    return Check(
        id=name, tier="E", title=title, operations=(), plans=plans, not_applicable=not_applicable, cases=None,
        fixed_cases=partial(_cases, which), fixed_count=len(which),
    )  # fmt: skip


# e.saved


def _ask_saved(case: Case) -> tuple[Ask, ...]:
    assert isinstance(case, ArtifactCase)
    return (SaveAsk(case=case),)


def _saved() -> Check:
    every = tuple(range(len(RECIPES)))
    plans = tuple(
        Plan(question=question, dtype="float32", requests=_ask_saved, judge=judge, graph=_needs(every, "save"))
        for question, judge in ((Question.SAME_FUNCTION, judges.saved_alike), (Question.PRECISION, judges.saved))
    )
    not_applicable = {Question.FAST_PATH: "a stack has one way to save"}
    return _check("e.saved", "what a stack saves is the adapter: v2, v3, PEFT", plans, not_applicable, every)


# e.loaded, e.folder: logits of files


def _asks(dtype: str, *named: tuple[str, str | None]) -> Callable[[Case], tuple[Ask, ...]]:
    """Scores of (model, adapter) pairs."""

    def asks(case: Case) -> tuple[Ask, ...]:
        assert isinstance(case, ArtifactCase)
        case.prepare(folder for pair in named for folder in pair)
        return tuple(ScoreAsk(case=case, dtype=dtype, model=model, adapter=adapter) for model, adapter in named)

    return asks


def _judge(dtype: str, *named: tuple[str, str | None]) -> Judge:
    """Each against the reference; of two stacks, against each other."""

    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        assert isinstance(case, ArtifactCase)
        declared, found = [one for stack in answered for one in stack.elementary], []
        for number, (model, adapter) in enumerate(named):
            graph = case.means(model, adapter)
            first, *other = (stack.answers[number][LOGITS] for stack in answered)
            label = model if adapter is None else f"{model} with {adapter}"
            found.append(
                judges.logits(
                    label, graph, first, declared, dtype=dtype, false_alarm=false_alarm / len(named), expected=other[0] if other else None
                )
            )
        return found

    return judge


Named = Sequence[tuple[str, str | None]]
"""(model, adapter) pairs."""


def _scores(which: Sequence[int], question: Question, dtype: str, named: Named, *, witness: bool = False) -> Plan:
    return Plan(
        question=question, dtype=dtype, requests=_asks(dtype, *named), judge=_judge(dtype, *named), statistical=1,
        graph=_needs(which, score=True), witness=witness,
    )  # fmt: skip


def _wide(which: Sequence[int], named: Named) -> tuple[Plan, ...]:
    """In float64 two stacks against each other, and each against the reference."""
    return tuple(_scores(which, question, "float64", named) for question in (Question.SAME_FUNCTION, Question.PRECISION))


def _witnessed(which: Sequence[int], named: Named) -> tuple[Plan, ...]:
    """The same in float32, in which a witness is asked too, and compared with each stack."""
    return tuple(_scores(which, question, "float32", named, witness=True) for question in (Question.PRECISION, Question.SAME_FUNCTION))


def _loaded() -> Check:
    which = (0, 1)
    plans = (*_wide(which, [(BASE, folder) for folder in (ADAPTER, V2, NARROW)]), *_witnessed(which, [(BASE, PEFT)]))
    title = "an adapter of every format, read by each stack and by PEFT"
    return _check("e.loaded", title, plans, {Question.FAST_PATH: _PLAIN_ONLY}, which)


def _loaded_nf4() -> Check:
    """PEFT's format does not say how the base is held."""
    which = (2,)
    title = "an adapter that says that its base is NF4"
    return _check("e.loaded_nf4", title, _wide(which, [(BASE, ADAPTER)]), {Question.FAST_PATH: _PLAIN_ONLY}, which)


def _folder() -> Check:
    which = (0, 1)
    named = [(BASE, None), (MERGED, None)]
    plans = (*_wide(which, named), *_witnessed(which, named))
    title = "a base and a merged model, read by each stack and by transformers"
    return _check("e.folder", title, plans, {Question.FAST_PATH: _PLAIN_ONLY}, which)


# e.converted

_CONVERTED: tuple[tuple[str, str | None], ...] = tuple((BASE, folder) for folder in (artifact_files.FULL_CIRCLE, artifact_files.AS_PEFT))
"""From v3 through v2 and PEFT to v3 again; and the PEFT in between."""


def _judge_converted(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    assert isinstance(case, ArtifactCase)
    return [*judges.conversions(case), *_judge("float64", *_CONVERTED)(case, answered, false_alarm)]


def _converted() -> Check:
    which = (0, 1)
    plan = Plan(
        question=Question.PRECISION, dtype="float64", requests=_asks("float64", *_CONVERTED), judge=_judge_converted, statistical=1,
        graph=_needs(which, score=True),
    )  # fmt: skip
    not_applicable = {
        Question.SAME_FUNCTION: "both stacks read the same files by e.loaded, and what a conversion gives is held here bit for bit",
        Question.FAST_PATH: _PLAIN_ONLY,
    }
    return _check("e.converted", "adapters converted from format to format, and back", (plan,), not_applicable, which)


# e.merged


def _ask_merged(dtype: str) -> Callable[[Case], tuple[Ask, ...]]:
    def asks(case: Case) -> tuple[Ask, ...]:
        assert isinstance(case, ArtifactCase)
        return (MergeAsk(case=case, plan=case.plan.model_copy(update={"dtype": dtype})),)

    return asks


def _merged() -> Check:
    which = (0, 1, 2)

    def plan(question: Question, dtype: str, judge: Judge) -> Plan:
        return Plan(question=question, dtype=dtype, requests=_ask_merged(dtype), judge=judge, statistical=2, graph=_needs(which, "merge"))

    plans = (
        plan(Question.SAME_FUNCTION, "float64", judges.merged_alike),
        plan(Question.PRECISION, "float64", judges.merged),
    )
    not_applicable = {Question.FAST_PATH: "a merge has one path, and its bits are held"}
    return _check("e.merged", "a merge in memory: the bits of a merge of files, and the adapter's function", plans, not_applicable, which)


CHECKS: tuple[Check, ...] = (
    _saved(), _loaded(), _loaded_nf4(), _converted(), _folder(), _merged(), artifact_checkpoint.check(), artifact_cache.check(),
)  # fmt: skip
