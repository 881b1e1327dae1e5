"""The request `generate`: what it tells meanwhile, what it answers, what it refuses. By night, SmolLM2 through the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.artifacts import v3
from contract.errors import ContractError
from contract.worker.generation import Answer
from contract.worker.stack import NotSupported
from stacks.tinygrad_lora.load import respond
from stacks.tinygrad_lora.ops import TinygradLora
from tests.contract.artifacts.adapter_cases import LLAMA, adapter_on, llama_tensors, write_base

COMMAND = [sys.executable, "-c", "from contract.cli import main; main()", "generate", "--model", "smollm2-135m", "--json"]


class Channel:
    """Keeps what it is told."""

    def __init__(self, *, cancelled: bool = False) -> None:
        self.told: list[dict[str, Any]] = []
        self.cancelled = cancelled

    def progress(self, **values: Any) -> None:
        self.told.append(values)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", llama_tensors(), LLAMA)


def request(model: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "prompts": [[3, 1, 11], [7]], "max_new_tokens": 4} | more


def test_who_cancels_while_kernels_are_made_gets_an_answer(cpu: object, base: Path) -> None:
    channel = Channel(cancelled=True)
    answer = Answer.model_validate(respond(request(base), "CPU", channel).values)
    assert [(one.ids, one.finish) for one in answer.sequences] == [((), "cancelled")] * 2
    assert channel.told == [{"loaded": done, "of": 3} for done in range(4)] + [{"compiled": 0, "of": 6}]


def test_what_can_t_be_is_refused(cpu: TinygradLora, base: Path, tmp_path: Path) -> None:
    for values in ({}, request(base, prompts=[[]]), request(base, max_new_tokens=0)):
        with pytest.raises(ValueError, match="validation error"):
            cpu.generate(**values)
    with pytest.raises(ValueError, match="prompt 1 has ids from 1 to 14; allowed: 0 to 13"):
        cpu.generate(**request(base, prompts=[[1, 14]]))
    v3.write(tmp_path / "v3", adapter_on(LLAMA, ("layers.0.q_proj",), embed_key="model.embed_tokens.weight", vocab=15))
    with pytest.raises(ContractError, match="adapter: vocab: got 15; allowed: 14"):
        cpu.generate(**request(base, adapter=str(tmp_path / "v3")))


def test_a_plan_that_the_device_lacks_is_refused_before_a_weight_is_read(base: Path) -> None:
    def require(plan: object) -> None:
        raise NotSupported("no such dtype")

    channel = Channel()
    with pytest.raises(NotSupported, match="no such dtype"):
        respond(request(base), "CPU", channel, require=require)
    assert channel.told == []


@pytest.mark.nightly
def test_an_answer_has_times_and_what_was_told_on_the_way(cpu: object, base: Path) -> None:
    channel = Channel()
    answer = Answer.model_validate(respond(request(base, base="nf4"), "CPU", channel).values)
    new = [dict(values["new"]) for values in channel.told if "new" in values]
    assert [tuple(one[row] for one in new) for row in (0, 1)] == [one.ids for one in answer.sequences]
    assert [values for values in channel.told if "compiled" in values] == [{"compiled": done, "of": 6} for done in range(6)]
    assert answer.compile_seconds > 0
    assert min(answer.load_seconds, answer.seconds) >= 0


@pytest.mark.nightly
def test_smollm2_answers_and_as_the_torch_stack_does() -> None:
    """Greedy, two prompts of different lengths in one batch. The gaps between logits are large here."""
    prompts = ["What is the capital of France?", "Name three colours, one a line, and nothing else."]
    arguments = [*COMMAND, "--max-new-tokens", "16", *(word for prompt in prompts for word in ("--prompt", prompt))]
    answers = []
    for stack in ("tinygrad_lora", "torch_qlora"):
        done = subprocess.run([*arguments, "--stack", stack], capture_output=True, text=True, timeout=280, check=True)
        answers.append(json.loads(done.stdout))
    assert answers[0]["sequences"][0]["text"] == "The capital of France is Paris."
    assert answers[0]["sequences"][0]["finish"] == "stop"
    assert answers[0]["sequences"] == answers[1]["sequences"]
