"""PEFT's format, without PEFT: what is honoured, what is refused by name, what it can't hold. PEFT's own word: test_peft_witness.py."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.numpy import load_file, save_file

from contract.artifacts import peft, peft_config
from contract.artifacts.adapter import Adapter, Place, Quant
from contract.artifacts.convert import convert, read_source
from contract.artifacts.peft_config import HONOURED, NO_EFFECT, ONLY, of_module
from contract.errors import ContractError, ContractErrors
from tests.contract.artifacts.adapter_cases import (
    DTYPES,
    GPT2,
    LLAMA,
    adapter_on,
    content,
    gpt2_tensors,
    llama_tensors,
    read_or_refused,
    refused,
    write_base,
)

LINEARS = ("layers.0.q_proj", "layers.0.down_proj", "layers.1.q_proj", "lm_head")
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    shapes = {"lora_A": (2, 10), "lora_B": (24, 2)}
    return {
        f"base_model.model.{module}.{half}.weight": rng.standard_normal(shape).astype(np.float32)
        for module in MODULES
        for half, shape in shapes.items()
    }


def written(folder: Path, own: dict[str, np.ndarray] | None = None, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / peft_config.CONFIG).write_text(json.dumps(CONFIG | changed))
    save_file(tensors() if own is None else own, folder / peft.TENSORS)
    return folder


def test_every_field_of_peft_s_own_configuration_is_honoured_refused_or_known_to_change_nothing() -> None:
    """Enumerated from PEFT, so that a new field can't be forgotten; its defaults are all allowed."""
    fields = {one.name for one in dataclasses.fields(LoraConfig)}
    assert fields == {*HONOURED, *NO_EFFECT, *ONLY}
    assert not set(HONOURED) & NO_EFFECT
    assert not set(ONLY) & (NO_EFFECT | set(HONOURED))


def test_what_peft_itself_writes_of_its_configuration_is_read(tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], rank_pattern={"layers.0.q_proj": 2}, lora_dropout=0.1, use_rslora=True
    )
    config.save_pretrained(str(tmp_path))
    save_file(tensors(), tmp_path / peft.TENSORS)
    adapter, left_out = peft.read(tmp_path)
    assert adapter.rslora
    assert adapter.scale("layers.0.q_proj") == 8 / 2**0.5
    assert left_out == ()


@pytest.mark.parametrize(
    ("pattern", "module", "fits"),
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", True), ("proj", "model.layers.0.self_attn.q_proj", False),
        ("q_proj", "q_proj", True), ("_proj", "q_proj", False), ("0.self_attn.q_proj", "model.layers.0.self_attn.q_proj", True),
        ("0.self_attn.q_proj", "model.layers.10.self_attn.q_proj", False), ("q_proj", "model.q_proj.x", False),
        ("^model.q_proj", "model.q_proj", True), (r"layers\.0\.q_proj", "layers.0.q_proj", True),
    ],
)  # fmt: skip
def test_a_pattern_is_a_whole_name_or_its_end_after_a_dot_as_peft_has_it(pattern: str, module: str, fits: bool) -> None:
    assert of_module({pattern: 5}, module, 2) == (5 if fits else 2)
    assert get_pattern_key([pattern], module) == (pattern if fits else module)


REFUSED: dict[str, Any] = {
    "alora_invocation_tokens": [1], "arrow_config": {"top_k": 3}, "bias": "all", "ensure_weight_tying": True, "init_lora_weights": "pissa",
    "kasa_config": {}, "layer_replication": [[0, 2]], "lora_bias": True, "megatron_config": {}, "modules_to_save": ["lm_head"],
    "monteclora_config": {}, "target_parameters": ["x"], "trainable_token_indices": [1], "use_bdlora": {}, "use_dora": True,
    "use_qalora": True,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ONLY))
def test_a_field_that_changes_the_function_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ContractError, match=name) as error:
        peft.read(written(tmp_path, **{name: REFUSED[name]}))
    refused(error)
    for allowed in ONLY[name]:
        peft.read(written(tmp_path, **{name: allowed}))


