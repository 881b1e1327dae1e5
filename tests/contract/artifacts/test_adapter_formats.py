"""The formats v2 and v3: what one writes the other holds, without loss; what is not sound is refused, with the place."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from contract.artifacts import v2, v3
from contract.artifacts.adapter import Adapter, Quant
from contract.artifacts.adapter_fields import TENSORS
from contract.artifacts.convert import convert
from contract.errors import ContractError, ContractErrors
from tests.contract.artifacts.adapter_cases import LLAMA, adapter_on, adapters, content, read_or_refused, refused

LINEARS = ("layers.0.q_proj", "layers.0.down_proj", "layers.1.q_proj")
SEED_META = {
    "format": "vox_mens_qlora_lora_only_v2", "version": 2, "embed_key": "wte.weight", "vocab": 13, "d_model": 6, "rank": 2, "alpha": 8,
    "layer_order": ["mid0", "lm_head"], "base_key_map": {"mid0": "h.0.attn.c_proj.weight", "lm_head": "wte.weight"}, "base_model": "gpt2",
}  # fmt: skip
SEED_MANIFEST = {
    "format": "vox_mens_adapter", "version": 3, "adapter_method": "qlora", "quant": {"base_quant": "nf4", "double_quant": True},
    "base_key_map": SEED_META["base_key_map"], "layer_order": ["mid0", "lm_head"], "vocab": 13, "d_model": 6, "rank": 2, "alpha": 8.0,
}  # fmt: skip
FORMATS = {"v2": (v2.META, SEED_META), "v3": (v3.MANIFEST, SEED_MANIFEST)}
READERS = {"v2": v2.read, "v3": v3.read}


def seed_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"mid0.lora_a": (2, 6), "mid0.lora_b": (6, 2), "lm_head.lora_a": (2, 6), "lm_head.lora_b": (13, 2)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_seed(folder: Path, which: str, **changed: Any) -> Path:
    """An adapter as the seed's programs wrote it, with a field changed, or removed (None)."""
    name, fields = FORMATS[which]
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({key: value for key, value in (dict(fields) | changed).items() if value != "REMOVED"}))
    save_file(seed_tensors(), folder / TENSORS)
    return folder


def full() -> Adapter:
    return adapter_on(
        LLAMA, LINEARS, ranks={LINEARS[0]: 2}, alphas={LINEARS[2]: 0.5}, rslora=True, method="qlora",
        quant=Quant(base_quant="nf4", double_quant=False, block_size=128), embed_key="model.embed_tokens.weight", base_model="a/b",
        allow_placeholder_attention_merge=True, adapter_tag="tag", notes=("one", "two"),
    )  # fmt: skip


@given(adapter=adapters())
def test_saved_then_loaded_is_the_same_adapter_and_v2_and_v3_convert_without_loss(adapter: Adapter) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        v2.write(folder / "two", adapter)
        assert v2.read(folder / "two") == adapter
        assert convert(folder / "two", folder / "three", "v3").lost == ()
        assert v3.read(folder / "three") == adapter
        assert convert(folder / "three", folder / "back", "v2").lost == ()
        assert content(folder / "back") == content(folder / "two")


def test_equality_sees_every_field_and_every_bit() -> None:
    one = full()
    changes: dict[str, Any] = {
        "layer_order": LINEARS[::-1], "rank": 4, "alpha": 7.5, "alpha_pattern": {}, "rslora": False, "method": "lora", "quant": None,
        "embed_key": "x", "vocab": 15, "d_model": 11, "base_model": None, "graph": None, "allow_placeholder_attention_merge": False,
        "adapter_tag": None, "notes": (), "places": dict.fromkeys(LINEARS, one.places[LINEARS[0]]),
        "matrices": one.matrices | {LINEARS[0]: (-one.matrices[LINEARS[0]][0], -one.matrices[LINEARS[0]][1])},
    }  # fmt: skip
    assert set(changes) == set(vars(one))
    assert full() == one
    for name, value in changes.items():
        assert Adapter(**(vars(one) | {name: value})) != one, name


@pytest.mark.parametrize("which", FORMATS)
def test_a_file_of_the_seed_s_fields_alone_is_read(tmp_path: Path, which: str) -> None:
    adapter = READERS[which](write_seed(tmp_path / "a", which))
    tensors = seed_tensors()
    assert adapter.layer_order == ("mid0", "lm_head")
    assert adapter.scale("mid0") == 4.0
    assert adapter.places["mid0"].transposed
    assert not adapter.places["lm_head"].transposed
    assert (adapter.vocab, adapter.d_model, adapter.method, adapter.rslora) == (13, 6, "qlora", False)
    np.testing.assert_array_equal(adapter.matrices["lm_head"][1], tensors["lm_head.lora_b"])
    assert adapter.quant == (Quant(base_quant="nf4", double_quant=True) if which == "v3" else None)
    assert not adapter.claims_full_attention_fidelity  # no file of the seed's says that it was trained on the full graph


