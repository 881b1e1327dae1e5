"""Makes parity/goldens/decay.json: which of a LoRA model's trained matrices transformers' Trainer gives weight decay.

python tests/parity/goldens/make_policy_decay.py
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import peft
import transformers

HOME = Path(__file__).parents[3] / "parity" / "goldens"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


def main() -> None:
    """Writes the file: by linear and half, over every layer."""
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    adapted = peft.get_peft_model(transformers.LlamaForCausalLM(config), peft.LoraConfig(r=2, target_modules=list(LINEARS)))
    decaying = set(transformers.Trainer.get_decay_parameter_names(SimpleNamespace(), adapted))
    found: dict[str, bool] = {}
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            linear, half = name.split(".")[-4], name.split(".")[-3].lower()
            assert found.setdefault(f"{linear}.{half}", name in decaying) == (name in decaying)
    assert set(found) == {f"{linear}.{half}" for linear in LINEARS for half in ("lora_a", "lora_b")}
    assert not all(name in decaying for name, _ in adapted.named_parameters())
    made_with = {module.__name__: module.__version__ for module in (peft, transformers)}
    (HOME / "decay.json").write_text(json.dumps({"made_with": made_with, "decays": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
