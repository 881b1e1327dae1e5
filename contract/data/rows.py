"""One line of a train file.

A row is an object of `prompt` and `response` (or their other names `instruction` and `output`) and, where wanted, `system`; or of
`messages`. `rating`, `category` and `difficulty` may stand beside either. A field that is null counts as absent, since exporters write
null for an empty cell. Text may be empty: an empty response teaches the model to end at once. `noted` says what was let through
and deserves a look: empty texts, and fields that are not read.
"""

from __future__ import annotations

from typing import Any, NoReturn

from contract.data.row import Message, Role, Row
from contract.errors import ContractError, brief
from contract.reading import json_of

MAX_LINE_BYTES = 2**20
"""A longer line is no row of a dialogue; without a limit one line without an end could take all memory."""

REMEDY = "correct the line, or leave such rows out with data.skip_bad_rows"

_PROMPT, _RESPONSE = ("prompt", "instruction"), ("response", "output")
_PAIR = frozenset((*_PROMPT, *_RESPONSE, "system"))
_KNOWN = _PAIR | {"messages", "rating", "category", "difficulty"}
_PART_OF_PROMPT = ("input", "context", "history")
"""Alpaca's, Dolly's and others' further parts of the prompt: a run that passed over them would train on questions cut short."""

_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


def parse(line: bytes, number: int, place: str) -> Row:
    """The row that a line holds.

    Args:
        line: with or without its line ending.
        number: counted from 1.
        place: the file's name, for messages.

    Raises:
        ContractError: the line is empty, too long, not UTF-8, no JSON or no row; its place is "PLACE:NUMBER".
    """
    return noted(line, number, place)[0]


def noted(line: bytes, number: int, place: str) -> tuple[Row, list[str]]:
    """The row that a line holds, and what about it deserves a look, such as "unknown field 'lane'".

    Raises:
        ContractError: as `parse`.
    """
    spot = f"{place}:{number}"
    fields = _object(line, spot)
    row = Row(
        line=number,
        messages=_dialogue(fields, spot) if "messages" in fields else _pair(fields, spot),
        rating=_rating(fields.get("rating"), spot),
        category=_text(fields["category"], f"{spot}: category") if "category" in fields else None,
        difficulty=_difficulty(fields.get("difficulty"), spot),
    )
    notes = [f"unknown field {brief(name)}" for name in sorted(fields.keys() - _KNOWN)]
    return row, notes + [f"empty {message.role} text" for message in row.messages if not message.content]


def _refuse(spot: str, got: str, allowed: str) -> NoReturn:
    raise ContractError(spot, got=got, allowed=allowed, remedy=REMEDY)


def _typed(value: object) -> str:
    return "null" if value is None else f"{brief(value)} ({type(value).__name__})"


def _object(line: bytes, spot: str) -> dict[str, Any]:
    content = line.removesuffix(b"\n").removesuffix(b"\r")
    if len(content) > MAX_LINE_BYTES:
        _refuse(spot, f"a line of more than {MAX_LINE_BYTES:,} bytes", f"{MAX_LINE_BYTES:,} bytes at most")
    if not content.strip():
        _refuse(spot, "an empty line", "one JSON object on each line")
    fields = json_of(content, spot, remedy=REMEDY)
    if not isinstance(fields, dict):
        _refuse(spot, _typed(fields), "one JSON object on each line")
    return {name: value for name, value in fields.items() if value is not None}


def _pair(fields: dict[str, Any], spot: str) -> tuple[Message, ...]:
    """The dialogue of a row of prompt and response."""
    for name in _PART_OF_PROMPT:
        if fields.get(name):
            _refuse(f"{spot}: {name}", brief(fields[name]), f"no {name!r}, whose text belongs into the prompt")
    system = (Message(role="system", content=_text(fields["system"], f"{spot}: system")),) if "system" in fields else ()
    return (
        *system,
        Message(role="user", content=_either(fields, _PROMPT, spot)),
        Message(role="assistant", content=_either(fields, _RESPONSE, spot)),
    )


def _either(fields: dict[str, Any], names: tuple[str, str], spot: str) -> str:
    """The text of a field that has two names."""
    there = [name for name in names if name in fields]
    if len(there) != 1:
        _refuse(spot, " and ".join(map(repr, there)) or f"no {names[0]!r}", f"{names[0]!r} or {names[1]!r}, one of them; or 'messages'")
    return _text(fields[there[0]], f"{spot}: {there[0]}")


def _text(value: object, spot: str) -> str:
    if not isinstance(value, str):
        _refuse(spot, _typed(value), "text")
    if "\0" in value:
        _refuse(spot, "text with NUL (\\u0000)", "text without NUL")
    return value


def _dialogue(fields: dict[str, Any], spot: str) -> tuple[Message, ...]:
    """The dialogue of a row of messages."""
    both = sorted(fields.keys() & _PAIR)
    if both:
        _refuse(spot, f"'messages' and {both[0]!r}", "'messages' alone, or 'prompt' and 'response'; a system text is the first message")
    turns = fields["messages"]
    if not isinstance(turns, list):
        _refuse(f"{spot}: messages", _typed(turns), "a list of messages")
    messages = tuple(_message(turn, f"{spot}: messages.{at}") for at, turn in enumerate(turns))
    roles = [message.role for message in messages]
    turn_roles = roles[roles[:1] == ["system"] :]
    if not turn_roles or len(turn_roles) % 2 or turn_roles != ["user", "assistant"] * (len(turn_roles) // 2):
        got = f"the roles {', '.join(roles[:8])}{', ...' if len(roles) > 8 else ''} ({len(roles)})" if roles else "no message"
        _refuse(f"{spot}: messages", got, "system at most once and first, then user and assistant in turn, assistant last")
    return messages


def _message(turn: object, spot: str) -> Message:
    if not isinstance(turn, dict):
        _refuse(spot, _typed(turn), "an object of role and content")
    others = sorted(name for name, value in turn.items() if name not in ("role", "content") and value is not None)
    if others:
        _refuse(spot, f"the field {brief(others[0])}", "role and content; no other field, which might change what is to be learned")
    role = turn.get("role")
    if not (isinstance(role, str) and role in _ROLES):
        _refuse(f"{spot}.role", brief(role), ", ".join(_ROLES))
    return Message(role=_ROLES[role], content=_text(turn.get("content"), f"{spot}.content"))


def _rating(value: object, spot: str) -> int | None:
    # A bool is an int to isinstance, and no rating.
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 5):
        return value
    _refuse(f"{spot}: rating", _typed(value), "a whole number, 1 to 5")


def _difficulty(value: object, spot: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)  # JSON's own numbers are finite: contract.reading refuses the others
        except OverflowError:
            pass
    _refuse(f"{spot}: difficulty", _typed(value), "a number that float64 holds")