@pytest.mark.parametrize(
    "changed",
    [
        {"peft_type": "IA3"}, {"r": 3}, {"r": 0}, {"r": True}, {"lora_alpha": 0}, {"lora_alpha": "8"}, {"lora_alpha": float("inf")},
        {"rank_pattern": {"q_proj": 3}}, {"rank_pattern": {"(a+)+$": 3}}, {"alpha_pattern": {"q_proj": -1}}, {"target_modules": []},
        {"target_modules": None}, {"target_modules": ["q_proj"]}, {"target_modules": ["q_proj", "down_proj", "v_proj"]},
        {"target_modules": ["proj", "down_proj"]}, {"new_in_peft_9": False}, {"base_model_name_or_path": "a\0b"}, {"use_rslora": 1},
        {"bias": False}, {"use_dora": 0},
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_go_with_the_tensors_or_is_not_sound(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises((ContractError, ContractErrors)) as error:
        peft.read(written(tmp_path, **changed))
    assert peft_config.CONFIG in refused(error)


@pytest.mark.parametrize("fault", ["missing", "extra", "embedding", "nan", "rank", "saved_layer", "float64", "renamed", "short_prefix"])
def test_tensors_that_peft_would_drop_or_leave_as_they_began_are_refused(tmp_path: Path, fault: str) -> None:
    """Catalogue: adapter-keys-silently-missing."""
    own = tensors()
    first = next(iter(own))
    match fault:
        case "missing":
            del own[first]
        case "extra":
            own["base_model.model.x.lora_A.weight"] = own[first]
        case "embedding":
            own["base_model.model.model.embed_tokens.lora_embedding_A"] = own[first]
        case "saved_layer":
            own["base_model.model.lm_head.base_layer.weight"] = own[first]
        case "nan":
            own[first][0, 0] = np.nan
        case "rank":
            own[first] = own[first][:1]
        case "float64":
            own[first] = own[first].astype(np.float64)
        case "renamed":
            own = {name.replace("lora_A", "lora_A.default"): tensor for name, tensor in own.items()}
        case "short_prefix":
            own = {name.replace("base_model.model.model.", "base_model.model."): tensor for name, tensor in own.items()}
            own[f"base_model.{first}"] = own[next(iter(own))]
    with pytest.raises(ContractError) as error:
        peft.read(written(tmp_path, own))
    refused(error)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_is_decoded_as_itself(tmp_path: Path, dtype: str) -> None:
    """Catalogue: adapter-bytes-misdecoded (bfloat16 0.01, read as float16, is 1.035, finite and free of NaN)."""
    own = {name: np.full(tensor.shape, 0.01, DTYPES[dtype]) for name, tensor in tensors().items()}
    adapter, _ = peft.read(written(tmp_path, own))
    for pair in adapter.matrices.values():
        for matrix in pair:
            assert matrix.dtype == np.float32
            assert np.array_equal(matrix, np.full(matrix.shape, np.array(0.01, DTYPES[dtype]).astype(np.float32)))


def test_patterns_mean_what_peft_means_by_them(tmp_path: Path) -> None:
    """The first one that fits the end of a module's name; layers.1 is not layers.11."""
    own = {}
    for layer, rank in ((1, 3), (2, 5), (11, 2)):
        own[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_A.weight"] = np.ones((rank, 10), np.float32)
        own[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_B.weight"] = np.ones((24, rank), np.float32)
    patterns = {r"^model\.layers\.1\.self_attn.q_proj": 3, "layers.2.self_attn.q_proj": 5, "q_proj": 2}
    written(tmp_path, own, rank_pattern=patterns, alpha_pattern={"2.self_attn.q_proj": 1.5}, target_modules="all-linear")
    adapter, left_out = peft.read(tmp_path)
    assert [adapter.rank_of(f"layers.{layer}.q_proj") for layer in (1, 2, 11)] == [3, 5, 2]
    assert [adapter.alpha_of(f"layers.{layer}.q_proj") for layer in (1, 2, 11)] == [8, 1.5, 8]
    assert adapter.layer_order == ("layers.1.q_proj", "layers.2.q_proj", "layers.11.q_proj")
    assert "target_modules" in left_out[0]


def peft_like(**more: Any) -> Adapter:
    """An adapter that PEFT's format holds without loss."""
    facts = {"graph": None, "vocab": None, "d_model": None, "base_model": "some/model"}
    return adapter_on(LLAMA, LINEARS, ranks={LINEARS[1]: 5}, alphas={LINEARS[2]: 0.5, LINEARS[1]: 3.0}, **(facts | more))


@pytest.mark.parametrize("rslora", [False, True])
def test_there_and_back_is_the_same_adapter(tmp_path: Path, rslora: bool) -> None:
    """Catalogue: rslora-scale-applied-twice: the matrices and the scale come back apart."""
    adapter = peft_like(rslora=rslora)
    assert peft.write(tmp_path / "a", adapter) == ()
    assert peft.read(tmp_path / "a") == (adapter, ())
    peft.write(tmp_path / "b", adapter)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_what_the_format_can_t_hold_is_told(tmp_path: Path) -> None:
    adapter = peft_like(
        graph="full_causal", vocab=14, d_model=10, embed_key="model.embed_tokens.weight", method="qlora", adapter_tag="t",
        quant=Quant(base_quant="nf4", double_quant=True), allow_placeholder_attention_merge=True, notes=("a note",),
    )  # fmt: skip
    lost = peft.write(tmp_path, Adapter(**(vars(adapter) | {"layer_order": LINEARS[::-1]})))
    fields = [line.partition(":")[0] for line in lost]
    assert fields == [
        "adapter_method", "quant", "embed_key", "vocab", "d_model", "graph", "allow_placeholder_attention_merge", "adapter_tag", "notes",
        "layer_order",
    ]  # fmt: skip
    assert "nf4" in lost[1]


def test_the_seed_s_names_become_ours_and_that_is_told(tmp_path: Path) -> None:
    adapter = adapter_on(GPT2, ("layers.0.o_proj", "lm_head"), embed_key="wte.weight")
    named = Adapter(
        **(
            vars(adapter)
            | {
                "matrices": {"mid0": adapter.matrices["layers.0.o_proj"], "lm_head": adapter.matrices["lm_head"]},
                "places": {"mid0": adapter.places["layers.0.o_proj"], "lm_head": Place(key="wte.weight")},
                "layer_order": ("mid0", "lm_head"),
            }
        )
    )
    lost = peft.write(tmp_path, named)
    assert any("mid0, which becomes layers.0.o_proj" in line for line in lost)
    names = {name.rpartition(".lora_")[0] for name in load_file(tmp_path / peft.TENSORS)}
    assert names == {"base_model.model.transformer.h.0.attn.c_proj", "base_model.model.lm_head"}
    assert json.loads((tmp_path / peft_config.CONFIG).read_text())["fan_in_fan_out"] is True


@given(
    parts=st.lists(st.sampled_from(["q_proj", "k_proj", "v_proj"]), min_size=1, max_size=3, unique=True), seed=st.integers(0, 2**32 - 1),
    rslora=st.booleans(), rank=st.integers(1, 4),
)  # fmt: skip
def test_parts_of_c_attn_become_one_lora_with_the_same_product(parts: list[str], seed: int, rslora: bool, rank: int) -> None:
    """Term by term: s B A of the whole has each part's product in its third, to the bit, and zeros elsewhere."""
    linears = tuple(f"layers.1.{part}" for part in parts)
    adapter = adapter_on(GPT2, linears, seed=seed, rslora=rslora, rank=rank, alpha=2.0 * rank)
    with tempfile.TemporaryDirectory() as name:
        try:
            peft.write(Path(name), adapter)
        except ContractError as error:
            message = str(error)
            assert rslora  # no alpha gives this scale at sqrt(rank): then it's refused
            assert "scale" in message
            return
        whole, _ = peft.read(Path(name))
    (logical,) = whole.matrices
    assert logical == "layers.1.c_attn"
    assert whole.scale(logical) == adapter.scale(linears[0])

    def product(a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
        total = np.zeros((len(b), a.shape[1]))
        for r in range(len(a)):
            total = total + b[:, r, None].astype(np.float64) * a[r].astype(np.float64)
        return scale * total

    wanted = np.zeros((18, 6))
    for part, linear in zip(parts, linears, strict=True):
        third = 6 * ("q_proj", "k_proj", "v_proj").index(part)
        wanted[third : third + 6] = product(*adapter.matrices[linear], adapter.scale(linear))
    np.testing.assert_array_equal(product(*whole.matrices[logical], whole.scale(logical)), wanted)


def test_parts_that_can_t_be_put_together_are_refused(tmp_path: Path) -> None:
    linears = ("layers.0.q_proj", "layers.0.v_proj")
    for adapter in (
        adapter_on(GPT2, linears, alphas={linears[0]: 1.0}),
        Adapter(**(vars(adapter_on(GPT2, linears)) | {"places": dict.fromkeys(linears, Place(key="h.0.attn.c_attn.weight", offset=6))})),
        Adapter(**(vars(adapter_on(GPT2, linears)) | {"places": dict.fromkeys(linears, Place(key="h.0.attn.c_attn.weight"))})),
        Adapter(**(vars(adapter_on(GPT2, linears)) | {"places": dict.fromkeys(linears, Place(key="h.0.other.weight", offset=0))})),
    ):
        with pytest.raises(ContractError) as error:
            peft.write(tmp_path / "x", adapter)
        refused(error)
        assert not (tmp_path / "x").exists()


def test_keys_that_peft_has_no_module_for(tmp_path: Path) -> None:
    adapter = adapter_on(LLAMA, LINEARS[:1])
    for key in ("model.layers.0.self_attn.q_proj.bias", "model.embed_tokens.weight"):
        with pytest.raises(ContractError, match="base_key_map"):
            peft.write(tmp_path / "x", Adapter(**(vars(adapter) | {"places": {LINEARS[0]: Place(key=key)}})))
        assert not (tmp_path / "x").exists()


def test_a_conversion_takes_from_the_base_what_peft_does_not_say(tmp_path: Path) -> None:
    peft.write(tmp_path / "a", peft_like())
    with pytest.raises(ContractError, match="--base"):
        convert(tmp_path / "a", tmp_path / "b", "v2")
    assert not (tmp_path / "b").exists()
    base = write_base(tmp_path / "base", llama_tensors(), LLAMA)
    assert convert(tmp_path / "a", tmp_path / "b", "v2", base=base).lost == ()
    got = read_source(tmp_path / "b").adapter
    assert (got.vocab, got.d_model, got.embed_key) == (14, 10, "model.embed_tokens.weight")
    other = write_base(tmp_path / "other", gpt2_tensors(), GPT2)
    with pytest.raises(ContractError, match="base_key_map"):
        convert(tmp_path / "a", tmp_path / "c", "v2", base=other)


_json = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.text(max_size=4), max_size=3)


@given(changed=st.dictionaries(st.sampled_from(sorted({*HONOURED, *ONLY, *NO_EFFECT, "strange"})), _json, max_size=2))
def test_any_value_in_any_field_of_the_configuration_is_read_or_refused(changed: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        read_or_refused(peft.read, written(Path(name), **changed))
