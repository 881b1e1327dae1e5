"""Dialogues for tests: written out, and drawn."""

from __future__ import annotations

from hypothesis import strategies as st

from contract.data.row import Message, Row

PIECES = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_", "<", ">", "\n", " ", "  ", "user", "a", "b", "12"]


def row(*contents: str, system: str | None = None) -> Row:
    """A dialogue, the user's turn first."""
    first = (Message(role="system", content=system),) if system is not None else ()
    turns = (Message(role="assistant" if index % 2 else "user", content=text) for index, text in enumerate(contents))
    return Row(line=7, messages=(*first, *turns))


spelling = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=6).map("".join)
"""Text that often spells special tokens, and parts of them."""

ordinary = st.text(alphabet=st.one_of(st.sampled_from("ab .:\n1é🙂"), st.characters(codec="utf-8", exclude_characters="<")), max_size=12)
"""Text that never does: each of them begins with <, and hypothesis draws words that it finds in the project's own source."""


@st.composite
def rows(draw: st.DrawFn, contents: st.SearchStrategy[str] = spelling) -> Row:
    """One to three pairs of turns, with or without a system turn."""
    pairs = draw(st.lists(st.tuples(contents, contents), min_size=1, max_size=3), label="turns")
    return row(*(text for pair in pairs for text in pair), system=draw(st.none() | contents, label="system"))
