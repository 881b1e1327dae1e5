"""Makes parity/goldens/adapter.json: A as PEFT starts it, times sqrt(in_features).

python tests/parity/goldens/make_policy_adapter.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import torch

HOME = Path(__file__).parents[3] / "parity" / "goldens"
WIDTH, RANK = 37, 64


def main() -> None:
    """Writes the file; to 7 digits, as many as float32 has."""
    torch.manual_seed(20_260)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, 5))
    injected = peft.inject_adapter_in_model(peft.LoraConfig(r=RANK, target_modules=["0"], init_lora_weights=True), model)
    state = injected.state_dict()
    assert not state["0.lora_B.default.weight"].any()
    scaled = state["0.lora_A.default.weight"].numpy().astype(np.float64).reshape(-1) * np.sqrt(WIDTH)
    made_with = {"peft": peft.__version__, "torch": torch.__version__}
    values = ",".join(f"{value:.7g}" for value in scaled)
    text = f'{{\n"made_with": {json.dumps(made_with)},\n"scaled": [{values}]\n}}\n'
    (HOME / "adapter.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
