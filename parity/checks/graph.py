"""Tier C: whole graphs, what is asked of them, and where the fault is when one is red."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from contract.worker.capabilities import Elementary
from contract.worker.plan import GraphPlan, Nf4, Path
from contract.worker.process import StackProcess
from parity.checks import graph_draws, graph_judges
from parity.checks.check import Ask, Case, Check, GraphNeeds, Judge, Plan, Question, Tell
from parity.checks.graph_case import ForwardAsk, GraphAsk, GraphCase
from parity.find import bisect
from parity.find.fault import Fault

MODEL = "smollm2-135m"
OF_A_MODEL = ("c.model", "c.model_nf4")
"""The checks of a real checkpoint."""
GRAPHS_PER_EXAMPLE = 4
MOST_GRAPHS = 500
"""A graph takes a second or two: a night is not long enough for more."""
"""How many examples of a primitive a drawn graph stands for."""

NF4 = Nf4(block_size=64, double_quant=True, offsets_given=True)


def _ask(dtype: str, *paths: Path) -> Callable[[Case], tuple[Ask, ...]]:
    def asks(case: Case) -> tuple[Ask, ...]:
        assert isinstance(case, GraphCase)
        plan = case.plan.model_copy(update={"dtype": dtype, "paths": paths})
        return GraphAsk(case=case, plan=plan), ForwardAsk(case=case, plan=plan)

    return asks


def _ask_both(path: Path) -> Callable[[Case], tuple[Ask, ...]]:
    return lambda case: (*_ask("float32", path)(case), *_ask("float32")(case))


def _locate(case: Case, plan: Plan, process: StackProcess, declared: Sequence[Elementary], tell: Tell) -> list[Fault]:
    assert isinstance(case, GraphCase)
    return bisect.faults(case, asked_plan(case, plan), process, declared, tell)


def asked_plan(case: GraphCase, plan: Plan) -> GraphPlan:
    """The graph that a question is about: of a fast path, that one and not the plain one."""
    first = plan.requests(case)[0]
    assert isinstance(first, GraphAsk)
    return first.plan


def _plan(question: Question, dtype: str, judge: Judge, *, nf4: bool = False, path: Path | None = None) -> Plan:
    requests = _ask_both(path) if question is Question.FAST_PATH and path else _ask(dtype, *([path] if path else []))
    return Plan(
        question=question, dtype=dtype, requests=requests, judge=judge, statistical=1,
        graph=GraphNeeds(model_type="llama", nf4=nf4, path=path),
    )  # fmt: skip


_NO_FAST_PATH = {
    Question.FAST_PATH: "the graph is the plain path; c.llama_nf4, c.llama_checkpoint and c.llama_chunked_loss hold the others against it"
}
_ONLY_FAST_PATH = dict.fromkeys((Question.SAME_FUNCTION, Question.PRECISION), "asked of the plain path by c.llama")


def checks(model: str = MODEL) -> tuple[Check, ...]:
    """The checks of tier C; `model` is the checkpoint of c.model."""
    plain = (
        _plan(Question.SAME_FUNCTION, "float64", graph_judges.same_function),
        _plan(Question.PRECISION, "float64", graph_judges.precision("float64")),
        _plan(Question.PRECISION, "float32", graph_judges.precision("float32")),
    )
    quantized = (
        _plan(Question.SAME_FUNCTION, "float64", graph_judges.same_function, nf4=True),
        _plan(Question.PRECISION, "float64", graph_judges.precision("float64"), nf4=True),
        _plan(Question.PRECISION, "float32", graph_judges.precision("float32"), nf4=True, path="nf4_linear"),
        _plan(Question.FAST_PATH, "float32", graph_judges.fast_path, nf4=True, path="nf4_linear"),
    )
    return (
        _drawn_check("c.llama", "a small Llama with LoRA", plain, _NO_FAST_PATH),
        _drawn_check("c.llama_nf4", "a small Llama with an NF4 base", quantized, {}, base=NF4),
        _path_check("checkpoint", "activations computed again in the backward pass"),
        _path_check("chunked_loss", "the loss without the whole logits"),
        _real_check("c.model", "a real checkpoint with LoRA", plain, _NO_FAST_PATH, lambda: graph_draws.real_cases(model), 2),
        _real_check(
            "c.model_nf4", "a real checkpoint with an NF4 base", quantized, {}, lambda: graph_draws.real_cases(model, NF4, ("random B",)), 1
        ),
    )  # fmt: skip


def _drawn_check(
    name: str, title: str, plans: tuple[Plan, ...], not_applicable: Mapping[Question, str], *, base: Nf4 | None = None
) -> Check:
    return Check(
        id=name, tier="C", title=title, operations=(), plans=plans, not_applicable=not_applicable, cases=graph_draws.drawn(base),
        cost=GRAPHS_PER_EXAMPLE, most=MOST_GRAPHS, locate=_locate,
    )  # fmt: skip


def _path_check(path: Path, title: str) -> Check:
    plan = _plan(Question.FAST_PATH, "float32", graph_judges.fast_path, path=path)
    return _drawn_check(f"c.llama_{path}", title, (plan,), _ONLY_FAST_PATH)


def _real_check(
    name: str, title: str, plans: tuple[Plan, ...], not_applicable: Mapping[Question, str],
    cases: Callable[[], Iterator[GraphCase]], count: int,
) -> Check:  # fmt: skip
    return Check(
        id=name, tier="C", title=title, operations=(), plans=plans, not_applicable=not_applicable, cases=None, fixed_cases=cases,
        fixed_count=count, locate=_locate,
    )  # fmt: skip
