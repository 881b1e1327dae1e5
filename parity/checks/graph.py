"""Tier C: whole graphs, what is asked of them, and where the fault is when one is red."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from contract.worker.capabilities import Elementary
from contract.worker.plan import GraphPlan, Nf4, Path
from contract.worker.process import StackProcess
from parity.checks import graph_draws, graph_judges, graph_law_checks, graph_sections, proxy
from parity.checks.check import Ask, Case, Check, GraphNeeds, Judge, Plan, Question, Tell
from parity.checks.graph_case import ForwardAsk, GraphAsk, GraphCase
from parity.checks.graph_draws import Draw
from parity.checks.graph_layouts import OPTIONS, PLAIN
from parity.checks.graph_sections import SectionAsk
from parity.find import bisect
from parity.find.fault import Fault

MODEL = graph_draws.MODEL
OF_A_MODEL = ("c.model", "c.model_nf4")
"""The checks of a real checkpoint."""
GRAPHS_PER_EXAMPLE = 4
"""How many examples of a primitive a drawn graph stands for."""
SEVERAL_PER_EXAMPLE = 12
"""The same where every graph of the check is asked once anyway."""
NARROW_PER_EXAMPLE = 24
"""The same of graphs in bfloat16, which need a reference of their own: a quick run asks one of each kind, and draws none."""

NF4 = Nf4(block_size=64, double_quant=True, offsets_given=True)


def _ask(dtype: str, *paths: Path) -> Callable[[Case], tuple[Ask, ...]]:
    def asks(case: Case) -> tuple[Ask, ...]:
        assert isinstance(case, GraphCase)
        plan = case.plan.model_copy(update={"dtype": dtype, "paths": paths})
        return GraphAsk(case=case, plan=plan), ForwardAsk(case=case, plan=plan)

    return asks


def _ask_both(path: Path) -> Callable[[Case], tuple[Ask, ...]]:
    return lambda case: (*_ask("float32", path)(case), *_ask("float32")(case))


def _ask_sections(*paths: Path) -> Callable[[Case], tuple[Ask, ...]]:
    """The whole graph in bfloat16, then sections of it alone."""

    def asks(case: Case) -> tuple[Ask, ...]:
        assert isinstance(case, GraphCase)
        plan = case.plan.model_copy(update={"dtype": "bfloat16", "paths": paths})
        alone = (SectionAsk(case=case, plan=plan, section=section) for section in graph_sections.asked(plan))
        return *_ask("bfloat16", *paths)(case), *alone

    return asks


def _locate(case: Case, plan: Plan, process: StackProcess, declared: Sequence[Elementary], tell: Tell) -> list[Fault]:
    assert isinstance(case, GraphCase)
    return bisect.faults(case, asked_plan(case, plan), process, declared, tell)


def asked_plan(case: GraphCase, plan: Plan) -> GraphPlan:
    """The graph that a question is about: of a fast path, that one and not the plain one."""
    first = plan.requests(case)[0]
    assert isinstance(first, GraphAsk)
    return first.plan


def _plan(question: Question, dtype: str, judge: Judge, needs: GraphNeeds, *, path: Path | None = None) -> Plan:
    requests = _ask_both(path) if question is Question.FAST_PATH and path else _ask(dtype, *([path] if path else []))
    return Plan(question=question, dtype=dtype, requests=requests, judge=judge, statistical=1, graph=dataclasses.replace(needs, path=path))


def _plain(needs: GraphNeeds) -> tuple[Plan, ...]:
    """The plain path's questions."""
    return (
        _plan(Question.SAME_FUNCTION, "float64", graph_judges.same_function, needs),
        _plan(Question.PRECISION, "float64", graph_judges.precision("float64"), needs),
        _plan(Question.PRECISION, "float32", graph_judges.precision("float32"), needs),
    )


