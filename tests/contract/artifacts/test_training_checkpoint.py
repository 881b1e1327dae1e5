"""A training checkpoint: what is saved is what is loaded, whole or not at all; what is not sound is refused."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from contract.artifacts import training_checkpoint
from contract.artifacts.adapter import Adapter
from contract.artifacts.training_checkpoint import STATE, TENSORS, Progress, TrainingCheckpoint, hash_fields
from contract.errors import ContractError, ContractErrors
from contract.worker.files import sha256_of
from tests.contract.artifacts.adapter_cases import LINEARS, adapters, checkpoint_of, content, read_or_refused, refused


def same(one: TrainingCheckpoint, two: TrainingCheckpoint) -> None:
    for name in ("adapter", "stack", "packages", "contract_digest", "base_sha256", "data", "progress", "updates", "seed"):
        assert getattr(one, name) == getattr(two, name), name
    for part in ("m", "v"):
        mine, theirs = getattr(one, part), getattr(two, part)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name].tobytes() == theirs[name].tobytes()
            assert mine[name].shape == theirs[name].shape


@given(adapter=adapters(), seed=st.integers(0, 2**32 - 1))
def test_saved_then_loaded_is_the_same(adapter: Adapter, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        wanted = checkpoint_of(adapter, seed)
        training_checkpoint.write(Path(name) / "c", wanted)
        same(training_checkpoint.read(Path(name) / "c"), wanted)


def test_the_same_checkpoint_gives_the_same_bytes_in_two_files_neither_a_pickle(tmp_path: Path) -> None:
    training_checkpoint.write(tmp_path / "a", checkpoint_of())
    training_checkpoint.write(tmp_path / "b", checkpoint_of())
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert set(content(tmp_path / "a")) == {STATE, TENSORS}
    names = set(load_file(tmp_path / "a" / TENSORS))
    assert names == {f"{part}.{linear}.lora_{half}" for part in ("adapter", "m", "v") for linear in LINEARS for half in "ab"}


def rewrite(state: Path, changed: dict[str, Any]) -> None:
    """With other values in some fields, and the hash of them."""
    value = json.loads(state.read_text()) | changed
    state.write_text(json.dumps(value | {"fields_sha256": hash_fields(value)}))


def test_any_other_digit_in_the_state_is_told(tmp_path: Path) -> None:
    """Each digit of training_checkpoint.json is changed once: none is taken for what was written."""
    training_checkpoint.write(tmp_path / "c", checkpoint_of())
    state = tmp_path / "c" / STATE
    text = state.read_text()
    digits = [place for place, letter in enumerate(text) if letter.isdigit()]
    assert len(digits) > 100
    for place in digits:
        state.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        with pytest.raises((ContractError, ContractErrors)) as error:
            training_checkpoint.read(tmp_path / "c")
        assert str(tmp_path / "c") in refused(error)
    state.write_text(text)
    same(training_checkpoint.read(tmp_path / "c"), checkpoint_of())


def test_a_tensor_s_file_that_was_changed_is_told_by_its_hash(tmp_path: Path) -> None:
    training_checkpoint.write(tmp_path / "c", checkpoint_of())
    path = tmp_path / "c" / TENSORS
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1  # still a finite float32
    path.write_bytes(raw)
    with pytest.raises(ContractError, match="SHA-256"):
        training_checkpoint.read(tmp_path / "c")


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "nan", "negative", "float16", "rank"])
def test_moments_that_are_not_the_adapter_s(tmp_path: Path, fault: str) -> None:
    """Though the hash is right."""
    training_checkpoint.write(tmp_path / "c", checkpoint_of())
    path, state = tmp_path / "c" / TENSORS, tmp_path / "c" / STATE
    tensors, name = load_file(path), f"v.{LINEARS[0]}.lora_a"
    match fault:
        case "missing":
            del tensors[name]
        case "extra":
            tensors["m.x.lora_a"] = tensors[name]
        case "shape":
            tensors[name] = tensors[name][:, :-1]
        case "nan":
            tensors[name][0, 0] = np.nan
        case "negative":
            tensors[name][0, 0] = -1e-9
        case "float16":
            tensors[name] = tensors[name].astype(np.float16)
        case "rank":
            for part in ("adapter", "m", "v"):
                for half in ("a", "b"):
                    own = f"{part}.{LINEARS[0]}.lora_{half}"
                    tensors[own] = np.ascontiguousarray(tensors[own][:1] if half == "a" else tensors[own][:, :1])
    save_file({own: np.ascontiguousarray(tensor) for own, tensor in tensors.items()}, path)
    rewrite(state, {"tensors_sha256": sha256_of(path)})
    with pytest.raises(ContractError) as error:
        training_checkpoint.read(tmp_path / "c")
    assert str(path) in refused(error)


def test_a_zero_in_v_is_sound(tmp_path: Path) -> None:
    """A's gradient is exactly zero while B is."""
    sound = checkpoint_of()
    still = replace(sound, v={name: np.zeros_like(it) for name, it in sound.v.items()})
    training_checkpoint.write(tmp_path / "c", still)
    assert not any(it.any() for it in training_checkpoint.read(tmp_path / "c").v.values())


