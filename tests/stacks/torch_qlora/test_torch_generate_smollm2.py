"""The real model through the command, with transformers as witness."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from contract.data.prompt import encode, render
from contract.data.tokenizers import HfTokenizer
from contract.model import zoo

COMMAND = [sys.executable, "-c", "from contract.cli import main; main()", "generate", "--model", "smollm2-135m", "--json"]


@pytest.mark.nightly
def test_smollm2_writes_what_transformers_writes() -> None:
    """Greedy, two prompts of different lengths in one batch; transformers gets each alone. The gaps between logits are large here."""
    prompts = ["What is the capital of France?", "Name three colours, one a line, and nothing else."]
    arguments = [*COMMAND, "--max-new-tokens", "16", *(word for prompt in prompts for word in ("--prompt", prompt))]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=280, check=True)
    answer = json.loads(done.stdout)
    assert answer["sequences"][0]["text"] == "The capital of France is Paris."
    assert answer["sequences"][0]["finish"] == "stop"
    folder = zoo.locate("smollm2-135m").path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = HfTokenizer(folder / "tokenizer.json")
    for ids, one in zip(encode(tokenizer, render(prompts, system=None, template="chatml")), answer["sequences"], strict=True):
        assert one["prompt_tokens"] == len(ids)
        with torch.no_grad():
            theirs = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=tokenizer.eos_id)
        assert theirs[0, len(ids) :].tolist() == one["ids"]
