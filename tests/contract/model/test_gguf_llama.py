"""A tiny model, written block by block here, comes out bit for bit; what is not understood is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from contract.errors import UserError
from contract.model import gguf_llama
from tests.contract.model.tiny_llama import HEAD, HEADS, HIDDEN, KEY_VALUE_HEADS, TEMPLATE, Tiny, interleave, vocabulary, write_gguf


@pytest.fixture(scope="module")
def converted(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    got = gguf_llama.convert(tiny.gguf, folder)
    assert got == hashlib.sha256((folder / gguf_llama.WEIGHTS_FILE).read_bytes()).hexdigest()
    return folder


def test_weights_come_out_bit_for_bit_in_published_order(tiny: Tiny, converted: Path) -> None:
    with safe_open(converted / gguf_llama.WEIGHTS_FILE, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(tiny.weights)
        for name, weight in tiny.weights.items():
            got = file.get_tensor(name)
            assert got.dtype == np.float32
            assert got.tobytes() == weight.tobytes(), name


def test_bytes_are_those_of_the_safetensors_library(tiny: Tiny, converted: Path) -> None:
    got = hashlib.sha256((converted / gguf_llama.WEIGHTS_FILE).read_bytes()).hexdigest()
    assert got == tiny.known.weights_sha256


def test_conversion_is_deterministic_and_reports_progress(tiny: Tiny, converted: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    gguf_llama.convert(tiny.gguf, tmp_path, progress=lambda done, total: calls.append((done, total)))
    for file in converted.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
    assert calls[-1][0] == calls[-1][1] == sum(weight.nbytes for weight in tiny.weights.values())
    assert calls == sorted(calls)


@pytest.mark.parametrize("heads", [HEADS, KEY_VALUE_HEADS, 1])
def test_unpermute_undoes_llama_cpps_order(heads: int) -> None:
    weight = np.random.default_rng(3).standard_normal((heads * HEAD, HIDDEN)).astype(np.float32)
    permuted = interleave(weight, heads)
    assert not np.array_equal(permuted, weight)
    assert np.array_equal(gguf_llama.unpermute(permuted, heads), weight)


def test_config_has_every_field_of_the_metadata(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    expected = {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 320, "vocab_size": len(vocabulary()),
        "rope_theta": 12345.0, "rms_norm_eps": 3e-05, "tie_word_embeddings": True, "torch_dtype": "float32",
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    generation = json.loads((converted / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 0)


def test_tokenizer_merges_splits_digits_and_knows_special_tokens(converted: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    assert tokenizer.encode("hello  12<|im_end|><user>").tokens == ["hell", "o", "ĠĠ", "1", "2", "<|im_end|>", "<user>"]
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(vocabulary())}
    assert tokenizer.decode(tokenizer.encode("né 🙂<|im_end|>").ids) == "né 🙂"
    configuration = json.loads((converted / "tokenizer_config.json").read_text())
    assert configuration["chat_template"] == TEMPLATE
    assert [configuration[f"{name}_token"] for name in ("bos", "eos", "pad")] == ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    assert configuration["model_max_length"] == 320


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "qwen2"}, r"'qwen2'; only llama"),
        ({"pre": "llama-bpe"}, r"gpt2/llama-bpe is not understood; allowed: gpt2 with smollm"),
        ({"last": "rope_freqs.weight"}, r"'rope_freqs.weight' is not understood"),
    ],
)
def test_what_is_not_understood_is_refused(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", **changed)
    with pytest.raises(UserError, match=message):
        gguf_llama.convert(tmp_path / "other.gguf", tmp_path / "out")
