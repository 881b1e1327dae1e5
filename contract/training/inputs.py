"""All that a run takes from its contract and its files, the same for every stack: rows, steps, learning rates, the initial adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from contract.artifacts.promotion import base_sha256
from contract.data.steps import Steps
from contract.data.train_rows import TrainRows
from contract.errors import ContractError
from contract.model import adapter_init
from contract.model.checkpoint import Checkpoint, open_files
from contract.model.layout import Layout
from contract.model.preflight import ModelFiles, inspect, locate_files
from contract.run.content import inputs_of, sha256_of_inputs
from contract.run.digest import run_digest
from contract.run.preflight import placed_files
from contract.run.proxy import middle_blocks
from contract.run.schedule import learning_rates
from contract.run.spec import FineTuneContract
from contract.worker.plan import GraphPlan
from contract.worker.taps import MIDDLE

Progress = Callable[[str, int, int], None]
"""Told a stage (hash, rows, pack), what of it is done, and all of it."""

_WEIGHTS = "model.weight_shards/"

_BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""They name the token that ends a row, and may hold the chat template."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, ready to start.

    Attributes:
        checkpoint: the base model; of the proxy graph, whatever of its weights the files hold.
        steps: the optimiser steps. validation: the rows that are held back, a micro-batch a step.
        learning_rates: float64 [steps.total], by the step's number, also of steps that update nothing.
        initial: the initial adapter, float32 by PATH.lora_a and PATH.lora_b.
        digest: of the contract without exec.resume_from, which checkpoints are bound to.
        data, weights: role -> SHA-256 of each file that was read.
        base_sha256: of all weight files.
        dtype: of a training session (contract/training/stepwise.py); None: the contract's compute_dtype, as in every run of a user.
    """

    contract: FineTuneContract
    checkpoint: Checkpoint
    rows: TrainRows
    steps: Steps
    validation: Steps
    learning_rates: np.ndarray
    initial: Mapping[str, np.ndarray]
    digest: str
    data: Mapping[str, str]
    weights: Mapping[str, str]
    base_sha256: str
    dtype: Literal["float64"] | None = None

    @property
    def layout(self) -> Layout:
        """The model's layout."""
        return self.checkpoint.layout

    @property
    def plan(self) -> GraphPlan:
        """The run's graph, on its plain paths; production paths are the stack's to choose."""
        plan = plan_of(self.contract, self.checkpoint)
        return plan if self.dtype is None else plan.model_copy(update={"dtype": self.dtype})


@dataclass(frozen=True, kw_only=True)
class Hashes:
    """SHA-256 by role: of the files that make the data, and of the base model's weights."""

    data: Mapping[str, str]
    weights: Mapping[str, str]


def prepare(
    contract: FineTuneContract, *, cache: Path | None = None, dtype: Literal["float64"] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Run:  # fmt: skip
    """Opens and hashes the files, and settles order and schedule.

    Args:
        cache: the folder for index files; else the user's.
        dtype: see Run.

    Raises:
        ContractError, ContractErrors: a file is missing, damaged, or changed; a warm-up that does not end within the run; a tokenizer
            whose ids the model lacks.
        MissingError: a known model that was not fetched.
        EnvironmentUnfit: the cache folder can't be written.
    """
    hashes = input_hashes(contract, progress=progress)
    files = locate_files(contract.model)
    base = _opened(contract, files)
    rows = TrainRows(contract, tokenizer_json=files.tokenizer_json, cache=cache, progress=lambda done, total: progress("rows", done, total))
    _require_ids(rows, base)
    steps = rows.steps(progress=lambda done, total: progress("pack", done, total))
    run = contract.exec
    return Run(
        contract=contract,
        checkpoint=base,
        rows=rows,
        steps=steps,
        validation=rows.validation(),
        learning_rates=learning_rates(run.learning_rate, run.warmup_steps, steps.total),
        initial=_initial(contract, base),
        digest=run_digest(contract),
        data=hashes.data,
        weights=hashes.weights,
        base_sha256=base_sha256(hashes.weights.values()),
        dtype=dtype,
    )


def input_hashes(contract: FineTuneContract, *, progress: Progress = lambda stage, done, total: None) -> Hashes:
    """What a manifest says of a run's files.

    Raises:
        ContractError, ContractErrors, MissingError: a file is missing, can't be read, or changed while it was.
    """
    found = inputs_of(contract)
    if found.faults:
        raise found.faults[0]
    paths = dict(found.files)
    tokenizer = paths.get("model.tokenizer_json")
    if contract.data.tokenizer_mode == "hf" and tokenizer is not None:
        beside = {f"model.tokenizer_json/{name}": tokenizer.with_name(name) for name in _BESIDE_TOKENIZER}
        paths |= {role: path for role, path in beside.items() if path.is_file()}
    hashes = sha256_of_inputs(paths, progress=lambda role, done, total: progress("hash", done, total))
    return Hashes(
        data={role: sha256 for role, sha256 in hashes.items() if not role.startswith(_WEIGHTS)},
        weights={role: sha256 for role, sha256 in hashes.items() if role.startswith(_WEIGHTS)},
    )


def plan_of(contract: FineTuneContract, base: Checkpoint) -> GraphPlan:
    """The graph that a contract asks for on a base model, on its plain paths; production paths are the stack's to choose."""
    adapter, quant, layout = contract.adapter, contract.quant, base.layout
    lora = {
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "rslora": adapter.rslora,
        "targets": adapter.target_modules or None,
        "rank_pattern": adapter.rank_pattern,
        "alpha_pattern": adapter.alpha_pattern,
    }
    nf4 = {"block_size": quant.block_size, "double_quant": quant.double_quant} if quant.base == "nf4" else None
    value: dict[str, Any] = {"graph": contract.graph, "layout": layout, "dtype": contract.exec.compute_dtype, "lora": lora, "base": nf4}
    if contract.graph == "qlora_proxy_v1":
        layers = layout.num_hidden_layers
        matched = sum(f"layers.{layer}.{MIDDLE}" in base.placed for layer in range(layers))
        value["middle_blocks"] = middle_blocks(contract.exec, expected=layers, matched=matched)
    return GraphPlan.model_validate(value)


def _opened(contract: FineTuneContract, files: ModelFiles) -> Checkpoint:
    if contract.graph == "qlora_proxy_v1":  # it needs a few of the weights, and minds no others
        return placed_files(inspect(files))
    return open_files(files, name=contract.model.hf_repo or str(files.config_json))


def _initial(contract: FineTuneContract, base: Checkpoint) -> dict[str, np.ndarray]:
    if contract.graph == "full_causal":
        return adapter_init.of_contract(base.layout, contract.adapter, contract.exec.seed)
    return adapter_init.initial(plan_of(contract, base), contract.exec.seed)


def _require_ids(rows: TrainRows, base: Checkpoint) -> None:
    ids, vocabulary = rows.tokenizer.vocab_size, base.layout.vocab_size
    if ids > vocabulary:
        raise ContractError(
            "model.tokenizer_json", got=f"a tokenizer with ids 0 to {ids - 1:,}, and a model of vocab_size {vocabulary:,}",
            allowed="a vocab_size that has an embedding for each id", remedy="take the tokenizer.json that belongs to the model",
        )  # fmt: skip
