"""A model and an adapter on disk as a case, and the requests that tier E asks of it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contract.artifacts.adapter import Adapter
from contract.artifacts.saved import of_plan
from contract.worker import graph
from contract.worker.answers import Answer
from contract.worker.plan import GraphPlan, Lora, Nf4
from contract.worker.process import Pending, StackProcess
from contract.worker.score import LOGITS, Score, expected_score
from parity.checks import artifact_files
from parity.checks.check import Arrays
from parity.checks.graph_case import GraphCase, Weights, open_graph, require_answer, stored, to_bfloat16
from parity.checks.several import Several
from parity.reference import artifact

FILES = ("adapter/candle_qlora_adapter.safetensors", "adapter/candle_qlora_adapter_meta.json", "adapter/populi_adapter_manifest_v3.json",
         "peft/adapter_config.json", "peft/adapter_model.safetensors")  # fmt: skip
"""What `save` leaves in a folder."""

BEFORE, AFTER, MERGED = "before.", "after.", "merged."
"""Before a tensor's name in the answer to MergeAsk."""

_NUMBERS = itertools.count()


@dataclass(frozen=True, kw_only=True, eq=False)
class ArtifactCase(GraphCase):
    """A graph whose base and adapter lie in files too.

    home: the folder of them, for as long as the case lives; made by `artifact_files.write`.
    """

    home: tempfile.TemporaryDirectory[str]

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return Path(self.home.name)

    @property
    def trained(self) -> Adapter:
        """The adapter, as a run in float32 leaves it."""
        return of_plan(self.plan, self.adapter)

    def files(self) -> Arrays:
        """The bytes of what lies in its folder, by path."""
        return self.once("files", lambda: read_files(self.folder))

    def merged(self) -> dict[str, np.ndarray]:
        """PATH -> W' [O, I], by the formula, onto the base as the graph holds it."""

        def merge() -> dict[str, np.ndarray]:
            linears = artifact.drawn(self.plan.lora, self.adapter)
            return {path: artifact.merged(self.weight(path), linear) for path, linear in linears.items()}

        return self.once("merged", merge)

    def merged_files(self) -> dict[str, dict[str, np.ndarray]]:
        """The same by merges of files onto that base, by the output's layout; `static` where the architecture has it."""
        return self.once("merged files", lambda: artifact_files.merge(self.folder, self.plan.layout, self.held(), self.trained))

    def held(self) -> dict[str, np.ndarray]:
        """Every base weight as the graph holds it: an NF4 base's linears dequantised."""
        return {name: self.weight(name) for name in graph.weights(self.plan.model_copy(update={"base": None}))}

    def prepare(self, folders: Iterable[str | None]) -> None:
        """Makes the merged model and the converted adapters, where a request is about to name one."""
        for folder in folders:
            if folder == artifact_files.MERGED:
                self.merged_files()
            elif folder in artifact_files.CONVERTED:
                self.once("converted", lambda: artifact_files.convert(self.folder))

    def means(self, model: str, adapter: str | None) -> GraphCase:
        """What a model, and an adapter on it, must be, by their folders."""
        if model == artifact_files.MERGED:
            return self.after_merge(self.merged())
        return self.base_alone() if adapter is None else self

    def base_alone(self) -> GraphCase:
        """The same graph without LoRA."""
        return self.once("base alone", lambda: _without_lora(self, self.weights, self.plan.base))

    def after_merge(self, merged: Arrays) -> GraphCase:
        """The graph whose linears are these weights, PATH -> W' [O, I], and the others the base's."""
        return self.once("after merge", lambda: _without_lora(self, {**self.held(), **merged}, None))


def _without_lora(case: ArtifactCase, weights: Weights, base: Nf4 | None) -> GraphCase:
    plan = case.plan.model_copy(update={"lora": Lora(rank=1, alpha=1.0, targets=()), "base": base})
    return GraphCase(name=case.name, inputs=case.inputs, plan=plan, weights=weights, adapter={}, batch=case.batch, seed=case.seed)


def in_bfloat16(case: GraphCase) -> GraphCase:
    """The same with weights and matrices that bfloat16 holds, so that files may hold them in it: artifact_files.narrowest."""
    weights, adapter = ({name: to_bfloat16(stored(array)) for name, array in part.items()} for part in (case.weights, case.adapter))
    return GraphCase(
        name=f"{case.name}, in bfloat16", inputs=case.inputs, plan=case.plan, weights=weights, adapter=adapter, batch=case.batch,
        seed=case.seed,
    )  # fmt: skip


