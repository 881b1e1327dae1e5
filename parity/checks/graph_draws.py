"""The graphs of tier C: drawn small ones with odd configurations, and a real checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from contract.data.batches import PADDING
from contract.errors import MissingError, UserError
from contract.model import adapter_init, checkpoint
from contract.worker import graph
from contract.worker.graph import IGNORE_INDEX
from contract.worker.plan import GraphPlan, Lora, Nf4
from parity.checks import strategies
from parity.checks.check import Arrays, Case, GraphNeeds
from parity.checks.graph_case import GraphCase, Weights, offsets
from parity.checks.graph_layouts import Recipe
from parity.reference.graph import Batch

MODEL = "smollm2-135m"
"""The real checkpoint, unless another one is named."""
MOST_GRAPHS = 500
"""A graph takes a second or two: a night is not long enough for more."""
MODEL_TOKENS = 16
MODEL_SEQUENCES = 2
END = 2
"""The id that ends a text, and that padding has."""
FEWEST_TOKENS = 3
"""Below this there is no sequence with an ignored label, one that counts and a token before it."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How cases are drawn: of which graphs, on which base, packed and padded or not."""

    recipes: tuple[Recipe, ...]
    base: Nf4 | None = None
    packed: bool = False

    def needs(self) -> GraphNeeds:
        """What a stack must declare to be asked."""
        layouts, loras = [recipe.layout for recipe in self.recipes], [recipe.lora for recipe in self.recipes]
        return GraphNeeds(
            model_types=tuple(sorted({layout.model_type for layout in layouts})), nf4=self.base is not None,
            layout_options=tuple(sorted({option for layout in layouts for option in layout.options})), packing=self.packed,
            patterns=any(lora.rank_pattern or lora.alpha_pattern for lora in loras),
        )  # fmt: skip

    def cases(self) -> st.SearchStrategy[Case]:
        """Any of the graphs, with an adapter as training starts from or any other."""
        return _drawn(self)

    def each(self) -> Iterator[GraphCase]:
        """Every graph once, the same in every run."""
        for seed, recipe in enumerate(self.recipes):
            yield self.case(recipe, seed, initial=False, spiky=False)

    def case(self, recipe: Recipe, seed: int, *, initial: bool, spiky: bool) -> GraphCase:
        """A graph with random weights; initial: B = 0, where training starts; spiky: one channel lies far above the others."""
        plan = GraphPlan(layout=recipe.layout, dtype="float64", lora=recipe.lora, base=self.base)
        rng = np.random.default_rng(seed)
        weights = weights_of(rng, plan)
        if spiky:
            weights["embedding"][:, 1] *= 30  # one channel far above the others, as trained models have
        batch = batch_of(rng, recipe.batch, plan.layout.vocab_size)
        if self.packed:
            batch = packed(rng, batch)
        layout, adapter = plan.layout, "B = 0" if initial else "random B"
        name = f"{layout.model_type}, {layout.num_hidden_layers} layers of {layout.hidden_size}, {adapter}, seed {seed}"
        return case_of(name, plan, weights, adapter_of(plan, seed, initial=initial), batch, seed)


@st.composite
def _drawn(draw: st.DrawFn, of: Draw) -> Case:
    which, seed = draw(st.integers(0, len(of.recipes) - 1)), draw(strategies.SEEDS)
    return of.case(of.recipes[which], seed, initial=draw(st.booleans()), spiky=draw(st.booleans()))


def weights_of(rng: np.random.Generator, plan: GraphPlan) -> dict[str, np.ndarray]:
    """Those of a plain base: what is quantised is quantised from them."""
    plain = graph.weights(plan.model_copy(update={"base": None}))
    return {name: _weight(rng, name, shape) for name, (shape, _) in plain.items()}


def _weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that keep activations of a size; norms' are not one, biases not zero."""
    values = rng.standard_normal(shape)
    if name.endswith("norm"):
        values = 1 + 0.3 * values
    elif len(shape) == 2 and not name.endswith("embedding"):
        values = values * shape[1] ** -0.5
    return values.astype(np.float32)


def adapter_of(plan: GraphPlan, seed: int, *, initial: bool) -> dict[str, np.ndarray]:
    """Where training starts, B = 0; or a B that makes the low-rank part as large as a tenth of the base, or more."""
    adapter = adapter_init.initial(plan, seed)
    if initial:
        return adapter
    rng = np.random.default_rng(seed)
    return {
        name: (0.1 * rng.standard_normal(matrix.shape)).astype(np.float32) if name.endswith("lora_b") else matrix
        for name, matrix in adapter.items()
    }


