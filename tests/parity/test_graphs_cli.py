"""Tier C and bisect as a user meets them: a checkpoint of their own, a bad one, a planted bug."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contract.worker import discover
from parity import cli
from parity.commands.options import failures_folder
from tests.contract.model import tiny_checkpoint

Parity = Callable[..., tuple[object, str, str]]


@pytest.fixture
def parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Parity:
    """The command in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr("parity.commands.run.failures_folder", lambda given: failures_folder(given or tmp_path / "cache" / "failures"))
        monkeypatch.setattr(sys, "argv", ["parity", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        return stopped.value.code, told.out, told.err

    return run


def test_a_checkpoint_of_ones_own(parity: Parity, tmp_path: Path) -> None:
    """Both stacks, every question, on a small folder; the record names it, and each tap has its difference."""
    model = tiny_checkpoint.write(tmp_path / "model")
    record = tmp_path / "run.json"
    code, out, err = parity("run", "--only", "c.model", "--only", "c.model_nf4", "--model", str(model), "--json", str(record))
    assert (code, err) == (0, ""), out
    assert "Worst relative difference of a row" in out
    made = json.loads(record.read_text())
    assert made["model"] == str(model)
    pair = next(result for result in made["results"] if result["question"] == "same_function" and result["status"] == "pass")
    assert pair["real_weights"] == pair["examples"] == 2
    kinds = {tensor["tensor"] for tensor in pair["tensors"]}
    assert {"q_rope", "scores", "weights", "logits", "loss", "grad.q_proj.lora_a", "grad.down_proj.lora_b"} <= kinds
    assert all(tensor["relative"] is not None and tensor["observed"] <= tensor["bound"] for tensor in pair["tensors"])


def declare_less(folder: Path) -> None:
    """A parity.toml in which the tinygrad stack declares no option of a layout."""
    info = discover.discover()["tinygrad_lora"]
    assert info.capabilities.graphs is not None
    graphs = info.capabilities.graphs.model_copy(update={"layout_options": ()})
    declared = info.capabilities.model_copy(update={"graphs": graphs})
    (folder / "less.json").write_text(declared.model_dump_json(), encoding="utf-8")
    table = f'[stacks.tinygrad_lora]\ncommand = {json.dumps(list(info.command))}\ncapabilities = "less.json"\n'
    (folder / "parity.toml").write_text(table, encoding="utf-8")


@pytest.mark.nightly
def test_a_checkpoint_with_an_option(parity: Parity, tmp_path: Path) -> None:
    """It is asked of the stack that declares the option; the other one's cells are not covered, and say why."""
    model = tiny_checkpoint.write(tmp_path / "model", rope_scaling={"rope_type": "linear", "factor": 2.0})
    record = tmp_path / "run.json"
    declare_less(tmp_path)
    code, out, _ = parity("run", "--only", "c.model", "--model", str(model), "--json", str(record))
    assert code == 4, out
    results = json.loads(record.read_text())["results"]
    assert {tuple(result["stacks"]) for result in results if result["status"] == "pass"} == {("torch_qlora",)}
    (reason,) = {result["reason"] for result in results if result["status"] == "not_covered"}
    assert reason.startswith("tinygrad_lora declares no layout option rope_scaling.linear; leave that stack out")


def no_config(model: Path) -> str:
    (model / "config.json").unlink()
    return "config.json"


def truncated(model: Path) -> str:
    weights = model / tiny_checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    return tiny_checkpoint.WEIGHTS


def another_architecture(model: Path) -> str:
    tiny_checkpoint.write(model, model_type="gpt_neox")
    return "gpt_neox"


def another_field(model: Path) -> str:
    tiny_checkpoint.write(model, attention_multiplier=0.5)
    return "attention_multiplier"


def scaled_rope(model: Path) -> str:
    tiny_checkpoint.write(model, rope_scaling={"rope_type": "yarn", "factor": 2.0})
    return "rope_scaling"


def not_a_number(model: Path) -> str:
    weights = tiny_checkpoint.weights()
    weights[tiny_checkpoint.V][0, 0] = np.nan
    tiny_checkpoint.write(model, weights)
    return tiny_checkpoint.V


@pytest.mark.parametrize("spoil", [no_config, truncated, another_architecture, another_field, scaled_rope, not_a_number])
@pytest.mark.parametrize("command", [("run", "--only"), ("bisect",)])
def test_a_bad_checkpoint_is_refused_by_name_before_anything_starts(
    parity: Parity, tmp_path: Path, command: tuple[str, ...], spoil: Callable[[Path], str]
) -> None:
    model = tiny_checkpoint.write(tmp_path / "model")
    named = spoil(model)
    code, out, err = parity(*command, "c.model", "--model", str(model))
    assert code == 2
    assert out == ""
    assert named in err
    assert err.startswith("parity: ")
    assert err.count("\n") == 1


def test_a_folder_that_is_not_there(parity: Parity, tmp_path: Path) -> None:
    code, _, err = parity("run", "--only", "c.model", "--model", str(tmp_path / "nowhere"))
    assert code in (2, 4)
    assert "nowhere" in err


def test_bisect_finds_nothing_in_stacks_that_are_right(parity: Parity) -> None:
    code, out, _ = parity("bisect", "c.llama", "--stacks", "torch_qlora")
    assert code == 0
    assert "every operation is right" in out


def test_bisect_names_the_operation(parity: Parity) -> None:
    code, out, _ = parity("bisect", "c.llama", "--stacks", "torch_qlora", "--mutant", "torch-softmax-in-float32")
    assert code == 1
    assert "torch_qlora weights" in out
    assert "forward and backward" in out


def test_bisect_asks_in_each_dtype(parity: Parity) -> None:
    code, out, _ = parity("bisect", "c.llama", "--stacks", "torch_qlora", "--question", "precision")
    assert code == 0
    assert "float64: every operation is right" in out
    assert "float32: every operation is right" in out


def test_a_red_graph_says_how_to_see_it_again(parity: Parity, tmp_path: Path) -> None:
    model = tiny_checkpoint.write(tmp_path / "a model")
    arguments = ("run", "--only", "c.model", "--model", str(model), "--stacks", "torch_qlora", "--mutant", "torch-mask-off-by-one")
    code, out, _ = parity(*arguments)
    assert code == 1
    assert "at fault: torch_qlora weights (forward and backward; 2 sections, layers.0 to layers.1)" in out
    (again,) = {line.partition("again: ")[2] for line in out.splitlines() if "again: " in line}
    assert parity(*shlex.split(again)[1:])[0] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("c.llama", "--stacks", "tinygrad_lora", "--mutant", "torch-gqa-tiled"), "of the stack torch_qlora, which this run leaves out"),
        (("c.llama", "--mutant", "torch-gqa-tiled", "--mutant", "torch-gqa-tiled"), "each can be planted once"),
        (("a.matmul",), "no whole graph"),
        (("c.llama", "--question", "fast_path"), "allowed: same_function, precision"),
        (("c.nothing",), "there is no check"),
        (("c.llama", "--profile", "slow"), "there is no profile"),
    ],
)
def test_bisect_refuses(parity: Parity, arguments: tuple[str, ...], told: str) -> None:
    code, _, err = parity("bisect", *arguments)
    assert code == 2
    assert told in err


def test_bisect_of_a_path_that_a_stack_lacks(parity: Parity) -> None:
    code, _, err = parity("bisect", "c.llama_checkpoint", "--question", "fast_path", "--stacks", "tinygrad_lora")
    assert code == 4
    assert "tinygrad_lora declares no path checkpoint" in err