def on_disk(case: GraphCase) -> ArtifactCase:
    """A case of tier C, with its files."""
    home = tempfile.TemporaryDirectory(prefix="twostack-artifacts-")
    made = ArtifactCase(**{name: value for name, value in vars(case).items() if name != "_made"}, home=home)
    artifact_files.write(made.folder, case.plan.layout, {name: stored(weight) for name, weight in case.weights.items()}, made.trained)
    return made


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreAsk:
    """The logits of the case's tokens, of a model and an adapter in its folder (an Ask).

    model, adapter: folders within the case's; no adapter: the model alone.
    prompt: as of contract.worker.score.Score.
    """

    case: ArtifactCase
    dtype: str
    model: str = artifact_files.BASE
    adapter: str | None = None
    prompt: int | None = None

    def key(self) -> tuple[object, ...]:
        """Equal for the same case, files and dtype."""
        return "score", id(self.case), self.dtype, self.model, self.adapter, self.prompt

    def values(self) -> dict[str, Any]:
        """The request's values."""
        adapter = None if self.adapter is None else str(self.case.folder / self.adapter)
        return {"model": str(self.case.folder / self.model), "adapter": adapter, "dtype": self.dtype, "prompt": self.prompt}

    def send(self, process: StackProcess) -> Pending:
        """Sends it, and waits for nothing."""
        tensors = {name: array for name, array in self.case.batch.tensors().items() if name != "labels"}
        return process.submit("score", self.values(), tensors)

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds the answer's shape and dtype."""
        batch, tokens = self.case.batch.ids.shape
        require_answer(stack, expected_score(Score.model_validate(self.values()), self.case.plan, (batch, tokens)), answered)


@dataclass(frozen=True, kw_only=True, eq=False)
class SaveAsk:
    """The case's adapter in an open graph, saved; the files come back as bytes (an Ask)."""

    case: ArtifactCase

    def key(self) -> tuple[object, ...]:
        """Equal for the same case."""
        return "save", id(self.case)

    def send(self, process: StackProcess) -> Reading:
        """Has the graph opened, and asks; waits for the first and not for the second."""
        plan = self.case.plan.model_copy(update={"dtype": "float32"})
        open_graph(process, plan, self.case.weights, self.case.adapter)
        folder = self.case.folder / f"saved-{next(_NUMBERS)}"
        return Reading(pending=process.submit("save", {"graph": process.graph, "folder": str(folder)}), folder=folder)

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds what was saved against the files that there must be."""
        expected = {name: (answered[name].shape if name in answered else (), "uint8") for name in FILES}
        require_answer(stack, expected, answered)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A `save` on its way; its answer is the bytes of each file that it left."""

    pending: Pending
    folder: Path

    def result(self) -> Answer:
        """Waits for it. Raises: as Pending.result."""
        answer = self.pending.result()
        return Answer(answer.values, read_files(self.folder), answer.busy_ns)


def read_files(folder: Path) -> dict[str, np.ndarray]:
    """Every file below a folder, by its path there, as bytes."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): np.frombuffer(path.read_bytes(), np.uint8) for path in found}


@dataclass(frozen=True, kw_only=True, eq=False)
class MergeAsk:
    """Logits of the open graph, its merge, and the logits after it (an Ask)."""

    case: ArtifactCase
    plan: GraphPlan

    def key(self) -> tuple[object, ...]:
        """Equal for the same case and plan."""
        return "merge", id(self.case), self.plan.model_dump_json()

    def send(self, process: StackProcess) -> Several:
        """Has the graph opened, which it waits for; and asks, which it does not."""
        open_graph(process, self.plan, self.case.weights, self.case.adapter)
        named, batch = {"graph": process.graph}, self.case.batch.tensors()
        process.graph = None  # what is open from now on has no LoRA
        forward = {**named, "taps": [LOGITS]}
        return Several(
            parts=(
                (BEFORE, process.submit("forward", forward, batch)),
                (MERGED, process.submit("merge", named)),
                (AFTER, process.submit("forward", forward, batch)),
            )
        )

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds the answer against the graph's shapes."""
        layout, batch = self.plan.layout, self.case.batch.ids.shape
        logits = ((*batch, layout.vocab_size), self.plan.dtype)
        paths = {name.rpartition(".")[0] for name in self.case.adapter}
        merged = {f"{MERGED}{path}": (layout.widths[path.rpartition(".")[2]], "float32") for path in paths}
        require_answer(stack, {f"{BEFORE}{LOGITS}": logits, f"{AFTER}{LOGITS}": logits, **merged}, answered)
