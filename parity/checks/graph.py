"""Tier C: whole graphs. Drawn small ones with odd configurations, and a real checkpoint.

Every tap and every adapter gradient, row by row, against the response to perturbation (`parity/judge/perturb.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from contract.model import adapter_init, checkpoint
from contract.model.layout import LlamaLayout
from contract.worker import graph, taps
from contract.worker.graph import IGNORE_INDEX
from contract.worker.plan import GraphPlan, Lora, Nf4, Path
from contract.worker.process import StackProcess
from contract.worker.stack import Elementary
from parity.checks import strategies
from parity.checks.check import Answered, Arrays, Ask, Case, Check, GraphNeeds, Judge, Plan, Question
from parity.checks.graph_case import GraphAsk, GraphCase, Weights, offsets
from parity.find import bisect
from parity.find.fault import Fault
from parity.judge import perturb
from parity.judge.perturb import Response
from parity.judge.verdict import Comparison, rows
from parity.reference.llama import Trace

RUNS = 30
"""Perturbed runs behind a threshold."""

MODEL = "smollm2-135m"
OF_A_MODEL = ("c.model", "c.model_nf4")
"""The checks of a real checkpoint."""
MODEL_TOKENS = 16
MODEL_SEQUENCES = 2
GRAPHS_PER_EXAMPLE = 4
"""How many examples of a primitive a drawn graph stands for."""

NF4 = Nf4(block_size=64, double_quant=True, offsets_given=True)

# Drawn graphs: few shapes, since a new one costs a compile; heads x head_dim is not hidden_size, no two sizes are equal, each field
# has a value of its own.
_LAYOUTS = (
    LlamaLayout(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=10,
        max_position_embeddings=29, rms_norm_eps=0.02, rope_theta=70.0, attention_bias=False, mlp_bias=True, tie_word_embeddings=True,
    ),
    LlamaLayout(
        vocab_size=97, hidden_size=36, intermediate_size=28, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3, head_dim=6,
        max_position_embeddings=64, rms_norm_eps=0.3, rope_theta=1e4, attention_bias=True, mlp_bias=False, tie_word_embeddings=False,
    ),
)  # fmt: skip
_LORAS = (Lora(rank=3, alpha=7.5), Lora(rank=5, alpha=3.0, rslora=True, targets=("q_proj", "v_proj", "o_proj", "down_proj")))
_BATCHES = ((2, 9), (3, 5))


@st.composite
def _drawn(draw: st.DrawFn, base: Nf4 | None) -> Case:
    which, seed = draw(st.integers(0, len(_LAYOUTS) - 1)), draw(strategies.SEEDS)
    initial, spiky = draw(st.booleans()), draw(st.booleans())
    plan = GraphPlan(layout=_LAYOUTS[which], dtype="float64", lora=_LORAS[which], base=base)
    rng = np.random.default_rng(seed)
    weights = _weights(rng, plan)
    if spiky:
        weights["embedding"][:, 1] *= 30  # one channel far above the others, as trained models have
    ids, labels = _batch(rng, _BATCHES[which], plan.layout.vocab_size)
    name = f"{plan.layout.num_hidden_layers} layers of {plan.layout.hidden_size}, {'B = 0' if initial else 'random B'}, seed {seed}"
    return _case(name, plan, weights, _adapter(plan, seed, initial=initial), ids, labels, seed)


def _weights(rng: np.random.Generator, plan: GraphPlan) -> dict[str, np.ndarray]:
    """Those of a plain base: what is quantised is quantised from them."""
    plain = graph.weights(plan.model_copy(update={"base": None}))
    return {name: _weight(rng, name, shape) for name, (shape, _) in plain.items()}


def _weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that keep activations of a size; norms' are not one, biases not zero."""
    values = rng.standard_normal(shape)
    if name.endswith("norm"):
        values = 1 + 0.3 * values
    elif len(shape) == 2 and name != "embedding":
        values = values * shape[1] ** -0.5
    return values.astype(np.float32)


def _adapter(plan: GraphPlan, seed: int, *, initial: bool) -> dict[str, np.ndarray]:
    """Where training starts, B = 0; or a B that makes the low-rank part as large as a tenth of the base, or more."""
    adapter = adapter_init.initial(plan, seed)
    if initial:
        return adapter
    rng = np.random.default_rng(seed)
    return {
        name: (0.1 * rng.standard_normal(matrix.shape)).astype(np.float32) if name.endswith("lora_b") else matrix
        for name, matrix in adapter.items()
    }