@pytest.mark.parametrize("which", FORMATS)
def test_what_the_seed_can_say_is_written_in_its_fields_alone(tmp_path: Path, which: str) -> None:
    """So that the seed's own readers keep working: no later field, a whole alpha as an integer."""
    adapter = READERS[which](write_seed(tmp_path / "a", which))
    {"v2": v2.write, "v3": v3.write}[which](tmp_path / "b", adapter)
    name, fields = FORMATS[which]
    assert json.loads((tmp_path / "b" / name).read_text()) == fields
    assert isinstance(json.loads((tmp_path / "b" / name).read_text())["alpha"], int)
    assert load_file(tmp_path / "b" / TENSORS).keys() == seed_tensors().keys()


def test_v3_has_the_v2_description_beside_it_and_both_must_agree(tmp_path: Path) -> None:
    v3.write(tmp_path, full())
    assert v2.read(tmp_path) == v3.read(tmp_path) == full()
    meta = json.loads((tmp_path / v2.META).read_text())
    for name, value in (("alpha", 9), ("adapter_method", "lora"), ("embed_key", "other"), ("vocab", 15)):
        (tmp_path / v2.META).write_text(json.dumps(meta | {name: value}))
        with pytest.raises(ContractError, match=name) as error:
            v3.read(tmp_path)
        assert v2.META in refused(error)


def test_the_seed_s_v3_takes_from_a_v2_beside_it_what_it_can_t_say(tmp_path: Path) -> None:
    write_seed(write_seed(tmp_path / "a", "v3"), "v2")
    adapter = v3.read(tmp_path / "a")
    assert (adapter.embed_key, adapter.base_model) == ("wte.weight", "gpt2")
    assert adapter.quant == Quant(base_quant="nf4", double_quant=True)


def test_a_v3_that_does_not_know_the_base_s_quantisation_takes_it_from_a_v2_beside_it(tmp_path: Path) -> None:
    v3.write(tmp_path, Adapter(**(vars(full()) | {"quant": None})))
    meta = json.loads((tmp_path / v2.META).read_text())
    (tmp_path / v2.META).write_text(json.dumps(meta | {"quant": {"base_quant": "nf4"}}))
    assert v3.read(tmp_path).quant == Quant(base_quant="nf4")


def test_the_same_adapter_gives_the_same_bytes_and_only_these_files(tmp_path: Path) -> None:
    one = full()
    shuffled = Adapter(**(vars(one) | {name: dict(reversed(getattr(one, name).items())) for name in ("matrices", "places")}))
    v3.write(tmp_path / "a", one)
    v3.write(tmp_path / "b", shuffled)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert set(content(tmp_path / "a")) == {TENSORS, v2.META, v3.MANIFEST}


FAULTS: dict[str, dict[str, Any]] = {
    "format": {"format": "vox_mens_adapter_v9"},
    "version": {"version": 4},
    "version_true": {"version": True},
    "version_float": {"version": 2.0},
    "unknown": {"lora_dropout": 0.1},
    "missing": {"rank": "REMOVED"},
    "rank_text": {"rank": "2"},
    "rank_true": {"rank": True},
    "rank_zero": {"rank": 0},
    "rank_other": {"rank": 3},
    "alpha_zero": {"alpha": 0},
    "alpha_huge": {"alpha": 10**400},
    "alpha_text": {"alpha": "8"},
    "order_short": {"layer_order": ["mid0"]},
    "order_twice": {"layer_order": ["mid0", "mid0"]},
    "order_strange": {"layer_order": ["mid0", "mid1"]},
    "order_empty": {"layer_order": []},
    "key_missing": {"base_key_map": {"mid0": "x"}},
    "key_list": {"base_key_map": []},
    "key_extra": {"base_key_map": {"mid0": "a", "lm_head": "b", "mid1": "c"}},
    "key_path": {"base_key_map": {"mid0": "../../x", "lm_head": "b"}},
    "key_nul": {"base_key_map": {"mid0": "a\0", "lm_head": "b"}},
    "logical_path": {"base_key_map": {"../mid0": "a", "lm_head": "b"}},
    "offset_strange": {"base_offset": {"mid9": 1}},
    "offset_negative": {"base_offset": {"mid0": -1}},
    "pattern": {"rank_pattern": {"mid0": 1}},
    "pattern_strange": {"rank_pattern": {"mid9": 1}},
    "alpha_pattern_strange": {"alpha_pattern": {"mid9": 1}},
    "graph": {"graph": "other"},
    "notes_text": {"notes": "text"},
    "notes_lines": {"notes": ["a\nb"]},
    "vocab": {"vocab": -1},
    "quant": {"quant": {"base_quant": "int8"}},
}


