"""Loss curves: a run's steps in a user's dtype, each from the last one's state, whose losses two stacks lay over each other.

The hard run is that of tier D which takes what the mutant's check is about; the ordinary one a fine-tune as tutorials have it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from contract.run.spec import AdapterSpec, ExecSpec, QuantSpec
from contract.training.inputs import Run, prepare
from contract.training.stepwise import state_tensors
from contract.worker.plan import GraphPlan, Lora
from parity.checks import trajectory, trajectory_files
from parity.checks.artifact_files import write_base
from parity.checks.check import Answered, Ask, Case, Check, GraphNeeds, Plan, Question
from parity.checks.trajectory_case import initial_state, opened_run
from parity.checks.trajectory_free import FreeAsk, FreeCase
from parity.checks.trajectory_run import GPT2, LLAMA, NARROW, PACKED, PROXY, Fields, TrainingRun
from parity.judge.verdict import Comparison
from parity.mutants.baselines import ordinary as inputs

Opened = tuple[tempfile.TemporaryDirectory[str], Run]
"""A run, ready to start, and the folder that holds its files."""

NF4 = replace(NARROW.changed("nf4", NARROW.steps, compute_dtype="float32"), title=f"{NARROW.title}; computed in float32")
"""The run on an NF4 base, in the dtype that the rules are asked in."""

_RUNS: Sequence[tuple[str, TrainingRun]] = (
    (r"proxy", PROXY),
    (r"bfloat16", NARROW),
    (r"^b\.|nf4|production", NF4),
    (r"gpt2|gelu|layer_norm|tanh|erf|law_resumed", GPT2),
    (r"packed|law_batches|mistral|qwen", PACKED),
    (r"", LLAMA),
)
"""What a check's name has -> the run of tier D that takes such a thing; the first that fits."""

ROWS, WORDS, STEPS = 32, ((7, 7), (8, 8)), 16
_EXEC = {
    "seed": inputs.SEED, "seq_len": 32, "batch_size": 4, "grad_accum": 1, "epochs": 2, "learning_rate": 2e-4, "warmup_steps": 2,
    "weight_decay": 0.0, "max_grad_norm": 1.0,
}  # fmt: skip
_LORA = {"rank": 8, "alpha": 16.0, "dropout": 0.0}
"""The ordinary run: 32 rows of one length, twice, in batches of 4; QLoRA's learning rate; no dropout, so that two runs are one."""

_QUANTS: Mapping[str, Mapping[str, Any]] = {"none": {"base": "none"}, "nf4": {"base": "nf4", "double_quant": True, "block_size": 64}}


def hard(check: Check) -> Check:
    """The run of tier D that takes what a check is about, all of its steps."""
    spec = _hard_run(check.id)
    return _check(f"losses.{spec.name}", spec, lambda: opened_run(spec, "float32"))


def ordinary(check: Check) -> Check:
    """The ordinary run of the same architecture, on the same kind of base."""
    run = _hard_run(check.id)
    spec = _ordinary_run(run.layout.model_type, run.graph, str(run.fields["quant"]["base"]))
    return _check(f"ordinary.losses.{spec.name}", spec, lambda: _opened(spec))


def _hard_run(check_id: str) -> TrainingRun:
    return next(run for pattern, run in _RUNS if re.search(pattern, check_id))


@cache
def _ordinary_run(model_type: str, graph: str, base: str) -> TrainingRun:
    proxy = graph == "qlora_proxy_v1"
    adapter: dict[str, Any] = {**_LORA, "method": "qlora" if base == "nf4" else "lora"}
    adapter |= {"targets": "lm_head_proxy"} if proxy else {"target_modules": ["q_proj", "v_proj"]}
    fields: Fields = {"adapter": adapter, "quant": _QUANTS[base], "exec": _EXEC}
    name = ".".join((model_type, *(("proxy",) if proxy else ()), *(() if base == "none" else (base,))))
    return TrainingRun(
        name=name, title="an ordinary fine-tune", layout=inputs.layout_of(model_type, quantized=base == "nf4"), rows=ROWS, words=WORDS,
        graph="qlora_proxy_v1" if proxy else "full_causal", fields=fields, steps=STEPS,
    )  # fmt: skip


def _check(name: str, spec: TrainingRun, open_run: Callable[[], Opened]) -> Check:
    dtype = "bfloat16" if spec.fields["exec"].get("compute_dtype") == "bfloat16" else "float32"
    plan = Plan(question=Question.PRECISION, dtype=dtype, requests=_asks, judge=_nothing, graph=_needs(spec))
    return Check(
        id=name, tier="D", title=f"losses of {spec.title}", operations=(), plans=(plan,), cases=None, fixed_cases=_cases(spec, open_run),
        fixed_count=1, not_applicable=dict.fromkeys((Question.SAME_FUNCTION, Question.FAST_PATH), "not a question of the baselines"),
    )  # fmt: skip


def _asks(case: Case) -> tuple[Ask, ...]:
    assert isinstance(case, FreeCase)
    return (FreeAsk(case=case),)


def _nothing(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    return []


def _needs(spec: TrainingRun) -> GraphNeeds:
    adapter, quant = AdapterSpec.model_validate(spec.fields["adapter"]), QuantSpec.model_validate(spec.fields["quant"])
    return trajectory.needs(spec.layout, spec.graph, adapter, quant, ExecSpec.model_validate(spec.fields["exec"]))


def _cases(spec: TrainingRun, open_run: Callable[[], Opened]) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        folder, run = open_run()
        start, steps = initial_state(run), tuple(run.steps.steps())
        yield FreeCase(
            name=f"{len(steps)} steps of {spec.name}", inputs={"float32": state_tensors(start)}, run=run, steps=steps, start=start,
            folder=folder,
        )  # fmt: skip

    return cases


@cache
def _opened(spec: TrainingRun) -> Opened:
    """An ordinary run, ready to start: the weights are freshly initialised ones, and not tier D's."""
    folder = tempfile.TemporaryDirectory(prefix="twostack-baselines-")
    home = Path(folder.name)
    contract = trajectory_files.write(spec, home)
    plan = GraphPlan(layout=spec.layout, dtype="float32", lora=Lora(rank=1, alpha=1.0))
    write_base(home / "fresh", spec.layout, inputs.weights_of(np.random.default_rng(inputs.SEED), plan))
    shutil.copyfile(home / "fresh" / "model.safetensors", home / "model" / "model.safetensors")
    return folder, prepare(contract, cache=home / "cache")


def losses(answer: Mapping[str, np.ndarray]) -> np.ndarray:
    """The losses [S] in an answer to a run's steps; none, where it is no such answer."""
    found = {
        int(name.removeprefix("step").partition(".")[0]): array for name, array in answer.items() if re.fullmatch(r"step\d+\.loss", name)
    }
    return np.array([found[number] for number in sorted(found)], np.float64)
