"""PEFT as witness: it loads what a run leaves in peft/, onto transformers' own loading of the base, and gives the logits that this stack
gives with what the run leaves in adapter/. In float64; how far two right answers may lie apart: tiny_generation.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from contract.model import keymap, layout
from contract.model import weights as model_weights
from contract.model.checkpoint import open_checkpoint
from contract.run.spec import FineTuneContract
from contract.training.outputs import write_adapters
from contract.worker.generation import Generation
from stacks.torch_qlora.load import open_model
from tests.contract.artifacts.adapter_cases import GPT2, gpt2_tensors, write_base
from tests.float64_transformers import clean
from tests.stacks.torch_qlora.tiny_generation import CONFIGS, MARGIN, UNIT_RATIO, ids_of, uncached

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
LLAMA = {**CONFIGS["llama"], "model_type": "llama", "hidden_size": 24, "pad_token_id": None}
ADAPTERS: dict[str, dict[str, Any]] = {
    "llama": {"rank": 3, "alpha": 7.0, "rank_pattern": {"q_proj": 2, "layers.1.q_proj": 4}, "alpha_pattern": {"layers.0.up_proj": 1.5}},
    "llama, rslora": {"rank": 3, "alpha": 7.0, "rslora": True, "target_modules": ["v_proj", "down_proj"]},
    "gpt2": {"rank": 2, "alpha": 8.0, "alpha_pattern": {"o_proj": 3.0}},
}


def base_of(folder: Path, model: str) -> Path:
    if model == "gpt2":
        return write_base(folder / "base", gpt2_tensors(prefix="transformer."), GPT2)
    rng = np.random.default_rng(2)
    shapes = {weight.name: weight.shape for weight in model_weights.weights(layout.read(LLAMA))}
    tensors = {name: (rng.standard_normal(shape) * 0.3 + name.endswith("norm")).astype(np.float32) for name, shape in shapes.items()}
    return write_base(folder / "base", {keymap.hugging_face_key(name): tensor for name, tensor in tensors.items()}, LLAMA)


def run_of(folder: Path, name: str) -> tuple[Path, SimpleNamespace]:
    """A run that has ended: its folder, and the state that it left."""
    base = base_of(folder, name.partition(",")[0])
    contract = FineTuneContract.model_validate(
        {"model": {"hf_repo": str(base)}, "data": {"train_file": "rows.jsonl"}, "quant": {"base": "none"}}
        | {"adapter": {"method": "lora"} | ADAPTERS[name]}
    )
    checkpoint, spec, rng = open_checkpoint(base), contract.adapter, np.random.default_rng(3)
    matrices = {}
    for layer in range(checkpoint.layout.num_hidden_layers):
        for kind, (out, in_) in checkpoint.layout.widths.items():
            path = f"layers.{layer}.{kind}"
            rank = spec.rank_pattern.get(path, spec.rank_pattern.get(kind, spec.rank))
            if kind in (spec.target_modules or checkpoint.layout.linears):
                matrices |= {f"{path}.lora_a": rng.standard_normal((rank, in_)), f"{path}.lora_b": rng.standard_normal((out, rank))}
    state = SimpleNamespace(adapter={name: (0.3 * matrix).astype(np.float32) for name, matrix in matrices.items()})
    assert write_adapters(SimpleNamespace(contract=contract, checkpoint=checkpoint), state, folder / "out") == ()
    return base, state


def own_logits(base: Path, adapter: Path | None, ids_BT: torch.Tensor, dtype: str) -> torch.Tensor:
    values = {"model": str(base), "adapter": None if adapter is None else str(adapter), "dtype": dtype}
    return uncached(open_model(Generation.model_validate(values | {"prompts": ((1,),), "max_new_tokens": 1}), CPU).graph, ids_BT)


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_loads_what_a_run_leaves(tmp_path: Path, name: str) -> None:
    base, _ = run_of(tmp_path, name)
    ids_BT = ids_of(9) % 13
    wide, narrow = (own_logits(base, tmp_path / "out/adapter", ids_BT, dtype) for dtype in ("float64", "float32"))
    limit = MARGIN * UNIT_RATIO * float((narrow.double() - wide).abs().max())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(tmp_path / "out/peft"))
    with torch.no_grad(), clean():
        theirs = model.double().eval()(input_ids=ids_BT).logits
    assert theirs.dtype == wide.dtype == torch.float64
    assert (theirs - wide).abs().max() <= limit
    assert (own_logits(base, None, ids_BT, "float64") - wide).abs().max() > 1e9 * limit
