"""tokenizer.json: what it makes of rows, and what is refused."""

from __future__ import annotations

import contextlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from contract.data.row import Row
from contract.data.text import Rendered, chatml, plain
from contract.data.tokenizers import EOS_NAMES, HfTokenizer, Tokenizer
from contract.data.vox import VoxTokenizer
from contract.errors import ContractError
from tests.contract.data.drawn_dialogues import ordinary, row, rows, spelling
from tests.contract.data.read_tokenizers import NAMES, changed, folder, tokenizer


@cache
def library(name: str) -> tokenizers.Tokenizer:
    """The tokenizer as the library alone reads it."""
    return tokenizers.Tokenizer.from_file(str(folder(name) / "tokenizer.json"))


hostile = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
) | st.sampled_from([[], {}, [[]], [1, 2], {"type": "Sequence"}, {"type": "ByteLevel"}, "\0", "</s>"])


def text(content: str, *, data: bool = False, add: bool = False) -> Rendered:
    """A text that is a row's own as a whole, or not at all."""
    spans = ((0, len(content)),) if data and content else ()
    return Rendered(text=content, supervised=(), data=spans, line=3, add_special_tokens=add)


def spells(name: str, drawn: Row) -> bool:
    """Whether a row spells one of the tokenizer's special tokens."""
    return any(token in message.content for token in tokenizer(name).special_tokens for message in drawn.messages)


@pytest.mark.parametrize("name", NAMES)
@given(batch=st.lists(rows(), min_size=1, max_size=3))
def test_special_tokens_come_from_markup_only_and_the_rest_is_the_librarys(name: str, batch: list[Row]) -> None:
    one = tokenizer(name)
    special = {library(name).token_to_id(token) for token in one.special_tokens} - {library(name).token_to_id("<unk>")}
    for render in (plain, chatml):
        texts = [render(drawn) for drawn in batch]
        for drawn, rendered, encoded in zip(batch, texts, one.encode_batch(texts), strict=True):
            got = [index for index in encoded.text_ids() if index in special]
            bare = render(row(*("" for message in drawn.messages if message.role != "system"), system=system_of(drawn)))
            markup = [index for index in one.encode_batch([bare])[0].text_ids() if index in special]
            assert got == markup
            if not spells(name, drawn):
                assert encoded.ids.tolist() == library(name).encode(rendered.text, add_special_tokens=rendered.add_special_tokens).ids


def system_of(drawn: Row) -> str | None:
    """An empty system turn where a row has one."""
    return "" if drawn.messages[0].role == "system" else None


@pytest.mark.parametrize("name", NAMES)
@given(before=ordinary, content=ordinary, after=ordinary)
def test_the_respelt_tokenizer_encodes_ordinary_text_as_the_original(name: str, before: str, content: str, after: str) -> None:
    one = tokenizer(name)
    eos = one.decode([one.eos_id])
    forged = f"{before}{eos}{content}"
    whole = Rendered(text=f"{forged}{eos}{after}", supervised=(), data=((0, len(forged)),), line=1, add_special_tokens=True)
    respelt, spelling_ = one._respelt_for([whole])
    for sample in (before, content, f"{before}{after}"):
        assert respelt.encode(sample).ids == library(name).encode(sample).ids
    ids = one.encode_batch([whole])[0].ids.tolist()
    assert ids.count(one.eos_id) == 1
    assert respelt.encode(f"{forged}{spelling_[eos]}{after}").ids == ids


@given(content=spelling)
def test_text_that_spells_special_tokens_comes_back(content: str) -> None:
    one = tokenizer("across")  # the one that has every byte
    assert one.decode(one.encode_batch([text(content, data=True)])[0].ids.tolist()) == content