def _quantized(needs: GraphNeeds) -> tuple[Plan, ...]:
    """Those of a graph whose linears are NF4."""
    return (
        _plan(Question.SAME_FUNCTION, "float64", graph_judges.same_function, needs),
        _plan(Question.PRECISION, "float64", graph_judges.precision("float64"), needs),
        _plan(Question.PRECISION, "float32", graph_judges.precision("float32"), needs, path="nf4_linear"),
        _plan(Question.FAST_PATH, "float32", graph_judges.fast_path, needs, path="nf4_linear"),
    )


def _bfloat16(needs: GraphNeeds, *paths: Path) -> tuple[Plan, ...]:
    """How precise a graph in bfloat16 is, and each of its operations."""
    plan = Plan(
        question=Question.PRECISION, dtype="bfloat16", requests=_ask_sections(*paths), judge=graph_judges.precision_bfloat16(*paths),
        statistical=1, graph=dataclasses.replace(needs, path=paths[0] if paths else None),
    )  # fmt: skip
    return (plan,)


_PATHS: Mapping[Path, str] = {
    "checkpoint": "activations computed again in the backward pass",
    "chunked_loss": "the loss without the whole logits",
    "fused_attention": "attention as one kernel",
    "fused_lora": "a linear and its LoRA as one function",
    "fused_elementwise": "RMSNorm and SwiGLU as one function each",
}

_NO_FAST_PATH = {
    Question.FAST_PATH: "the graph is the plain path; c.llama_nf4, c.llama_checkpoint and the other paths' checks hold those against it"
}
_ONLY_PRECISION = {
    Question.SAME_FUNCTION: "asked in float64, where a rounding hides nothing, by c.llama and the like",
    Question.FAST_PATH: "asked in float32 by c.llama_nf4, c.llama_checkpoint and the other paths' checks",
}
_ONLY_FAST_PATH = dict.fromkeys((Question.SAME_FUNCTION, Question.PRECISION), "asked of the plain path by c.llama and the like")


def checks(model: str = MODEL) -> tuple[Check, ...]:
    """The checks of tier C; `model` is the checkpoint of c.model."""
    real = graph_draws.real_needs(model)
    quantized = dataclasses.replace(real, nf4=True)
    return (
        *_architectures(),
        *_fast_paths(),
        *_proxies(),
        *_narrow(),
        *graph_law_checks.checks(),
        _real_check("c.model", "a real checkpoint with LoRA", _plain(real), _NO_FAST_PATH, lambda: graph_draws.real_cases(model), 2),
        _real_check(
            "c.model_nf4", "a real checkpoint with an NF4 base", _quantized(quantized), {},
            lambda: graph_draws.real_cases(model, NF4, ("random B",)), 1,
        ),
    )  # fmt: skip


def _architectures() -> Iterator[Check]:
    """Each architecture plain, with every option, and on packed and padded batches."""
    for model_type, recipes in PLAIN.items():
        draw = Draw(recipes=recipes)
        yield _drawn_check(f"c.{model_type}", f"a small {model_type} with LoRA", _plain(draw.needs()), _NO_FAST_PATH, draw)
    for model_type, recipes in OPTIONS.items():
        for packed, name, title in (
            (False, "options", "with every option of its layout"),
            (True, "packed", "on packed and padded batches"),
        ):
            draw = Draw(recipes=recipes, packed=packed)
            yield _drawn_check(
                f"c.{model_type}_{name}", f"a small {model_type} {title}", _plain(draw.needs()), _NO_FAST_PATH, draw, each=True
            )  # fmt: skip


def _fast_paths() -> Iterator[Check]:
    """Each path against the plain one: on a Llama, and on packed batches of what differs most from it."""
    nf4 = Draw(recipes=PLAIN["llama"], base=NF4)
    yield _drawn_check("c.llama_nf4", "a small Llama with an NF4 base", _quantized(nf4.needs()), {}, nf4)
    for path, title in _PATHS.items():
        draw = Draw(recipes=PLAIN["llama"])
        yield _drawn_check(f"c.llama_{path}", title, (_path_plan(draw, path),), _ONLY_FAST_PATH, draw)
    several = (OPTIONS["mistral"][0], OPTIONS["qwen3"][1], OPTIONS["gpt2"][1])
    nf4 = Draw(recipes=several, base=NF4, packed=True)
    yield _drawn_check(
        "c.packed_nf4_linear", "packed batches: an NF4 base", (_path_plan(nf4, "nf4_linear"),), _ONLY_FAST_PATH, nf4, each=True
    )
    for path, title in _PATHS.items():
        draw = Draw(recipes=several, packed=True)
        yield _drawn_check(f"c.packed_{path}", f"packed batches: {title}", (_path_plan(draw, path),), _ONLY_FAST_PATH, draw, each=True)


