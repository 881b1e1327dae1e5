"""The form of an answer: is it bare code, is it whole, how much of its language does it use?

Canonical form: line ends as \\n, without a preface ("Here is ...:"), without a code fence (the first block, where there are several),
without white space at the ends of lines and around it all.

Read from the text alone, by patterns that take time in proportion to its length: nothing is parsed or run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Language = Literal["sql", "python", "json", "text"]

NEAR = 4
"""Characters by which a strict answer may differ from its canonical form."""
PLACEHOLDERS = ("todo", "tbd", "placeholder", "stub", "not implemented", "coming soon")

_PREFACE = re.compile(
    r"\s*(?:(?:sure|certainly|of course|okay|ok)\b[,.!]?\s*)?here(?:'s|’s| is| are)\b[^:\n]{0,200}(?::|\n|$)", re.IGNORECASE
)
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n`]*$", re.MULTILINE)
_PLACEHOLDERS = tuple(re.compile(rf"\b{re.escape(words)}\b", re.IGNORECASE) for words in PLACEHOLDERS)

_COMMENTS = {"sql": re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL), "python": re.compile(r"#[^\n]*")}
_STRINGS = {
    "sql": re.compile(r"'[^']*'"),
    "python": re.compile(r"'[^'\n]*'|\"[^\"\n]*\""),
}
"""Taken out first, so that a word in a text is no construct."""


def _kinds(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in patterns)


KINDS: dict[str, tuple[re.Pattern[str], ...]] = {
    "sql": _kinds(
        r"\bwhere\b", r"\bjoin\b", r"\bgroup\s+by\b", r"\bhaving\b", r"\border\s+by\b", r"\blimit\b", r"\bdistinct\b",
        r"\b(?:count|sum|avg|min|max)\s*\(", r"\(\s*select\b", r"\b(?:union|intersect|except)\b", r"\bcase\b", r"\bwith\b", r"\bover\s*\(",
    ),
    "python": _kinds(
        r"\bdef\b", r"\bclass\b", r"\breturn\b", r"\b(?:for|while)\b", r"\bif\b", r"\b(?:try|raise)\b", r"\bwith\b", r"\b(?:import|from)\b",
        r"\blambda\b", r"\S[ \t]for\b", r"[^=!<>:+\-*/%&|^]=[^=]", r"\w\s*\(",
    ),
    "json": _kinds(r"\{", r"\[", r'"', r"(?<![\w\"])-?\d", r"\b(?:true|false)\b", r"\bnull\b"),
    "text": _kinds(r"\w", r"\d", r"[.!?](?:\s|$)", r"\n[ \t]*\n", r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]", r"^#"),
}  # fmt: skip
"""Kinds of constructs of each language."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What an answer looks like.

    Attributes:
        canonical: it is its own canonical form.
        strict: no code fence, no preface, and within NEAR characters of its canonical form.
        placeholder_hits: how many of PLACEHOLDERS occur, as whole words, in any case.
        trivial: it has at most one line of code; blank lines and comments are none.
        richness: share of its language's kinds of constructs that it uses, 0 to 1.
        anti_stub: no placeholder, not trivial, and richer than a single kind of construct would make it.
    """

    canonical: bool
    strict: bool
    placeholder_hits: int
    trivial: bool
    richness: float
    anti_stub: bool


def canonical(answer: str) -> str:
    """An answer's canonical form. It is its own: canonical(canonical(x)) == canonical(x) where x has one block."""
    text = answer.replace("\r\n", "\n").replace("\r", "\n")
    preface = _PREFACE.match(text)
    text = _unfenced(text[preface.end() :] if preface else text)
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def quality(answer: str, language: Language) -> Form:
    """Measures an answer."""
    bare = canonical(answer)
    fenced, prefaced = _FENCE.search(answer) is not None, _PREFACE.match(answer) is not None
    hits = sum(pattern.search(answer) is not None for pattern in _PLACEHOLDERS)
    code = _COMMENTS[language].sub("", bare) if language in _COMMENTS else bare
    trivial = sum(bool(line.strip()) for line in code.split("\n")) <= 1
    constructs = _STRINGS[language].sub("''", code) if language in _STRINGS else code
    used = sum(pattern.search(constructs) is not None for pattern in KINDS[language])
    return Form(
        canonical=answer == bare,
        strict=not fenced and not prefaced and abs(len(answer) - len(bare)) <= NEAR,
        placeholder_hits=hits,
        trivial=trivial,
        richness=used / len(KINDS[language]),
        anti_stub=not hits and not trivial and used > 1,
    )


def _unfenced(text: str) -> str:
    """What is in the first fenced block; all of it where there is none. A fence that is never closed ends with the text."""
    opening = _FENCE.search(text)
    if opening is None:
        return text
    for closing in _FENCE.finditer(text, opening.end()):
        if closing[1].startswith(opening[1]):
            return text[opening.end() : closing.start()]
    return text[opening.end() :]