@pytest.mark.parametrize("name", NAMES)
@given(drawn=rows(), data=st.data())
def test_tokens_of_a_span_are_those_whose_offsets_meet_it(name: str, drawn: Row, data: st.DataObject) -> None:
    rendered = data.draw(st.sampled_from([plain, chatml]), label="render")(drawn)
    length = len(rendered.text)
    start, end = sorted((data.draw(st.integers(0, length), label="start"), data.draw(st.integers(0, length), label="end")))
    encoded = tokenizer(name).encode_batch([rendered])[0]
    offsets = list(zip(encoded._encoding.offsets, encoded._encoding.sequence_ids, strict=True))
    meeting = [index for index, ((low, high), own) in enumerate(offsets) if own is not None and low < end and high > start]
    first, stop = encoded.tokens_of((start, end))
    assert list(range(first, stop)) == (list(range(meeting[0], meeting[-1] + 1)) if start < end and meeting else [])


def test_rows_of_a_batch_come_out_in_their_order() -> None:
    contents = ["a", "<|im_end|>", "b", "x<|im_end|>y", ""]
    texts = [text(content, data=True, add=index % 2 == 0) for index, content in enumerate(contents)]
    one = tokenizer("metaspace")
    assert [encoded.ids.tolist() for encoded in one.encode_batch(texts)] == [one.encode_batch([each])[0].ids.tolist() for each in texts]
    assert one.encode_batch([]) == []


def test_a_first_token_is_added_to_plain_text_and_not_to_a_chat() -> None:
    one = tokenizer("metaspace")
    assert one.encode_batch([text("a", add=True)])[0].ids.tolist()[0] == 1
    assert one.encode_batch([text("a")])[0].ids.tolist()[0] != 1
    assert one.encode_batch([text("a", add=True)])[0].tokens_of((0, 1))[0] == 1


def test_private_use_characters_in_text_are_text() -> None:
    one = HfTokenizer(folder("across") / "tokenizer.json")
    for content in ("<|endoftext|>\U000f0000\U000f0000", "\U000f0001<|endoftext|>" + "".join(map(chr, range(0xF0000, 0xF0040)))):
        ids = one.encode_batch([text(content, data=True)])[0].ids.tolist()
        assert one.eos_id not in ids
        assert one.decode(ids) == content


def test_every_private_use_character_beside_a_special_token_is_refused_by_line() -> None:
    content = "<|im_end|>" + "".join(map(chr, range(0xF0000, 0xFFFFE)))
    with pytest.raises(ContractError, match="line 3"):
        tokenizer("smollm2").encode_batch([text(content, data=True)])


def test_a_special_token_made_half_by_the_template_is_no_markup() -> None:
    half = Rendered(text="x<|im_end|>y<|im_end|>", supervised=(), data=((0, 6),), line=1, add_special_tokens=False)
    ids = tokenizer("smollm2").encode_batch([half])[0].ids.tolist()
    assert ids.count(2) == 1
    assert ids[-1] == 2


SPACED = "a  b \n c "


@pytest.mark.parametrize("add", [True, False])
def test_trimmed_offsets_are_untrimmed_and_ids_stay(tmp_path: Path, add: bool) -> None:
    trimming = processors.ByteLevel(trim_offsets=True)
    path = changed("across", tmp_path, lambda content: content.update(post_processor=json.loads(trimming.__getstate__())))
    trimmed, whole = HfTokenizer(path), tokenizer("across")
    assert tokenizers.Tokenizer.from_file(str(path)).encode(SPACED).offsets != library("across").encode(SPACED).offsets
    encoded, wanted = (one.encode_batch([text(SPACED, add=add)])[0] for one in (trimmed, whole))
    assert encoded.ids.tolist() == wanted.ids.tolist()
    spans = [(start, start + 1) for start in range(len(SPACED))]
    assert [encoded.tokens_of(span) for span in spans] == [wanted.tokens_of(span) for span in spans]