@pytest.mark.parametrize("which", FORMATS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_description_that_is_not_sound_is_refused_with_its_place(tmp_path: Path, which: str, fault: str) -> None:
    write_seed(tmp_path / "a", which, **FAULTS[fault])
    with pytest.raises((ContractError, ContractErrors)) as error:
        READERS[which](tmp_path / "a")
    assert str(tmp_path / "a") in refused(error)


@pytest.mark.parametrize("which", FORMATS)
@pytest.mark.parametrize(
    "fault", ["missing", "extra", "rank", "mismatch", "float16", "vector", "empty", "nan", "infinity", "truncated", "no_file", "renamed"]
)
def test_tensors_that_are_not_sound_are_refused_by_name(tmp_path: Path, which: str, fault: str) -> None:
    write_seed(tmp_path, which)
    tensors, path = seed_tensors(), tmp_path / TENSORS
    a, b = "mid0.lora_a", "mid0.lora_b"
    match fault:
        case "missing":
            del tensors[b]
        case "extra":
            tensors["mid1.lora_a"] = tensors[a]
        case "renamed":  # catalogue: adapter-keys-silently-missing
            tensors = {f"base_model.{name}": tensor for name, tensor in tensors.items()}
        case "rank":
            tensors[a], tensors[b] = tensors[a][:1], np.ascontiguousarray(tensors[b][:, :1])
        case "mismatch":
            tensors[b] = np.ascontiguousarray(tensors[b][:, :1])
        case "float16":
            tensors[a] = tensors[a].astype(np.float16)
        case "vector":
            tensors[a] = tensors[a].reshape(-1)
        case "empty":
            tensors[b] = tensors[b][:0]
        case "nan":
            tensors[a][1, 2] = np.nan
        case "infinity":
            tensors[b][1, 1] = -np.inf
    save_file(tensors, path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    if fault == "no_file":
        path.unlink()
    with pytest.raises(ContractError) as error:
        READERS[which](tmp_path)
    message = refused(error)
    assert str(path) in message or str(tmp_path / FORMATS[which][0]) in message
    if fault not in ("truncated", "no_file", "renamed", "extra"):
        assert "mid0" in message


def test_duplicate_keys_and_other_json_that_is_no_description(tmp_path: Path) -> None:
    write_seed(tmp_path, "v2")
    for text in (
        '{"version": 2, "version": 2}', "[]", "", "{", "[" * 10000, '{"alpha": NaN}', '{"alpha": 1e999}', '{"a": "\\ud800"}', "\ufeff{}",
    ):  # fmt: skip
        (tmp_path / v2.META).write_text(text)
        with pytest.raises((ContractError, ContractErrors)) as error:
            v2.read(tmp_path)
        refused(error)
    (tmp_path / v2.META).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ContractError, match="UTF-8"):
        v2.read(tmp_path)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6,
)  # fmt: skip


@given(which=st.sampled_from(sorted(FORMATS)), data=st.data())
def test_any_value_in_any_field_is_read_or_refused(which: str, data: st.DataObject) -> None:
    """Near-valid descriptions: one field or two have any JSON value. Never another exception."""
    fields = FORMATS[which][1]
    changed = data.draw(st.dictionaries(st.sampled_from([*fields, "rank_pattern", "base_offset", "notes"]), _json, max_size=2))
    with tempfile.TemporaryDirectory() as folder:
        write_seed(Path(folder), which, **changed)
        read_or_refused(READERS[which], Path(folder))


@given(data=st.data())
def test_damaged_tensors_are_read_or_refused(data: st.DataObject) -> None:
    """Bytes changed or cut anywhere: refused, or (values alone changed) read."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_seed(Path(folder), "v2") / TENSORS
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
        read_or_refused(v2.read, Path(folder))


def test_a_base_that_is_not_known_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for missing, writers in (("vocab", (v2.write, v3.write)), ("d_model", (v2.write, v3.write)), ("embed_key", (v2.write,))):
        for write in writers:
            with pytest.raises(ContractError, match=f"{missing}.*--base"):
                write(tmp_path / "x", Adapter(**(vars(full()) | {missing: None})))
            assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": float("nan")}, {"alpha": 0.0}, {"rank": 0}, {"alpha_pattern": {"x": 1.0}}, {"layer_order": LINEARS[:2]}, {"places": {}},
        {"matrices": {}},
    ],
)  # fmt: skip
def test_no_adapter_in_memory_is_other_than_sound(changes: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        Adapter(**(vars(full()) | changes))
