"""`finetune generate` from the shell, with a stack that writes a fixed text: what it asks of it, what it shows, what it refuses."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract import cli
from contract.artifacts import v3
from contract.commands.generation import TextStream, _View, prompts_of, write
from contract.data.tokenizers import HfTokenizer
from contract.errors import ContractError
from contract.run.generation import Asked, prepare
from contract.worker.answers import RequestFailed
from contract.worker.discover import discover
from contract.worker.generation import Sampling
from contract.worker.process import StackProcess
from tests.contract.artifacts.adapter_cases import adapter_on
from tests.contract.commands.writing_stack import EOS, TEXT, described, tokenizer
from tests.contract.model import tiny_checkpoint

SIZES = {"vocab_size": 300, "max_position_embeddings": 100, "eos_token_id": [7, 299, 300, None]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, its tokenizer, and parity.toml."""
    folder = tmp_path_factory.mktemp("generate")
    tiny_checkpoint.write(folder / "model", **SIZES)
    tokenizer().save(str(folder / "model/tokenizer.json"))
    described(folder)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["finetune", "generate", "--model", "model", "--stack", "writing", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def asked(**changed: Any) -> Asked:
    usual: dict[str, Any] = {
        "model": "model", "adapter": None, "prompts": ["Hello"], "system": None, "template": "chatml", "tokenizer": "hf",
        "stack": "writing", "device": None, "base": None, "dtype": "float32", "max_new_tokens": None, "sampling": Sampling(),
    }  # fmt: skip
    return Asked(**(usual | changed))


# What is asked


def test_every_option_reaches_the_request(place: Path) -> None:
    source = adapter_on(tiny_checkpoint.CONFIG | SIZES, ("layers.0.q_proj",), embed_key="model.embed_tokens.weight")
    v3.write(place / "adapter", source)
    sampling = Sampling(temperature=0.5, top_p=0.75, seed=9)
    prepared = prepare(
        asked(
            adapter=Path("adapter"), prompts=["Hello", "<|im_end|>"], system="Be brief.", device="SLOW", base="nf4", max_new_tokens=5,
            sampling=sampling,
        ),
        discover(),
    )  # fmt: skip
    request = prepared.request
    assert (request.model, request.adapter) == (str(place / "model"), str(place / "adapter"))
    assert (request.base, request.dtype, request.max_new_tokens, request.sampling) == ("nf4", "float32", 5, sampling)
    assert (prepared.device, prepared.stack.name, request.first_sequence) == ("SLOW", "writing", 0)
    first, second = (prepared.tokenizer.decode(ids) for ids in request.prompts)
    assert first == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert second == first.replace("Hello", "<|im_end|>")
    assert len(request.prompts[1]) == len(request.prompts[0]) - len("Hello") + len("<|im_end|>")  # text, not markup
    assert request.stop == (7, EOS, 299)  # the tokenizer's, and those of config.json that the vocabulary has


def test_without_a_number_as_many_tokens_as_there_are_positions_for() -> None:
    prepared = prepare(asked(template="none"), discover())
    assert prepared.request.prompts == (tuple(tokenizer().encode("Hello").ids),)
    assert prepared.request.max_new_tokens == 95
    assert prepare(asked(template="none", max_new_tokens=95), discover()).request.max_new_tokens == 95


def test_without_a_name_the_production_lane_s_stack_generates() -> None:
    """Of several the first by name: tinygrad_lora is of the research lane."""
    assert prepare(asked(stack=None), discover()).stack.name == "torch_qlora"


def test_an_option_of_a_layout_is_the_graph_s_affair_not_training_s(place: Path, tmp_path: Path) -> None:
    model = tmp_path / "scaled"
    tiny_checkpoint.write(model, **SIZES, rope_scaling={"rope_type": "linear", "factor": 2.0})
    tokenizer().save(str(model / "tokenizer.json"))
    stacks = discover()
    with pytest.raises(ContractError, match=r"--model: got rope_scaling.linear; allowed: what the stack's graph has"):
        prepare(asked(model=str(model)), stacks)
    capabilities = stacks["writing"].capabilities
    assert capabilities.graphs is not None
    graphs = capabilities.graphs.model_copy(update={"layout_options": ("rope_scaling.linear",)})
    able = replace(stacks["writing"], capabilities=capabilities.model_copy(update={"graphs": graphs}))
    assert prepare(asked(model=str(model)), {"writing": able}).request.model == str(model)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompts": []}, "--prompt: got none; allowed: one or more, or --prompt-file; give one"),
    "no model": ({"model": "nothing"}, "--model: got 'nothing', which is no model and no folder"),
    "an unknown stack": ({"stack": "other"}, "--stack: got stack 'other'; allowed: torch_qlora, writing, tinygrad_lora"),
    "an unknown device": ({"device": "TPU"}, "--device: got 'TPU'; allowed: GOOD, SLOW"),
    "a dtype that the stack lacks": ({"dtype": "float64"}, "--model: got llama in float64; allowed: float32"),
    "too many tokens": (
        {"template": "none", "prompts": ["Hi", "Hello"], "max_new_tokens": 96},
        "--max-new-tokens: got 96 after prompt 2 of 5 tokens; allowed: 100 positions in all",
    ),
    "a prompt that fills the positions": (
        {"template": "none", "prompts": ["x" * 100]}, "--max-new-tokens: got 1 after prompt 1 of 100 tokens; allowed: 100 positions",
    ),
    "vox with the model's own template": (
        {"tokenizer": "vox", "template": "tokenizer"}, "--template: got tokenizer with --tokenizer vox; allowed: chatml, none; the table",
    ),
    "no chat template": ({"template": "tokenizer"}, "got no chat template"),
    "no adapter": ({"adapter": Path("model")}, "model: got a base model; allowed: a v2 adapter, a v3 adapter, a PEFT adapter"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_t_be_is_refused_before_a_worker_starts(name: str) -> None:
    changed, message = REFUSED[name]
    with pytest.raises(ContractError) as caught:
        prepare(asked(**changed), discover())
    assert message in str(caught.value)


def test_a_stack_that_does_not_generate_is_refused() -> None:
    stacks = discover()
    silent = replace(stacks["writing"], capabilities=stacks["writing"].capabilities.model_copy(update={"requests": ("probe",)}))
    with pytest.raises(ContractError, match="--stack: got stack 'writing'; allowed: torch_qlora, tinygrad_lora; name one that generates"):
        prepare(asked(), stacks | {"writing": silent})


@pytest.mark.parametrize(
    ("error_class", "message", "code", "shown"),
    [
        ("MissingError", "no {CUDA} here; install it", 2, "no {CUDA} here; install it"),
        ("EnvironmentUnfit", "no compiler; install one", 1, "no compiler; install one"),
        ("MemoryError", "2 GB", 1, "no memory is left (2 GB); give fewer prompts at a time, lower --max-new-tokens, or hold the base"),
        ("OutOfMemory", "2 GB", 1, "no memory is left (2 GB); give fewer prompts"),
        ("KeyError", "'x'", 1, "writing: KeyError: 'x'"),
    ],
)
def test_what_a_worker_can_not_do_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error_class: str, message: str, code: int, shown: str
) -> None:
    def failing(self: StackProcess) -> None:
        raise RequestFailed("writing", error_class, message, "")

    monkeypatch.setattr(StackProcess, "start", failing)
    assert run(monkeypatch, "--prompt", "Hello") == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"finetune: {shown}")