def batch_of(rng: np.random.Generator, shape: tuple[int, int], vocabulary: int) -> Batch:
    """Ids with a true token 0; labels that count in a ragged middle of each sequence."""
    ids = rng.integers(0, vocabulary, shape)
    ids[0, 1] = 0
    labels = ids.copy()
    for sequence in range(shape[0]):
        labels[sequence, : int(rng.integers(0, shape[1] // 2))] = IGNORE_INDEX
        labels[sequence, shape[1] - int(rng.integers(0, shape[1] // 3)) :] = IGNORE_INDEX
    return Batch(ids=ids, labels=labels)


def packed(rng: np.random.Generator, batch: Batch) -> Batch:
    """The same tokens, several texts a sequence: the first sequence is padded on the left, the others on the right.

    Texts are of ragged lengths, one of them a single token; positions count from 0 in each, or from a place further on. The last text of
    each ends with END, which counts, and padding is END too.
    """
    sequences, tokens = batch.ids.shape
    segments, positions = np.full(batch.ids.shape, PADDING), np.zeros(batch.ids.shape, np.int64)
    ids, labels = batch.ids.copy(), batch.labels.copy()
    for sequence in range(sequences):
        left, right = (2, tokens) if sequence == 0 else (0, tokens - 1 - sequence % 2)
        middle = int(rng.integers(left + 2, right - 4))
        for segment, (start, stop) in enumerate(((left, middle), (middle, middle + 1), (middle + 1, right))):
            segments[sequence, start:stop] = segment
            positions[sequence, start:stop] = np.arange(stop - start) + (segment == 2) * 3
        ids[sequence, right - 1] = labels[sequence, right - 1] = END
    ids[segments == PADDING] = END
    foretold = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != PADDING)
    labels[:, 1:][~foretold] = IGNORE_INDEX
    labels[:, -4:-2] = np.where(foretold[:, -4:-2], ids[:, -4:-2], labels[:, -4:-2])  # some count, whatever was drawn before
    return Batch(ids=ids, labels=labels, positions=positions, segments=segments)


def case_of(name: str, plan: GraphPlan, weights: Weights, adapter: Arrays, batch: Batch, seed: int) -> GraphCase:
    given = offsets(plan, weights) if plan.base is not None else {}
    return GraphCase(
        name=name, inputs={"float64": batch.tensors()}, plan=plan, weights={**weights, **given}, adapter=adapter, batch=batch, seed=seed
    )


def real_needs(model: str) -> GraphNeeds:
    """What a stack must declare to be asked of a checkpoint; of one that is not here or not sound, which the run says, a Llama's."""
    if model == MODEL:  # whose layout is known, so that a list of checks opens no file
        return GraphNeeds(model_types=("llama",))
    try:
        layout = checkpoint.locate(model).layout
    except (MissingError, UserError):
        return GraphNeeds(model_types=("llama",))
    return GraphNeeds(model_types=(layout.model_type,), layout_options=layout.options)


def real_cases(model: str, base: Nf4 | None = None, adapters: Sequence[str] = ("random B", "B = 0")) -> Iterator[GraphCase]:
    """A checkpoint with two short sequences, for each of the adapters.

    Raises:
        MissingError: a known model that was not fetched.
        UserError: a folder that is no sound checkpoint, or not of an architecture that is honoured.
    """
    found = checkpoint.locate(model)
    if found.layout.max_position_embeddings < FEWEST_TOKENS:
        raise UserError(
            f"{found.path}: max_position_embeddings is {found.layout.max_position_embeddings}; "
            f"tier C needs {FEWEST_TOKENS} or more, for a label that counts beside one that does not"
        )
    lora = Lora(rank=8, alpha=12.0)
    plan = GraphPlan(layout=found.layout, dtype="float64", lora=lora, base=base)
    for seed, adapter in enumerate(adapters):
        rng = np.random.default_rng(seed)
        shape = (MODEL_SEQUENCES, min(MODEL_TOKENS, found.layout.max_position_embeddings))
        batch = batch_of(rng, shape, found.layout.vocab_size)
        matrices = adapter_of(plan, seed, initial=adapter == "B = 0")
        case = case_of(f"{found.name}, {shape[0]} x {shape[1]} tokens, {adapter}", plan, found.tensors, matrices, batch, seed)
        yield dataclasses.replace(case, real=found.tensors["embedding"])
