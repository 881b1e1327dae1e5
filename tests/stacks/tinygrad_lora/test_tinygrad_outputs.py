"""What a run on tinygrad leaves: PEFT loads it onto transformers' own model, the torch stack onto its own, and both have the same logits.

In float64, each against the oracle, within what rounding explains.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from contract.artifacts import training_checkpoint
from contract.artifacts.adapter_fields import tensors_of
from contract.artifacts.by_path import by_path
from contract.artifacts.convert import convert, read_source
from contract.artifacts.opening import named
from contract.artifacts.training_checkpoint import Progress
from contract.model.checkpoint import Checkpoint, load
from contract.training import checkpoints
from contract.training.inputs import Run
from contract.training.outputs import write_adapters
from contract.training.trainer import TrainerState
from contract.worker.generation import Generation
from contract.worker.plan import GraphPlan
from contract.worker.process import StackProcess
from parity.judge.perturb import Response, respond
from parity.reference.graph import Batch, Trace
from stacks.tinygrad_lora.decoder import Decoder
from stacks.tinygrad_lora.held import hold
from stacks.tinygrad_lora.train import TinygradTrainer
from stacks.tinygrad_lora.weights import Weights, of_checkpoint
from tests.contract.model import tiny_checkpoint
from tests.float64_transformers import clean
from tests.stacks.tinygrad_lora import tiny_tinygrad_run
from tests.stacks.tinygrad_lora.tiny_tinygrad_graph import EXP_ULP, RUNS, outside, plan_of
from tests.stacks.tinygrad_lora.tiny_tinygrad_graph import tensors_of as tensors_of_plan
from tests.stacks.torch_qlora.tiny_generation import uncached

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")]

IDS = np.random.default_rng(7).integers(0, tiny_tinygrad_run.VOCABULARY, (3, 9))


@pytest.fixture(scope="module")
def left(cpu: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, TrainerState]:
    """A run's folder after four steps, its adapters and a checkpoint written as a run writes them."""
    folder = tmp_path_factory.mktemp("outputs")
    tiny_tinygrad_run.run_in(folder)
    sizes = {"vocab_size": tiny_tinygrad_run.VOCABULARY, **tiny_checkpoint.SQUARE}  # transformers refuses the usual ones
    tiny_checkpoint.write(folder / "model", tiny_checkpoint.squared(tiny_checkpoint.weights(**sizes)), **sizes)
    run = tiny_tinygrad_run.run_in(folder)
    trainer = TinygradTrainer(run, "CPU")
    for step in islice(run.steps.steps(), 4):
        trainer.step(step, float(run.learning_rates[step.number]))
    state = trainer.state()
    assert all(matrix.any() for matrix in state.adapter.values())
    assert write_adapters(run, state, folder / "out") == ()
    progress = Progress(step=4, epoch=1, step_of_epoch=0, skipped=0, rows_of_epoch=22, skipped_of_epoch=0)
    checkpoints.save(folder / "out", run, state, progress, stack="tinygrad_lora", packages={"tinygrad": "0"})
    return folder, run, state


def sources(folder: Path) -> dict[str, Path]:
    """Every format of the one adapter."""
    found = {"v3": folder / "out/adapter", "peft": folder / "out/peft", "checkpoint": folder / "out/checkpoints/step-00000004"}
    if not (folder / "v2").exists():
        convert(found["v3"], folder / "v2", "v2")
    return found | {"v2": folder / "v2"}


def request(folder: Path, adapter: Path) -> Generation:
    values = {"model": str(folder / "model"), "adapter": str(adapter), "dtype": "float64", "prompts": ((1,),), "max_new_tokens": 1}
    return Generation.model_validate(values)


def oracle(checkpoint: Checkpoint, state: TrainerState, plan: GraphPlan) -> tuple[Trace, Response]:
    return respond(
        plan, lambda name: load(checkpoint, name), state.adapter, Batch(ids=IDS, labels=IDS), runs=RUNS, seed=1, ulp=EXP_ULP,
        keep=lambda name: name == "logits",
    )  # fmt: skip


def far(logits_BTV: np.ndarray, expected: tuple[Trace, Response]) -> dict[str, float]:
    return outside({"logits": logits_BTV}, {"logits": expected[0].taps["logits"]}, expected[1], "float64")


