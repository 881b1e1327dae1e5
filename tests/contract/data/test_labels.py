"""Labels: what is learnt, what truncation leaves, and what is skipped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.data.labels import Labelled, Skipped, Truncation, last_k, supervised
from contract.data.row import IGNORE_INDEX, Row
from contract.data.template import ChatTemplate
from contract.data.text import Rendered, chatml, plain
from contract.data.tokenizer_config import TokenizerConfig
from contract.data.tokenizers import Tokenizer
from contract.data.vox import VoxTokenizer
from tests.contract.data.drawn_dialogues import row, rows
from tests.contract.data.read_tokenizers import NAMES, tokenizer

VOX = VoxTokenizer()
WHOLE = 10**6


def one(tokenizer: Tokenizer, text: Rendered, *, seq_len: int = WHOLE, truncation: Truncation = "left") -> tuple[list[int], list[int]]:
    """The ids and labels of a row that is not skipped."""
    done = supervised(tokenizer, [text], samples=[5], seq_len=seq_len, truncation=truncation)
    assert not done.skipped
    return done.examples[0].ids.tolist(), done.examples[0].labels.tolist()


def learnt(tokenizer: Tokenizer, text: Rendered) -> str:
    """What is learnt, as text."""
    ids, labels = one(tokenizer, text)
    return tokenizer.decode([index for index, label in zip(ids, labels, strict=True) if label != IGNORE_INDEX])


@pytest.mark.parametrize("name", [*NAMES, "vox"])
@given(drawn=rows())
def test_labels_are_ids_or_nothing_and_the_end_is_learnt_once(name: str, drawn: Row) -> None:
    encoder: Tokenizer = VOX if name == "vox" else tokenizer(name)
    for text in (chatml(drawn), plain(drawn)):
        done = supervised(encoder, [text], samples=[5], seq_len=WHOLE)
        if done.skipped:
            assert done.skipped == (Skipped(sample=5, line=7, reason="no token to learn"),)
            continue
        (example,) = done.examples
        assert example.sample == 5
        assert example.ids.dtype == example.labels.dtype == np.int32
        assert example.ids.shape == example.labels.shape
        taken = example.labels != IGNORE_INDEX
        assert (example.labels[taken] == example.ids[taken]).all()
        assert not taken[0]
        assert example.ids[-1] == example.labels[-1] == encoder.eos_id
        assert example.ids[-2] != encoder.eos_id


def test_an_end_of_sequence_that_the_text_brings_is_not_doubled() -> None:
    smollm2 = tokenizer("smollm2")
    ids, labels = one(smollm2, chatml(row("a", "b")))
    assert ids[-2:] == [smollm2.encode_batch([plain(row("", "b"))])[0].ids[-1], 2]
    assert labels[-2:] == ids[-2:]
    ids, _ = one(smollm2, plain(row("a", "b<|im_end|>"), parse_special_tokens=True))
    assert ids.count(2) == 1
    ids, _ = one(smollm2, plain(row("a", "b<|im_end|>")))
    assert ids.count(2) == 1
    assert smollm2.decode(ids) == "a\nb<|im_end|><|im_end|>"


def test_a_tokenizer_without_chatmls_marks_gets_its_own_end_of_sequence() -> None:
    ids, labels = one(tokenizer("metaspace"), chatml(row("a", "b")))
    assert ids[-1] == labels[-1] == tokenizer("metaspace").eos_id
    assert learnt(tokenizer("metaspace"), chatml(row("a", "b"))).endswith("b<|im_end|></s>")


def test_a_template_that_ends_its_turn_gets_no_other_end() -> None:
    source = "{% for m in messages %}{{ m.content }}</s>\n{% endfor %}"
    config = TokenizerConfig(named={}, template=source, place="template")
    text = ChatTemplate(config, special_tokens=("</s>",)).render(row("a", "b"))
    ids, _ = one(tokenizer("metaspace"), text)
    assert ids.count(tokenizer("metaspace").eos_id) == 2
    assert ids[-1] != tokenizer("metaspace").eos_id


@given(drawn=rows())
def test_every_supervised_character_is_learnt_and_no_token_without_one(drawn: Row) -> None:
    across = tokenizer("across")
    for text in (chatml(drawn), plain(drawn)):
        (encoded,) = across.encode_batch([text])
        inside = np.zeros(len(text.text) + 1, bool)
        for start, end in text.supervised:
            inside[start:end] = True
        offsets = encoded._encoding.offsets
        wanted = [any(inside[low:high]) for low, high in offsets] + [True]
        wanted[0] = False
        done = supervised(across, [text], samples=[0], seq_len=WHOLE)
        assert (done.examples[0].labels != IGNORE_INDEX).tolist() == wanted


def test_a_token_across_a_border_is_learnt() -> None:
    across = tokenizer("across")
    joined = "".join(message.content for message in row("Answer", ": yes").messages)
    for border in range(1, len(joined)):
        text = Rendered(text=joined, supervised=((border, len(joined)),), data=(), line=1, add_special_tokens=False)
        ids, labels = one(across, text)
        first = next(index for index, label in enumerate(labels) if label != IGNORE_INDEX)
        before, through = across.decode(ids[:first]), across.decode(ids[: first + 1])
        assert len(before) <= border < len(through) or (first == 1 and len(through) > border)
    assert learnt(tokenizer("smollm2"), plain(row("Go on: ", "🙂"))).endswith("🙂<|im_end|>")


@given(drawn=rows(), seq_len=st.integers(1, 40))
def test_truncation_takes_labels_along_with_ids(drawn: Row, seq_len: int) -> None:
    for encoder in (VOX, tokenizer("metaspace")):
        for text in (chatml(drawn), plain(drawn)):
            ids, labels = one(encoder, text)
            sides: tuple[tuple[Truncation, slice], ...] = (("left", slice(-seq_len, None)), ("right", slice(seq_len)))
            for side, kept in sides:
                wanted = [IGNORE_INDEX, *labels[kept][1:]]
                done = supervised(encoder, [text], samples=[5], seq_len=seq_len, truncation=side)
                assert done.truncated == (len(ids) > seq_len)
                if set(wanted) == {IGNORE_INDEX}:
                    assert done == Labelled(
                        examples=(), skipped=(Skipped(sample=5, line=7, reason="truncated away"),), truncated=done.truncated
                    )
                else:
                    (example,) = done.examples
                    assert (example.ids.tolist(), example.labels.tolist()) == (ids[kept], wanted)


def test_a_row_that_just_fits_is_not_truncated() -> None:
    text = chatml(row("a", "b"))
    length = len(one(VOX, text)[0])
    counts = [supervised(VOX, [text], samples=[0], seq_len=length + more, truncation="left").truncated for more in (-1, 0, 1)]
    assert counts == [1, 0, 0]


def test_left_truncation_keeps_the_whole_answer_learnt() -> None:
    text = chatml(row("word " * 50, "short answer"))
    ids, labels = one(VOX, text, seq_len=20)
    answer = VOX.encode_batch([Rendered(text="short answer<|im_end|>", supervised=(), data=(), line=1, add_special_tokens=False)])[0]
    assert ids[-len(answer.ids) - 1 :] == labels[-len(answer.ids) - 1 :] == [*answer.ids.tolist(), VOX.eos_id]
    assert set(labels[: -len(answer.ids) - 1]) == {IGNORE_INDEX}


def test_right_truncation_puts_no_end_where_the_answer_goes_on() -> None:
    ids, labels = one(tokenizer("smollm2"), chatml(row("a", "word " * 50)), seq_len=20, truncation="right")
    assert len(ids) == 20
    assert labels[-1] == ids[-1] != tokenizer("smollm2").eos_id


def test_a_true_token_with_id_0_is_learnt() -> None:
    across = tokenizer("across")
    zero = across.decode([0])
    ids, labels = one(across, chatml(row("a", f"b{zero}{zero}c{zero}")))
    assert labels.count(0) == ids.count(0) == 3


def test_skipped_rows_are_counted_with_line_and_reason() -> None:
    nothing = Rendered(text="a", supervised=(), data=(), line=3, add_special_tokens=False, ended=True)
    done = supervised(VOX, [chatml(row("a", "b")), plain(row("a", "b")), nothing], samples=[10, 11, 12], seq_len=8, truncation="right")
    assert [example.sample for example in done.examples] == [11]
    assert done.skipped == (
        Skipped(sample=10, line=7, reason="truncated away"),
        Skipped(sample=12, line=3, reason="no token to learn"),
    )
    assert done.truncated == 1


@given(drawn=rows(), k=st.integers(1, 30), seq_len=st.integers(1, 30))
def test_last_k_learns_the_last_k_that_can_be_predicted(drawn: Row, k: int, seq_len: int) -> None:
    for encoder in (VOX, tokenizer("metaspace")):
        text = plain(drawn)
        ids = encoder.encode_batch([text])[0].ids[-seq_len:].tolist()
        count = min(k, len(ids) - 1)
        done = last_k(encoder, [text], samples=[5], seq_len=seq_len, k=k)
        if count < 1:
            assert [one.sample for one in done.skipped] == [5]
            assert done.examples == ()
        else:
            (example,) = done.examples
            assert example.ids.tolist() == ids
            assert example.labels.tolist() == [IGNORE_INDEX] * (len(ids) - count) + ids[-count:]


def test_last_k_appends_no_end_and_counts_rows_of_one_token() -> None:
    done = last_k(VOX, [plain(row("", "")), plain(row("a", "b"))], samples=[1, 2], seq_len=9, k=2)
    assert done.skipped == (Skipped(sample=1, line=7, reason="no token to learn"),)
    assert done.examples[0].labels.tolist() == [IGNORE_INDEX, 1, 69]


@pytest.mark.parametrize(("k", "seq_len"), [(0, 8), (-1, 8), (1, 0)])
def test_lengths_under_one_are_refused(k: int, seq_len: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        last_k(VOX, [plain(row("a", "b"))], samples=[0], seq_len=seq_len, k=k)


def test_the_order_of_rows_is_kept_and_no_row_changes_another() -> None:
    texts = [chatml(row("a" * size, "b" * (size % 3))) for size in range(6)]
    together = supervised(VOX, texts, samples=range(6), seq_len=60)
    apart = [supervised(VOX, [text], samples=[index], seq_len=60).examples[0] for index, text in enumerate(texts)]
    for ours, alone in zip(together.examples, apart, strict=True):
        assert ours.sample == alone.sample
        assert ours.ids.tolist() == alone.ids.tolist()
        assert ours.labels.tolist() == alone.labels.tolist()
