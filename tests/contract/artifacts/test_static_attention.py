"""A merge into plain multi-head attention: torch's own module gives what transformers' attention gives on the merged checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from contract.artifacts import static_attention
from contract.artifacts.adapter import Adapter
from contract.artifacts.kinds import Kind, what_is
from contract.artifacts.merge import merge
from contract.artifacts.static_attention import MANIFEST, TENSORS, StaticAttention, merge_static
from contract.artifacts.training_checkpoint import write
from contract.errors import ContractError
from contract.model.checkpoint import load, open_checkpoint
from contract.reading import json_file
from tests.contract.artifacts.adapter_cases import GPT2, LLAMA, adapter_on, checkpoint_of, content, gpt2_tensors, llama_tensors, write_base
from tests.contract.commands.test_artifact_commands import finetune

LINEARS = ("layers.0.q_proj", "layers.0.v_proj", "layers.1.k_proj", "layers.1.o_proj")
T = 7

UNIT_RATIO, MARGIN = 2.0**-29, 3
"""What float32's own error says of float64's, and how far two right answers may lie apart."""


def adapter_of(linears: tuple[str, ...] = LINEARS, config: Mapping[str, Any] = GPT2, **more: Any) -> Adapter:
    return adapter_on(config, linears, rank=2, alpha=4.0, embed_key="wte.weight", **more)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", gpt2_tensors(prefix="transformer."), GPT2)


def attended(folder: Path, layer: int, x_BTD: torch.Tensor) -> torch.Tensor:
    """torch.nn.MultiheadAttention with a layer's tensors, causal."""
    facts = StaticAttention.model_validate_json((folder / MANIFEST).read_bytes())
    module = torch.nn.MultiheadAttention(facts.hidden_size, facts.num_attention_heads, batch_first=True)
    prefix = f"layers.{layer}."
    own = {name.removeprefix(prefix): torch.from_numpy(it) for name, it in load_file(folder / TENSORS).items() if name.startswith(prefix)}
    module.load_state_dict(own)
    mask_TT = torch.nn.Transformer.generate_square_subsequent_mask(T, dtype=x_BTD.dtype)
    with torch.no_grad():
        return module.to(x_BTD.dtype).eval()(x_BTD, x_BTD, x_BTD, attn_mask=mask_TT, need_weights=False)[0]


def test_torch_s_own_module_gives_what_the_merged_checkpoint_gives(tmp_path: Path, base: Path) -> None:
    merge_static(adapter_of(), base, tmp_path / "static")
    merge(adapter_of(), base, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64, attn_implementation="eager").eval()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager").eval()
    x_BTD = torch.from_numpy(np.random.default_rng(1).standard_normal((2, T, GPT2["n_embd"])))
    mask_11TT = torch.nn.Transformer.generate_square_subsequent_mask(T, dtype=x_BTD.dtype)[None, None]
    for layer in range(2):
        got = attended(tmp_path / "static", layer, x_BTD)
        limit = MARGIN * UNIT_RATIO * float((attended(tmp_path / "static", layer, x_BTD.float()).double() - got).abs().max())
        with torch.no_grad():
            wanted, without = (it.transformer.h[layer].attn(x_BTD, attention_mask=mask_11TT)[0] for it in (model, plain))
        assert (got - wanted).abs().max() <= limit
        assert (got - without).abs().max() > 1e6 * limit


def test_it_has_the_bits_of_the_merge_of_files(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a weight of several tiles; twice the same bytes."""
    merge(adapter_of(), base, tmp_path / "merged")
    filed = open_checkpoint(tmp_path / "merged")
    merge_static(adapter_of(), base, tmp_path / "static")
    monkeypatch.setattr(static_attention, "rows_at_once", lambda columns: 4)
    record = merge_static(adapter_of(), base, tmp_path / "again")
    assert content(tmp_path / "static") == content(tmp_path / "again")
    assert (record.num_hidden_layers, record.hidden_size, record.num_attention_heads) == (2, 6, 3)
    assert record.claims_full_attention_fidelity
    tensors = load_file(tmp_path / "static" / TENSORS)
    assert len(tensors) == 8
    for layer in (0, 1):
        prefix = f"layers.{layer}"
        for kind in ("weight", "bias"):
            suffix = "" if kind == "weight" else ".bias"
            inward = np.concatenate([load(filed, f"{prefix}.{name}_proj{suffix}") for name in "qkv"])
            assert tensors[f"{prefix}.in_proj_{kind}"].tobytes() == inward.tobytes()
            assert tensors[f"{prefix}.out_proj.{kind}"].tobytes() == np.ascontiguousarray(load(filed, f"{prefix}.o_proj{suffix}")).tobytes()


REFUSED: dict[str, tuple[Mapping[str, Any], tuple[str, ...], str]] = {
    "RoPE": (LLAMA, ("layers.0.q_proj",), "got llama, whose RoPE turns q and k by position after they are projected; allowed: gpt2"),
    "scores that are not scaled": (GPT2 | {"scale_attn_weights": False}, LINEARS, "got scale_attn_weights false, another divisor"),
    "scores scaled by layer": (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, LINEARS, "got scale_attn_by_inverse_layer_idx true"),
    "LoRA elsewhere": (GPT2, (*LINEARS, "layers.0.up_proj"), "got LoRA on layers.0.up_proj; allowed: q_proj, k_proj, v_proj, o_proj"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_attention_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    config, linears, words = REFUSED[name]
    folder = write_base(tmp_path / "base", llama_tensors() if config is LLAMA else gpt2_tensors(), config)
    with pytest.raises(ContractError, match=words) as caught:
        merge_static(adapter_of(linears, config), folder, tmp_path / "static")
    assert caught.value.remedy == "leave --layout out: the checkpoint's own layout holds every merge"
    assert not (tmp_path / "static").exists()


def test_the_command(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For RoPE the checkpoint's own layout, which the refusal names, does it."""
    write(tmp_path / "checkpoint", checkpoint_of(adapter_of()))
    out = tmp_path / "static"
    assert finetune("merge-weights", tmp_path / "checkpoint", base, out, "--layout", "static") == 0
    said = capsys.readouterr().out
    assert f"{out}: a training checkpoint, 4 linears, merged into the attention of 2 layers" in said
    assert "left out: optimiser state" in said
    assert what_is(out) == (Kind.STATIC_ATTENTION, out)
    assert json_file(out / MANIFEST)["format"] == "twostack_static_attention"
    assert finetune("merge-weights", tmp_path / "checkpoint", base, out, "--layout", "static") == 2
    assert "a static attention" in capsys.readouterr().err
    assert finetune("merge-weights", tmp_path / "checkpoint", base, out, "--force") == 2  # a merged model is no static attention
    assert finetune("merge-weights", tmp_path / "checkpoint", base, out, "--layout", "static", "--force") == 0
    rope = write_base(tmp_path / "rope", llama_tensors(), LLAMA)
    write(tmp_path / "other", checkpoint_of(adapter_on(LLAMA, ("layers.0.q_proj",), embed_key="model.embed_tokens.weight")))
    capsys.readouterr()
    assert finetune("merge-weights", tmp_path / "other", rope, tmp_path / "no", "--layout", "static") == 2
    assert "RoPE turns q and k by position" in capsys.readouterr().err
    assert finetune("merge-weights", tmp_path / "other", rope, tmp_path / "yes") == 0