def test_moments_are_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    sound = checkpoint_of()
    name = min(sound.m)
    for part, moments in (("m", {}), ("v", dict(sound.v) | {name: -sound.v[name]}), ("m", dict(sound.m) | {name: sound.m[name][:1]})):
        with pytest.raises(ContractError, match=name):
            training_checkpoint.write(tmp_path / "c", replace(sound, **{part: moments}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2}, {"version": True}, {"format": "x"}, {"seed": -1}, {"seed": 1.5}, {"tensors_sha256": "A" * 64}, {"packages": {}},
        {"progress": {"step": 1}}, {"progress": dict.fromkeys(Progress.model_fields, 0) | {"step": -1}}, {"updates": -1},
        {"data": {"a": "b"}}, {"unknown": 1}, {"stack": "../x"}, {"adapter": {}}, {"contract_digest": "0" * 63},
    ],
)  # fmt: skip
def test_a_state_that_is_not_sound(tmp_path: Path, changed: dict[str, Any]) -> None:
    training_checkpoint.write(tmp_path / "c", checkpoint_of())
    state = tmp_path / "c" / STATE
    rewrite(state, changed)
    with pytest.raises((ContractError, ContractErrors)) as error:
        training_checkpoint.read(tmp_path / "c")
    assert str(state) in refused(error)


_json = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.dictionaries(st.text(max_size=4), st.integers())
)
_FIELDS = (
    "format", "version", "stack", "packages", "contract_digest", "base_sha256", "data", "progress", "updates", "seed", "tensors_sha256",
    "adapter", "x",
)  # fmt: skip
"""But fields_sha256, which goes with them."""


@given(changed=st.dictionaries(st.sampled_from(_FIELDS), _json, max_size=2))
def test_any_value_in_any_field_is_read_or_refused(changed: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "c"
        training_checkpoint.write(folder, checkpoint_of())
        rewrite(folder / STATE, changed)
        read_or_refused(training_checkpoint.read, folder)


def test_a_checkpoint_is_replaced_by_force_alone_and_nothing_else_ever_is(tmp_path: Path) -> None:
    training_checkpoint.write(tmp_path / "c", checkpoint_of())
    with pytest.raises(ContractError):
        training_checkpoint.write(tmp_path / "c", checkpoint_of(seed=9))
    same(training_checkpoint.read(tmp_path / "c"), checkpoint_of())
    training_checkpoint.write(tmp_path / "c", checkpoint_of(seed=9), force=True)
    same(training_checkpoint.read(tmp_path / "c"), checkpoint_of(seed=9))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("mine")
    with pytest.raises(ContractError, match="something else"):
        training_checkpoint.write(tmp_path / "other", checkpoint_of(), force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "other"]