def test_the_vox_table_takes_the_place_of_a_tokenizer_json(tmp_path: Path) -> None:
    tiny_checkpoint.write(tmp_path / "model", **(SIZES | {"vocab_size": 131}))
    prepared = prepare(asked(model=str(tmp_path / "model"), tokenizer="vox", template="none", prompts=["fn f"]), discover())
    assert prepared.request.prompts == ((103, 73),)  # `fn ` and `f`, by the table
    assert prepared.request.stop == (2, 7, 118)  # the end of sequence, config.json's, and <|im_end|>
    assert prepared.tokenizer.decode((103, 73, 2)) == "fn f"


def test_a_model_with_fewer_ids_than_the_vox_table_is_refused(tmp_path: Path) -> None:
    tiny_checkpoint.write(tmp_path / "model", **(SIZES | {"vocab_size": 130}))
    with pytest.raises(ContractError, match="--tokenizer: got ids 0 to 130, and a model of vocab_size 130; allowed: an embedding for each"):
        prepare(asked(model=str(tmp_path / "model"), tokenizer="vox"), discover())


def test_an_adapter_of_another_model_is_refused(place: Path) -> None:
    v3.write(place / "other", adapter_on(dict(tiny_checkpoint.CONFIG), ("layers.0.q_proj",)))
    with pytest.raises(ContractError, match="adapter: vocab: got 14; allowed: 300"):
        prepare(asked(adapter=Path("other")), discover())


def test_prompts_of_a_file_are_its_lines(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "prompts.txt").write_bytes("﻿one\r\n\n  \nzwei ü\u2028drei".encode())
    assert prompts_of(["zero"], Path("prompts.txt")) == ["zero", "one", "zwei ü\u2028drei"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a\nb\n")))
    assert prompts_of([], Path("-")) == ["a", "b"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a" * (2**24 + 1))))
    with pytest.raises(ContractError, match="standard input: got over 16,777,216 bytes"):
        prompts_of([], Path("-"))
    (place / "latin.txt").write_bytes(b"a\xfc")
    with pytest.raises(ContractError, match=r"latin.txt: got byte 0xfc at offset 1; allowed: UTF-8"):
        prompts_of([], Path("latin.txt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top-p", "0"), "--top-p: got 0.0; allowed: over 0, 1 at most"),
        (("--top-p", "nan"), "--top-p: got nan; allowed: over 0, 1 at most"),
        (("--temperature", "inf"), "--temperature: got inf; allowed: finite"),
        (("--temperature", "nan"), "Invalid value for '--temperature'"),
        (("--seed", str(2**63)), "--seed: got 9223372036854775808; allowed: under 2^63"),
        (("--prompt-file", "nothing.txt"), "nothing.txt: got no such file"),
    ],
)
def test_values_out_of_range_are_usage_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run(monkeypatch, "--prompt", "Hello", *arguments) == 2
    assert message in capsys.readouterr().err