def _batch(rng: np.random.Generator, shape: tuple[int, int], vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids with a true token 0; labels that count in a ragged middle of each sequence."""
    ids = rng.integers(0, vocabulary, shape)
    ids[0, 1] = 0
    labels = ids.copy()
    for sequence in range(shape[0]):
        labels[sequence, : int(rng.integers(0, shape[1] // 2))] = IGNORE_INDEX
        labels[sequence, shape[1] - int(rng.integers(0, shape[1] // 3)) :] = IGNORE_INDEX
    return ids, labels


def _case(name: str, plan: GraphPlan, weights: Weights, adapter: Arrays, ids: np.ndarray, labels: np.ndarray, seed: int) -> GraphCase:
    given = offsets(plan, weights) if plan.base is not None else {}
    return GraphCase(
        name=name, inputs={"float64": {"ids": ids, "labels": labels}}, plan=plan, weights={**weights, **given}, adapter=adapter,
        ids=ids, labels=labels, seed=seed,
    )  # fmt: skip


def real_cases(model: str, base: Nf4 | None = None, adapters: Sequence[str] = ("B = 0", "random B")) -> Iterator[GraphCase]:
    """A checkpoint with two short sequences, for each of the adapters.

    Raises:
        MissingError: a known model that was not fetched.
        UserError: a folder that is no sound checkpoint, or not of an architecture that is honoured.
    """
    found = checkpoint.locate(model)
    lora = Lora(rank=8, alpha=12.0)
    plan = GraphPlan(layout=found.layout, dtype="float64", lora=lora, base=base)
    for seed, adapter in enumerate(adapters):
        rng = np.random.default_rng(seed)
        shape = (MODEL_SEQUENCES, min(MODEL_TOKENS, found.layout.max_position_embeddings))
        ids, labels = _batch(rng, shape, found.layout.vocab_size)
        matrices = _adapter(plan, seed, initial=adapter == "B = 0")
        yield _case(f"{found.name}, {shape[0]} x {shape[1]} tokens, {adapter}", plan, found.tensors, matrices, ids, labels, seed)


# Questions


def _ask(dtype: str, *paths: Path) -> Callable[[Case], tuple[Ask, ...]]:
    def asks(case: Case) -> tuple[Ask, ...]:
        assert isinstance(case, GraphCase)
        return (GraphAsk(case=case, plan=case.plan.model_copy(update={"dtype": dtype, "paths": paths})),)

    return asks


def _ask_both(path: Path) -> Callable[[Case], tuple[Ask, ...]]:
    return lambda case: (*_ask("float32", path)(case), *_ask("float32")(case))


def reference(case: GraphCase, declared: Sequence[Elementary]) -> tuple[Trace, Response]:
    """The reference's run of a case, and its response to perturbation; one for a larger declared error of exp serves a smaller one."""
    exp_ulp = max(one.ulp for one in declared if one.function in ("exp", "log"))
    made: dict[float, tuple[Trace, Response]] = case.once("reference", dict)
    for ulp, found in made.items():
        if ulp >= exp_ulp:
            return found
    made[exp_ulp] = perturb.respond(
        case.plan, case.weight, case.adapter, case.ids, case.labels, runs=RUNS, seed=case.seed, exp_ulp=exp_ulp
    )  # fmt: skip
    return made[exp_ulp]


def _same_function(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    assert isinstance(case, GraphCase)
    _, response = reference(case, [one for stack in answered for one in stack.elementary])
    return _by_kind(case.plan, answered[0].answers[0], answered[1].answers[0], response, "float64", 2, false_alarm)


def _precision(dtype: str) -> Judge:
    """Against the reference, which in float64 errs as much as what it judges."""

    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        assert isinstance(case, GraphCase)
        trace, response = reference(case, answered[0].elementary)
        exact = {**trace.taps, **{f"grad.{name}": gradient for name, gradient in trace.grads.items()}}
        return _by_kind(case.plan, answered[0].answers[0], exact, response, dtype, 2 if dtype == "float64" else 1, false_alarm)

    return judge


def _fast_path(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    assert isinstance(case, GraphCase)
    _, response = reference(case, answered[0].elementary)
    fast, plain = answered[0].answers
    return _by_kind(case.plan, fast, plain, response, "float32", 2, false_alarm)


def _by_kind(
    plan: GraphPlan, observed: Arrays, expected: Arrays, response: Response, dtype: str, sides: int, false_alarm: float
) -> list[Comparison]:
    """One comparison for each kind of tap and gradient, all layers of it side by side: `where` begins with the layer."""
    per_row = false_alarm / sum(response.rows[name].size for name in observed)
    source = f"{response.runs} perturbed runs of the float64 reference, false alarm {false_alarm:.1e} (docs/theory.md)"
    comparisons = []
    for kind, names in kinds(plan, observed).items():
        limits = perturb.row_limits(
            np.stack([np.atleast_1d(response.rows[name]) for name in names]),
            dtype=dtype,
            runs=response.runs,
            false_alarm=per_row,
            sides=sides,
        )
        first, second = (np.stack([_at_least_a_row(one[name]) for name in names]) for one in (observed, expected))
        comparisons.append(rows(kind, first, second, limits, source))
    return comparisons


def _at_least_a_row(array: np.ndarray) -> np.ndarray:
    """A scalar is one row of one element."""
    return array.reshape(1, 1) if array.ndim == 0 else array


def kinds(plan: GraphPlan, names: Arrays) -> dict[str, list[str]]:
    """Kind -> the names of that kind, layer by layer, in the order of computation: taps, then gradients."""
    found: dict[str, list[str]] = {}
    order = [*taps.full_names(plan.layout.num_hidden_layers, plan.targets), *(f"grad.{name}" for name in graph.adapter(plan))]
    for name in order:
        if name in names:
            found.setdefault(_kind(name), []).append(name)
    return found


def _kind(name: str) -> str:
    """`layers.3.q_rope` is of the kind `q_rope`, `grad.layers.3.q_proj.lora_a` of `grad.q_proj.lora_a`."""
    before, marker, after = name.partition("layers.")
    return before + after.partition(".")[2] if marker else name


def _locate(case: Case, plan: Plan, process: StackProcess, declared: tuple[Elementary, ...]) -> list[Fault]:
    assert isinstance(case, GraphCase)
    return bisect.faults(case, asked_plan(case, plan), process, declared)


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
        _plan(Question.SAME_FUNCTION, "float64", _same_function),
        _plan(Question.PRECISION, "float64", _precision("float64")),
        _plan(Question.PRECISION, "float32", _precision("float32")),
    )
    quantized = (
        _plan(Question.SAME_FUNCTION, "float64", _same_function, nf4=True),
        _plan(Question.PRECISION, "float64", _precision("float64"), nf4=True),
        _plan(Question.PRECISION, "float32", _precision("float32"), nf4=True, path="nf4_linear"),
        _plan(Question.FAST_PATH, "float32", _fast_path, nf4=True, path="nf4_linear"),
    )
    paths: tuple[tuple[Path, str], ...] = (
        ("checkpoint", "activations computed again in the backward pass"),
        ("chunked_loss", "the loss without the whole logits"),
    )
    return (
        _drawn_check("c.llama", "a small Llama with LoRA", plain, _NO_FAST_PATH),
        _drawn_check("c.llama_nf4", "a small Llama with an NF4 base", quantized, {}, base=NF4),
        *(
            _drawn_check(f"c.llama_{path}", title, (_plan(Question.FAST_PATH, "float32", _fast_path, path=path),), _ONLY_FAST_PATH)
            for path, title in paths
        ),
        _real_check("c.model", "a real checkpoint with LoRA", plain, _NO_FAST_PATH, lambda: real_cases(model), 2),
        _real_check(
            "c.model_nf4", "a real checkpoint with an NF4 base", quantized, {}, lambda: real_cases(model, NF4, ("random B",)), 1
        ),
    )  # fmt: skip


def _drawn_check(
    name: str, title: str, plans: tuple[Plan, ...], not_applicable: Mapping[Question, str], *, base: Nf4 | None = None
) -> Check:
    return Check(
        id=name, tier="C", title=title, operations=(), plans=plans, not_applicable=not_applicable, cases=_drawn(base),
        cost=GRAPHS_PER_EXAMPLE, locate=_locate,
    )  # fmt: skip


def _real_check(
    name: str, title: str, plans: tuple[Plan, ...], not_applicable: Mapping[Question, str],
    cases: Callable[[], Iterator[GraphCase]], count: int,
) -> Check:  # fmt: skip
    return Check(
        id=name, tier="C", title=title, operations=(), plans=plans, not_applicable=not_applicable, cases=None, fixed_cases=cases,
        fixed_count=count, locate=_locate,
    )  # fmt: skip