def test_every_format_holds_the_state_to_the_last_bit(left: tuple[Path, Run, TrainerState]) -> None:
    folder, run, state = left
    for name, path in sources(folder).items():
        adapter = by_path(read_source(path).adapter, run.layout)
        assert {key: matrix.tobytes() for key, matrix in tensors_of(adapter).items()} == {
            key: matrix.tobytes() for key, matrix in state.adapter.items()
        }, name
    found = training_checkpoint.read(folder / "out/checkpoints/step-00000004")
    assert {key: m.tobytes() for key, m in checkpoints.state_of(run, found).m.items()} == {key: m.tobytes() for key, m in state.m.items()}


def test_peft_the_torch_stack_and_this_one_have_the_same_logits(left: tuple[Path, Run, TrainerState]) -> None:
    from stacks.torch_qlora.load import open_model

    folder, _, state = left
    asked = request(folder, folder / "out/adapter")
    files = named(asked)
    expected = oracle(files.checkpoint, state, files.plan)
    ids_BT = torch.from_numpy(IDS)
    theirs = uncached(open_model(asked, torch.device("cpu")).graph, ids_BT).numpy()
    assert far(theirs, expected) == {}
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with torch.no_grad(), clean():
        without = base.double().eval()(input_ids=ids_BT).logits.numpy()
        peft = PeftModel.from_pretrained(base.float(), str(folder / "out/peft")).double().eval()(input_ids=ids_BT).logits.numpy()
    assert far(peft, expected) == {}
    assert min(far(without, expected).values()) > 1e6  # what the bound can see
    assert files.adapter is not None
    model = hold(files.plan, Weights(files.plan, of_checkpoint(files.checkpoint), "CPU"), tensors_of(files.adapter), "CPU")
    decoder = Decoder(model, batch=len(IDS), room=IDS.shape[1] + 1, passes=2, told=lambda done, total: None)
    own = expected[0].taps["logits"].copy()
    for column in range(IDS.shape[1]):
        own[:, column] = decoder.logits(IDS[:, column : column + 1], np.full((len(IDS), 1), column))
    assert far(own, expected) == {}


def test_both_stacks_write_the_same_from_every_format(left: tuple[Path, Run, TrainerState]) -> None:
    """Through their workers, greedy and drawn, prompts of different lengths, on a plain base and on NF4."""
    folder, _, _ = left
    adapters: dict[str, Path | None] = {"none": None, **sources(folder)}
    texts: dict[tuple[str, ...], list[object]] = {}
    for stack in ("torch_qlora", "tinygrad_lora"):
        command = (sys.executable, "-m", f"stacks.{stack}.worker")
        with StackProcess(stack, command, "CPU") as process:
            for name, adapter in adapters.items():
                for base, sampling in (("none", {}), ("nf4", {"temperature": 0.9, "top_p": 0.95, "seed": 3})):
                    values = {
                        "model": str(folder / "model"), "adapter": None if adapter is None else str(adapter), "dtype": "float64",
                        "base": base, "prompts": [[3, 1, 11], [7], [5, 5, 2, 9, 21]], "max_new_tokens": 8, "stop": [4],
                        "sampling": sampling, "first_sequence": 2,
                    }  # fmt: skip
                    texts.setdefault((name, base), []).append(process.request("generate", values).values["sequences"])
    for (name, base), (one, other) in texts.items():
        assert one == other, (name, base)
    assert texts["none", "none"] != texts["v3", "none"] == texts["peft", "none"] == texts["v2", "none"] == texts["checkpoint", "none"]
    assert texts["v3", "nf4"] == texts["checkpoint", "nf4"]


@pytest.mark.parametrize("base", [None, {"block_size": 32, "double_quant": False}], ids=["plain", "nf4"])
def test_both_stacks_merge_to_the_same_bits(base: dict[str, object] | None) -> None:
    """Through their workers; afterwards there is no adapter."""
    plan = plan_of(base=base)
    tensors, merged = tensors_of_plan(plan), []
    for stack in ("torch_qlora", "tinygrad_lora"):
        with StackProcess(stack, (sys.executable, "-m", f"stacks.{stack}.worker"), "CPU") as process:
            process.request("open", {"graph": "g", "plan": plan.model_dump(mode="json")}, tensors)
            merged.append(process.request("merge", {"graph": "g"}).tensors)
            assert process.request("state", {"graph": "g"}).tensors == {}
    assert set(merged[0]) == {name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")}
    assert {path: weight.tobytes() for path, weight in merged[0].items()} == {path: weight.tobytes() for path, weight in merged[1].items()}