# What is shown


def test_a_text_comes_whole_to_standard_output_and_the_rest_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--prompt", "Hello", "--device", "good") == 0
    out, err = capsys.readouterr()
    assert out == f"{TEXT}\n"
    tokens = len(TEXT.encode()) + 1
    assert err == (
        f"note: 1 prompts, base None\n{tokens} tokens in 2.0 s, {tokens / 2:.1f} tokens/s; loading took 0.5 s; 1 ended by stop\n"
    )


def test_the_time_that_kernels_took_is_told_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--prompt", "Hello", "--device", "compiles") == 0
    assert "tokens/s; loading took 0.5 s; making kernels took 1.5 s; 1 ended by stop\n" in capsys.readouterr().err
    assert run(monkeypatch, "--prompt", "Hello", "--device", "compiles", "--json") == 0
    assert json.loads(capsys.readouterr().out)["compile_seconds"] == 1.5


def test_a_bar_for_weights_and_one_for_kernels_until_the_text_begins(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    view = _View(prepare(asked(), discover()), stream=True)
    view._bar = lambda *values: told.append(values)
    for values in (
        {"loaded": 1, "of": 2},
        {"compiled": 3, "of": 4},
        {"new": [(0, tokenizer().encode("G").ids[0])]},
        {"compiled": 4, "of": 6},
    ):
        view.show(values)
    assert told == [("weights", 1, 2), ("kernels", 3, 4)]
    assert capsys.readouterr().out == "G"


def test_json_holds_ids_text_and_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--prompt", "Hello", "--prompt", "Hi", "--json", "--max-new-tokens", "3", "--template", "none") == 0
    answer = json.loads(capsys.readouterr().out)
    ids = tokenizer().encode(TEXT).ids[:3]
    assert answer["sequences"] == [
        {"prompt": "Hello", "prompt_tokens": 5, "ids": ids, "text": "Gr\N{REPLACEMENT CHARACTER}", "finish": "length"},
        {"prompt": "Hi", "prompt_tokens": 2, "ids": ids, "text": "Gr\N{REPLACEMENT CHARACTER}", "finish": "length"},
    ]
    assert (answer["seconds"], answer["load_seconds"], answer["tokens_per_second"]) == (2.0, 0.5, 3.0)
    assert (answer["stack"], answer["device"], answer["max_new_tokens"]) == ("writing", "GOOD", 3)
    assert answer["sampling"] == {"temperature": 0.0, "top_p": 1.0, "seed": 42}


def test_several_texts_are_numbered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--prompt", "Hello\nyou", "--prompt", "Hi") == 0
    assert capsys.readouterr().out == f"--- 1: Hello\n{TEXT}\n--- 2: Hi\n{TEXT}\n"


def test_text_is_held_back_until_its_letters_are_whole(place: Path) -> None:
    own, ids = HfTokenizer(place / "model/tokenizer.json"), tokenizer().encode("ü€").ids
    stream = TextStream(own)
    assert [stream.add([token]) for token in ids] == ["", "ü", "", "", "€"]
    cut = TextStream(own)
    assert [cut.add(ids[:3]), cut.add([], last=True)] == ["ü", "\N{REPLACEMENT CHARACTER}"]


def test_a_terminal_gets_no_escape_sequences(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write("a\x1b[2J\tü\nb\r")
    assert capsys.readouterr().out == "a\\x1b[2J\tü\nb\\r"


# What goes wrong


@pytest.mark.parametrize(
    ("device", "code", "message"),
    [
        ("REFUSES", 2, "finetune: adapter: vocab: got 1; allowed: 2; take another\n"),
        ("LACKS", 2, "finetune: there is no such thing; allowed: others\n"),
        ("FAILS", 1, "finetune: writing: ValueError: the logits hold NaN or infinity\n"),
        ("DIES", 1, "finetune: writing: the worker ended with exit code 3"),
        ("LIES", 1, "finetune: the answer of writing: load_seconds: got nothing"),
    ],
)
def test_a_stack_that_fails_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str, code: int, message: str
) -> None:
    assert run(monkeypatch, "--prompt", "Hello", "--device", device) == code
    err = capsys.readouterr().err
    assert err[: len(message)] == message
    assert "Traceback" not in err


def test_ctrl_c_shows_what_there_is(place: Path) -> None:
    command = [sys.executable, "-c", "from contract.cli import main; main()", "generate", "--model", "model", "--stack", "writing"]
    process = subprocess.Popen(
        [*command, "--prompt", "Hello", "--device", "SLOW"], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(2) == b"Gr"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.decode() == "ü\n"
    assert b"4 tokens in 2.0 s" in err
    assert err.endswith(b"finetune: stopped; what is shown was generated before\n")
