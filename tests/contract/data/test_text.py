"""Plain text and ChatML, character by character."""

from __future__ import annotations

from hypothesis import given

from contract.data.row import Row
from contract.data.text import chatml, plain
from tests.contract.data.drawn_dialogues import row, rows


def test_plain_is_system_prompt_and_response_on_lines() -> None:
    assert plain(row("p", "r", system="s")).text == "s\np\nr"
    assert plain(row("p", "r")).text == "p\nr"
    assert plain(row("p", "r", "q", "t", system="")).text == "\np\nr\nq\nt"


def test_chatml_is_the_seeds() -> None:
    whole = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    assert chatml(row("u", "a", system="s")).text == whole
    assert chatml(row("u", "a")).text == whole.removeprefix("<|im_start|>system\ns<|im_end|>\n")


def test_chatml_learns_each_answer_and_its_end_marker_and_nothing_else() -> None:
    text = chatml(row("Yes", "Yes", "Yes", "", system="Yes"))
    assert [text.text[start:end] for start, end in text.supervised] == ["Yes<|im_end|>", "<|im_end|>"]
    header = "<|im_start|>assistant\n"
    assert all(text.text[:start].endswith(header) for start, _ in text.supervised)


def test_only_plain_text_gets_the_tokenizers_own_tokens() -> None:
    assert plain(row("u", "a")).add_special_tokens
    assert not chatml(row("u", "a")).add_special_tokens


@given(drawn=rows())
def test_spans_hold_the_rows_own_text_in_order(drawn: Row) -> None:
    for render in (plain, chatml):
        text = render(drawn)
        assert text.line == 7
        assert [text.text[start:end] for start, end in text.data] == [message.content for message in drawn.messages if message.content]
        answers = [message.content for message in drawn.messages if message.role == "assistant"]
        learnt = [text.text[start:end] for start, end in text.supervised]
        if render is chatml:
            assert learnt == [f"{answer}<|im_end|>" for answer in answers]
        else:
            assert learnt == [answer for answer in answers if answer]
        assert list(text.supervised) == sorted(text.supervised)


@given(drawn=rows())
def test_parsing_special_tokens_changes_no_text_and_leaves_no_data(drawn: Row) -> None:
    for render in (plain, chatml):
        parsed = render(drawn, parse_special_tokens=True)
        assert parsed.data == ()
        assert (parsed.text, parsed.supervised) == (render(drawn).text, render(drawn).supervised)