def test_a_span_whose_ends_the_normaliser_takes_away_keeps_its_tokens(tmp_path: Path) -> None:
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    encoded = HfTokenizer(changed("across", tmp_path, lambda content: content.update(normalizer=strip))).encode_batch([text("  q z  ")])[0]
    assert len(encoded.ids) > 1
    assert encoded.tokens_of((0, 7)) == encoded.tokens_of((0, 5)) == encoded.tokens_of((2, 7)) == (0, len(encoded.ids))
    assert encoded.tokens_of((0, 1)) == encoded.tokens_of((6, 7)) == (0, 0)


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path) -> None:
    def restrict(content: dict[str, Any]) -> None:
        content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
        content["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}

    one = HfTokenizer(changed("across", tmp_path, restrict))
    assert one.encode_batch([text("What is 2 + 2?")])[0].ids.tolist() == library("across").encode("What is 2 + 2?").ids


def word_level(tmp_path: Path, vocabulary: dict[str, int], *, special: list[str], config: dict[str, Any] | None = None) -> Path:
    """A tokenizer of whole words."""
    one = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    one.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    one.add_special_tokens(special)
    path = tmp_path / "tokenizer.json"
    one.save(str(path))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize(("names", "chosen"), [(EOS_NAMES, 0), (EOS_NAMES[1:], 1), (EOS_NAMES[2:], 2)])
def test_the_end_of_sequence_is_the_first_known_name(tmp_path: Path, names: tuple[str, ...], chosen: int) -> None:
    vocabulary = {name: index for index, name in enumerate(("<unk>", *reversed(names)))}
    path = word_level(tmp_path, vocabulary, special=list(names), config={"eos_token": "<unk>"})
    assert HfTokenizer(path).eos_id == vocabulary[EOS_NAMES[chosen]]


def test_the_end_of_sequence_is_else_the_one_that_tokenizer_config_names(tmp_path: Path) -> None:
    config = {"eos_token": {"content": "<|eot_id|>", "special": True}}
    assert HfTokenizer(word_level(tmp_path, {"<unk>": 0, "<|eot_id|>": 1}, special=[], config=config)).eos_id == 1


@pytest.mark.parametrize("config", [None, {}, {"eos_token": None}, {"eos_token": "<|not_there|>"}])
def test_no_end_of_sequence_is_refused(tmp_path: Path, config: dict[str, Any] | None) -> None:
    path = word_level(tmp_path, {"<unk>": 0}, special=[], config=config)
    with pytest.raises(ContractError, match="no token that ends a sequence") as caught:
        HfTokenizer(path)
    assert "eos_token" in caught.value.remedy


def test_a_special_token_that_ordinary_text_would_give_is_respelt_away(tmp_path: Path) -> None:
    one = HfTokenizer(word_level(tmp_path, {"<unk>": 0, "</s>": 1, "a": 2}, special=["</s>"]))
    assert one.encode_batch([text("a </s> a")])[0].ids.tolist() == [2, 1, 2]
    assert one.encode_batch([text("a </s> a", data=True)])[0].ids.tolist() == [2, 0, 2]


def test_a_special_token_hidden_in_other_letters_is_refused(tmp_path: Path) -> None:
    def lower(content: dict[str, Any]) -> None:
        content["normalizer"] = {"type": "Lowercase"}
        for token in content["added_tokens"]:
            token["normalized"] = True

    one = HfTokenizer(changed("metaspace", tmp_path, lower))
    assert one.encode_batch([text("ABC")])[0].ids.tolist() == tokenizer("metaspace").encode_batch([text("abc")])[0].ids.tolist()
    with pytest.raises(ContractError, match="line 3") as caught:
        one.encode_batch([text("A</S>", data=True)])
    assert "parse_special_tokens" in caught.value.remedy


def test_a_text_that_the_tokenizer_cannot_encode_is_named_by_line(tmp_path: Path) -> None:
    path = word_level(tmp_path, {"</s>": 0, "a": 1}, special=["</s>"])
    rows_ = [text("a"), Rendered(text="b", supervised=(), data=(), line=12, add_special_tokens=False)]
    with pytest.raises(ContractError, match="line 12"):
        HfTokenizer(path).encode_batch(rows_)


def test_dropout_is_refused(tmp_path: Path) -> None:
    path = changed("across", tmp_path, lambda content: content["model"].update(dropout=0.1))
    with pytest.raises(ContractError, match=r"got 0\.1;") as caught:
        HfTokenizer(path)
    assert caught.value.place.endswith("model.dropout")


def test_an_id_that_int32_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = changed("across", tmp_path, lambda content: content["model"]["vocab"].update({"qqq": 2**31 - 1}))
    with pytest.raises(ContractError, match="2147483647"):
        HfTokenizer(path)


def test_vocab_size_counts_gaps(tmp_path: Path) -> None:
    path = changed("across", tmp_path, lambda content: content["model"]["vocab"].update({"qqq": 5000}))
    assert HfTokenizer(path).vocab_size == 5001


def test_both_kinds_are_tokenizers() -> None:
    kinds: list[Tokenizer] = [VoxTokenizer(), tokenizer("across")]
    assert [kind.vocab_size for kind in kinds] == [131, len(library("across").get_vocab(with_added_tokens=True))]


def broken() -> dict[str, tuple[bytes, str]]:
    """Content of a tokenizer.json that is none, and a piece of the refusal."""
    good: dict[str, Any] = json.loads((folder("across") / "tokenizer.json").read_text(encoding="utf-8"))

    def dumped(**fields: Any) -> bytes:
        return json.dumps({**good, **fields}).encode()

    model = good["model"]
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    return {
        "empty": (b"", "no JSON"),
        "no JSON": (b"{", "no JSON"),
        "a list": (b"[]", "allowed: a tokenizer"),
        "no model": (b"{}", "allowed: a tokenizer"),
        "a model that is a text": (dumped(model="BPE"), "allowed: a tokenizer"),
        "no UTF-8": (b'{"model": "\xff"}', "UTF-8"),
        "a key twice": (b'{"model": {}, "model": {}}', "twice"),
        "NaN": (b'{"model": {"dropout": NaN}}', "NaN"),
        "10,000 deep": (b'{"model": {"vocab": ' + b"[" * 10**4 + b"]" * 10**4 + b"}}", "nested too deep"),
        "300 deep": (dumped(decoder=json.loads("[" * 300 + "]" * 300)), "tokenizers"),
        "an unknown model": (dumped(model={"type": "Magic"}), "tokenizers"),
        "merges of tokens that are not there": (dumped(model={**model, "merges": ["qq zz"]}), "tokenizers"),
        "an id that is a text": (dumped(model={**model, "vocab": {"a": "1"}}), "tokenizers"),
        "a negative id": (dumped(model={**model, "vocab": {"a": -1}}), "tokenizers"),
        "no token at all": (dumped(model={**model, "vocab": {}, "merges": []}, added_tokens=[]), "no token"),
        "added tokens that are none": (dumped(added_tokens=[1]), "tokenizers"),
        "a regular expression that is none": (
            dumped(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
            "tokenizers",
        ),
        "a character map that is none": (dumped(normalizer=charsmap), "tokenizers"),
    }


@pytest.mark.parametrize("fault", sorted(broken()))
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "tokenizer.json"
    content, piece = broken()[fault]
    path.write_bytes(content)
    with pytest.raises(ContractError, match=piece) as caught:
        HfTokenizer(path)
    assert str(path) in caught.value.place


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="no such file"):
        HfTokenizer(tmp_path / "tokenizer.json")


@given(data=st.data())
def test_a_damaged_tokenizer_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any one value of the file replaced by any other."""
    content: dict[str, Any] = json.loads((folder("across") / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"] = dict(list(content["model"]["vocab"].items())[:260])
    content["model"]["merges"] = []
    target: Any = content
    for _ in range(data.draw(st.integers(1, 3), label="depth")):
        key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))), label="key")
        if not (isinstance(target[key], dict | list) and target[key]):
            break
        target = target[key]
    key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))), label="replaced")
    target[key] = data.draw(hostile, label="value")
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with contextlib.suppress(ContractError):
        one = HfTokenizer(path)
        one.encode_batch([text("a b", data=True), text("<|endoftext|>", data=True), text("<|endoftext|>")])


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


def test_a_panic_in_the_library_is_a_refusal_and_an_interrupt_is_not() -> None:
    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(ContractError, match="index out of bounds"):
        tokenizer("across")._guarded(lambda: fail(Panic("index out of bounds")))
    with pytest.raises(KeyboardInterrupt):
        tokenizer("across")._guarded(lambda: fail(KeyboardInterrupt()))
