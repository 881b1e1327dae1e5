"""What this distribution's own stacks declare, as the planner takes it: which of them a contract leads to, and that it lets it through."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from contract import cli
from contract.run.planner import ExecutionPlan, plan
from contract.run.source import read_contract
from contract.run.spec import FineTuneContract
from contract.run.survey import Options
from contract.worker.discover import discover, installed
from tests.contract.model import tiny_witness
from tests.contract.run import small_run

CAPABILITIES = {name: info.capabilities for name, info in installed().items()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of every architecture beside the rows and the tokenizer of a small run."""
    folder = small_run.make(tmp_path_factory.mktemp("installed"))
    for model_type, witness in tiny_witness.WITNESSES.items():
        fields = {**tiny_witness.fields_of(model_type), "vocab_size": 30}
        witness.model(witness.config(**fields)).save_pretrained(folder / model_type)
        (folder / model_type / "tokenizer.json").write_bytes((folder / "model" / "tokenizer.json").read_bytes())
    return folder


def settings(home: Path, model_type: str) -> list[str]:
    files = [f"model.hf_repo={home / model_type}", f"data.train_file={home / 'rows.jsonl'}"]
    return [*files, "exec.seq_len=16", "exec.ce_last_k=4", "exec.warmup_steps=2"]


def planned(home: Path, contract: FineTuneContract) -> ExecutionPlan:
    found = plan(contract, discover(), Options(cache=home / "cache"))
    assert isinstance(found, ExecutionPlan), found
    return found


@pytest.mark.parametrize("model_type", tiny_witness.WITNESSES)
def test_lora_in_the_research_lane_goes_to_the_portable_stack(home: Path, model_type: str) -> None:
    found = planned(home, read_contract(None, preset="research", overrides=settings(home, model_type)))
    assert (found.stack, found.model_type, found.base) == ("tinygrad_lora", model_type, "none")
    assert not [note for note in found.notes if "does not answer" in note or "not checked" in note]


@pytest.mark.parametrize("stack", ["torch_qlora", "tinygrad_lora"])
@pytest.mark.parametrize("preset", [None, "smoke", "cpu", "research"])
def test_what_init_writes_is_planned(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str | None, stack: str) -> None:
    """By default in the production lane; in the research lane with the method that leads to the other stack."""
    research = ["lane=research", "adapter.method=lora", "quant.base=none"] if stack == "tinygrad_lora" and preset != "research" else []
    if preset == "research" and stack == "torch_qlora":
        research = ["lane=production", "adapter.method=qlora", "quant.base=nf4"]
    monkeypatch.chdir(tmp_path)
    flags = [word for one in (*settings(home, "llama"), *research) for word in ("--set", one)]
    monkeypatch.setattr(sys, "argv", ["finetune", "init", *(["--preset", preset] if preset else []), *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert planned(home, read_contract(tmp_path / "contract.yaml")).stack == stack


@pytest.mark.parametrize("stack", ["torch_qlora", "tinygrad_lora"])
def test_what_a_stack_trains_it_opens_for_tier_c(stack: str) -> None:
    """A model type, an option or a dtype stands under `training` only where tier C asks for it."""
    capabilities = CAPABILITIES[stack]
    training, graphs = capabilities.training, capabilities.graphs
    assert training is not None
    assert graphs is not None
    assert set(training.graphs["full_causal"]) == set(graphs.architectures)
    assert set(training.layout_options) == set(graphs.layout_options)
    assert (training.packing, training.patterns) == (graphs.packing, graphs.patterns)
    for model_type in training.graphs["full_causal"]:
        assert set(training.compute_dtypes) <= set(graphs.architectures[model_type])
    assert bool(training.graphs.get("qlora_proxy_v1")) == bool(graphs.proxy)
    assert {"train", "generate", "merge", "save"} <= set(capabilities.requests)
