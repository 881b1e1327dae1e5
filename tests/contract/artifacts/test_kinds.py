"""What lies at a path, by its files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.artifacts import peft, peft_config, static_attention, training_checkpoint, v2, v3
from contract.artifacts.kinds import MARKS, Kind, what_is
from contract.artifacts.merge import merge
from contract.artifacts.merge_manifest import MANIFEST
from contract.errors import ContractError
from tests.contract.artifacts.adapter_cases import (
    GPT2,
    LLAMA,
    adapter_on,
    checkpoint_of,
    gpt2_tensors,
    llama_tensors,
    refused,
    write_base,
)


def test_each_module_s_mark_is_in_the_table() -> None:
    assert MARKS == {
        training_checkpoint.STATE: Kind.TRAINING_CHECKPOINT, v3.MANIFEST: Kind.V3, v2.META: Kind.V2, peft_config.CONFIG: Kind.PEFT,
        MANIFEST: Kind.MERGED_MODEL, static_attention.MANIFEST: Kind.STATIC_ATTENTION,
    }  # fmt: skip


def make(kind: Kind, folder: Path) -> Path:
    adapter = adapter_on(LLAMA, ("layers.0.q_proj",), embed_key="model.embed_tokens.weight")
    match kind:
        case Kind.V2:
            v2.write(folder, adapter)
        case Kind.V3:
            v3.write(folder, adapter)
        case Kind.PEFT:
            peft.write(folder, adapter)
        case Kind.TRAINING_CHECKPOINT:
            training_checkpoint.write(folder, checkpoint_of())
        case Kind.BASE_MODEL:
            write_base(folder, llama_tensors(), LLAMA)
        case Kind.MERGED_MODEL:
            merge(adapter, write_base(folder.with_name("its_base"), llama_tensors(), LLAMA), folder)
        case Kind.STATIC_ATTENTION:
            base = write_base(folder.with_name("its_base"), gpt2_tensors(), GPT2)
            static_attention.merge_static(adapter_on(GPT2, ("layers.0.q_proj",), embed_key="wte.weight"), base, folder)
    return folder


@pytest.mark.parametrize("kind", Kind)
def test_what_is_written_is_told_by_its_folder_and_by_the_file_that_describes_it(tmp_path: Path, kind: Kind) -> None:
    folder = make(kind, tmp_path / "x")
    assert what_is(folder) == (kind, folder)
    for name, marked in MARKS.items():
        if marked == kind:
            assert what_is(folder / name) == (kind, folder)


def test_two_formats_in_one_folder_are_told_apart_by_naming_the_file(tmp_path: Path) -> None:
    folder = make(Kind.PEFT, make(Kind.V2, tmp_path / "x"))
    with pytest.raises(ContractError, match="a PEFT adapter and a v2 adapter") as error:
        what_is(folder)
    assert "adapter_config.json" in refused(error)
    assert what_is(folder / peft_config.CONFIG)[0] == Kind.PEFT
    assert what_is(folder / v2.META)[0] == Kind.V2


@pytest.mark.parametrize("there", ["nothing", "empty", "other_file", "nul", "loop", "long"])
def test_nothing_known_is_refused(tmp_path: Path, there: str) -> None:
    path = tmp_path / "x"
    match there:
        case "empty":
            path.mkdir()
        case "other_file":
            path.write_text("{}")
        case "nul":
            path = Path("a\0b")
        case "loop":
            path.symlink_to(path)
        case "long":
            path = tmp_path / ("x" * 5000)
    with pytest.raises(ContractError) as error:
        what_is(path)
    assert refused(error).count("allowed:") == 1


def test_an_adapter_in_a_model_s_folder_is_two_formats(tmp_path: Path) -> None:
    folder = make(Kind.PEFT, make(Kind.BASE_MODEL, tmp_path / "x"))
    with pytest.raises(ContractError, match="a PEFT adapter and a base model"):
        what_is(folder)
    assert what_is(folder / peft_config.CONFIG)[0] == Kind.PEFT
