"""The witness: it scores files as users load them, and refuses what it can't mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from contract.worker.capabilities import Capabilities
from contract.worker.score import LOGITS
from contract.worker.stack import NotSupported
from parity.checks import artifact_judges
from parity.checks.artifact_case import ArtifactCase, on_disk
from parity.checks.graph_layouts import OPTIONS, PLAIN
from parity.judge.confidence import FALSE_ALARM
from stacks.peft_witness import ops
from stacks.peft_witness.ops import PeftWitness
from tests.parity.graph_stack import case_of

DECLARED = Capabilities.model_validate_json((Path(ops.__file__).parent / "capabilities.json").read_bytes()).elementary
RECIPES = {"llama": OPTIONS["llama"][0], "gpt2": PLAIN["gpt2"][0]}


@pytest.fixture(scope="module", params=RECIPES)
def case(request: pytest.FixtureRequest) -> ArtifactCase:
    return on_disk(case_of(RECIPES[request.param]))


@pytest.fixture
def witness() -> Iterator[PeftWitness]:
    threads = torch.get_num_threads()
    yield PeftWitness("CPU")
    torch.set_num_threads(threads)


def score(witness: PeftWitness, case: ArtifactCase, model: str = "base", adapter: str | None = "peft", **more: Any) -> np.ndarray:
    values = {"model": str(case.folder / model), "adapter": None if adapter is None else str(case.folder / adapter), "dtype": "float32"}
    return witness.score(tensors={"ids": case.batch.ids}, **values | more).tensors[LOGITS]


def test_files_mean_what_the_reference_computes(witness: PeftWitness, case: ArtifactCase) -> None:
    for adapter in ("peft", None):
        logits, right = score(witness, case, adapter=adapter), case.means("base", adapter)
        judged = partial(artifact_judges.logits, "logits", right, declared=DECLARED, dtype="float32", false_alarm=FALSE_ALARM)
        assert judged(observed=logits).passed
        assert not judged(observed=logits * np.float32(1.001)).passed


def test_what_it_has_not_is_refused(witness: PeftWitness, case: ArtifactCase) -> None:
    for more, message in (
        ({"dtype": "float64"}, "in float32, not in float64"), ({"base": "nf4"}, "plain base alone"), ({"prompt": 1}, "through a cache"),
        ({"adapter": str(case.folder / "adapter")}, "has no adapter_model.safetensors; convert it"),
    ):  # fmt: skip
        with pytest.raises(NotSupported, match=message):
            score(witness, case, **more)
    values = {"model": str(case.folder / "base"), "dtype": "float32"}
    with pytest.raises(NotSupported, match="leave positions and segments out"):
        witness.score(tensors={"ids": case.batch.ids, "positions": case.batch.ids}, **values)
    with pytest.raises(ValueError, match="ids are missing"):
        witness.score(**values)
    with pytest.raises(ValueError, match="no device 'CUDA'"):
        PeftWitness("CUDA")


def test_files_that_are_not_whole_are_refused(witness: PeftWitness, case: ArtifactCase, tmp_path: Path) -> None:
    for folder, name in (("base", "model.safetensors"), ("peft", "adapter_model.safetensors")):
        shutil.copytree(case.folder / folder, tmp_path / folder)
        tensors = load_file(tmp_path / folder / name)
        tensors.pop(next(key for key in sorted(tensors) if "norm" in key or "ln_" in key or "lora_B" in key))
        save_file(tensors, tmp_path / folder / name, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing_keys"):
        score(witness, case, model=str(tmp_path / "base"))
    with pytest.raises(ValueError, match=r"PEFT says: .*missing"):
        score(witness, case, adapter=str(tmp_path / "peft"))


def test_it_says_what_it_is(witness: PeftWitness) -> None:
    values = witness.probe().values
    assert values["dtypes"] == ["float32"]
    assert set(values["versions"]) == {"transformers", "peft", "torch", "python"}
    json.dumps(values)