def _proxies() -> Iterator[Check]:
    """The proxy graph, and the paths that its runs take."""
    plain, nf4 = proxy.Draw(), proxy.Draw(base=NF4)
    yield _drawn_check("c.proxy", "the proxy graph with LoRA", _plain(plain.needs()), _NO_FAST_PATH, plain, each=True)
    yield _drawn_check("c.proxy_nf4", "the proxy graph with an NF4 base", _quantized(nf4.needs()), {}, nf4, each=True)
    for path in ("chunked_loss", "fused_lora"):
        title = f"the proxy graph: {_PATHS[path]}"
        yield _drawn_check(f"c.proxy_{path}", title, (_path_plan(plain, path),), _ONLY_FAST_PATH, plain, each=True)


def _narrow() -> Iterator[Check]:
    """Graphs in bfloat16: each architecture with everything at once, a plain one with an NF4 base, the proxy graph."""
    for model_type, recipes in OPTIONS.items():
        title = f"a small {model_type} in bfloat16: every option, packed and padded batches"
        yield _narrow_check(f"c.{model_type}_bfloat16", title, Draw(recipes=recipes, packed=True))
    yield _narrow_check("c.llama_bfloat16_nf4", "a small Llama in bfloat16 with an NF4 base", Draw(recipes=PLAIN["llama"], base=NF4))
    yield _narrow_check("c.proxy_bfloat16", "the proxy graph in bfloat16", proxy.Draw())
    yield _narrow_check("c.proxy_bfloat16_nf4", "the proxy graph in bfloat16 with an NF4 base", proxy.Draw(base=NF4))


def _narrow_check(name: str, title: str, draw: Draw | proxy.Draw) -> Check:
    """The first graph in any run: the others are drawn where there is time."""
    paths: tuple[Path, ...] = () if draw.base is None else ("nf4_linear",)
    check = _drawn_check(name, title, _bfloat16(draw.needs(), *paths), _ONLY_PRECISION, draw)
    return dataclasses.replace(check, cost=NARROW_PER_EXAMPLE, least=0, fixed_cases=lambda: itertools.islice(draw.each(), 1), fixed_count=1)


def _path_plan(draw: Draw | proxy.Draw, path: Path) -> Plan:
    return _plan(Question.FAST_PATH, "float32", graph_judges.fast_path, draw.needs(), path=path)


def _drawn_check(
    name: str, title: str, plans: tuple[Plan, ...], not_applicable: Mapping[Question, str], draw: Draw | proxy.Draw, *, each: bool = False
) -> Check:
    """each: every graph is asked once in any run, beside those that are drawn."""
    return Check(
        id=name, tier="C", title=title, operations=(), plans=plans, not_applicable=not_applicable, cases=draw.cases(),
        cost=SEVERAL_PER_EXAMPLE if each else GRAPHS_PER_EXAMPLE, most=graph_draws.MOST_GRAPHS, fixed_cases=draw.each if each else None,
        fixed_count=len(draw.recipes) if each else 0, locate=_locate,
    )  # fmt: skip


def _real_check(
    name: str, title: str, plans: tuple[Plan, ...], not_applicable: Mapping[Question, str],
    cases: Callable[[], Iterator[GraphCase]], count: int,
) -> Check:  # fmt: skip
    return Check(
        id=name, tier="C", title=title, operations=(), plans=plans, not_applicable=not_applicable, cases=None, fixed_cases=cases,
        fixed_count=count, locate=_locate,
    )  # fmt: skip
