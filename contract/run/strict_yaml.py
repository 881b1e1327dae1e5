"""YAML that every reader takes the same way: the JSON schema's kinds of values in YAML 1.2's spelling, each with its line.

Built from the parser's events, so that nothing recurses. Tags, anchors, aliases, directives and a second document are refused.
Plain scalars are resolved as YAML 1.2.2, 10.3.2 (core schema) has it: `no` is a text, `2e-4` a number, `010` ten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from contract.errors import ContractError, brief
from contract.run.layer import MAX_DEPTH, MAX_FAULTS, Faults, Location, spot

if TYPE_CHECKING:
    from ruamel.yaml.scanner import Scanner

CONSTANTS = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# YAML 1.1 reads these as dates, YAML 1.2 as text: refused, unless quoted.
DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?", re.ASCII)
MAX_DIGITS = 64
MAX_VALUES = 2**15
"""In one text. The longest lists that a contract may hold have 4,096 entries; the parser takes ten seconds over a million."""
REFUSED = {
    "fetch_tag": "a tag (!...)",
    "fetch_anchor": "an anchor (&...)",
    "fetch_alias": "an alias (*...)",
    "fetch_directive": "a directive (%...)",
}
"""By the scanner's own names. A tag is refused before it is read, since the parser takes quadratic time over it."""


def resolved(text: str) -> Any:
    """A plain scalar's value: None, a bool, an int, a float or the text itself."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if FLOAT.fullmatch(text):
        return float(text.replace(".", "", 1) if text.lstrip("+-.")[0] in "iInN" else text)
    return text


@dataclass
class _Open:
    """A list or mapping whose end has not come yet."""

    value: dict[str, Any] | list[Any]
    location: Location
    key: str | None = None
    kept: bool = True
    """False: it stands under a key that was there before."""


class _Builder:
    def __init__(self, source: str, *, block: bool) -> None:
        self.source, self.block = source, block
        self.lines: dict[Location, int] = {}
        self.faults: Faults = {}
        self.root: Any = None
        self.open: list[_Open] = []
        self.documents = self.values = self.end = 0

    def take(self, event: Any) -> None:
        kind, line = type(event).__name__, event.start_mark.line + 1
        if not kind.startswith(("Document", "Stream")):
            self.end = event.end_mark.index
        if kind == "DocumentStartEvent":
            self.documents += 1
            if self.documents > 1:
                raise self.fault((), line, "a second document", "one document", "give one file for each contract")
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self.open.pop()
        elif kind in ("ScalarEvent", "MappingStartEvent", "SequenceStartEvent"):
            self.node(event, kind, line)

    def node(self, event: Any, kind: str, line: int) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise self.fault((), line, f"more than {MAX_VALUES:,} keys and values", f"{MAX_VALUES:,}", "give a contract's file")
        top = self.open[-1] if self.open else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            top.key = self.key(event, kind, line, top)
            return
        location = (*top.location, self._number_or_key(top)) if top else ()
        if len(location) > MAX_DEPTH:
            raise self.fault(location[:3], line, "values nested too deep", f"{MAX_DEPTH} levels", "correct it")
        if kind != "ScalarEvent" and not self.block and not event.flow_style:
            self.note(location, line, "a mapping or list over lines", "one value, {...} or [...]", "put quotes around a text")
        if kind == "ScalarEvent":
            self.place(top, location, line, self.scalar(event, location, line))
        else:
            value: dict[str, Any] | list[Any] = {} if kind == "MappingStartEvent" else []
            kept = self.place(top, location, line, value)
            self.open.append(_Open(value, location, kept=kept))

    def _number_or_key(self, top: _Open) -> str | int:
        if isinstance(top.value, list):
            return len(top.value)
        assert top.key is not None
        return top.key

    def key(self, event: Any, kind: str, line: int, top: _Open) -> str:
        if kind != "ScalarEvent":
            raise self.fault(top.location, line, "a key that is not plain text", "field names", "write the field's name")
        key: str = event.value
        if event.implicit[0]:
            location = (*top.location, key)
            if key == "<<":
                self.note(location, line, "a merge key (<<)", "fields written out", "write the fields themselves")
            elif (len(key) > MAX_DIGITS and INTEGER.fullmatch(key)) or not isinstance(resolved(key), str):
                self.note(location, line, f"the key {brief(key)}, which is no text", "field names", "put quotes around it")
        return key

    def place(self, top: _Open | None, location: Location, line: int, value: Any) -> bool:
        """Puts a value where it belongs; False where something stands there already."""
        if top is None:
            self.root = value
            self.lines[location] = line
            return True
        if isinstance(top.value, list):
            top.value.append(value)
        else:
            assert top.key is not None
            key, top.key = top.key, None
            if key in top.value:
                first = f", first in line {self.lines[location]}" if location in self.lines else ""
                self.note(location, line, f"{brief(key)} twice{first}", "each key once", "remove one")
                return False
            top.value[key] = value
        if top.kept:
            self.lines[location] = line
        return top.kept

    def scalar(self, event: Any, location: Location, line: int) -> Any:
        text: str = event.value
        if not event.implicit[0]:
            return text
        if DATE.fullmatch(text):
            self.note(location, line, f"the date {brief(text)}", "text, numbers, true, false, null", "put it in quotes if it is a text")
        if len(text) > MAX_DIGITS and INTEGER.fullmatch(text):
            self.note(location, line, f"a number of {len(text)} digits", "an integer of at most 64 bits", "correct it")
            return None
        return resolved(text)

    def note(self, location: Location, line: int, got: str, allowed: str, remedy: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.setdefault(location, self.fault(location, line, got, allowed, remedy))

    def fault(self, location: Location, line: int, got: str, allowed: str, remedy: str) -> ContractError:
        return ContractError(spot(self.source, location, line if self.block else None), got=got, allowed=allowed, remedy=remedy)


def parse(text: str, source: str, *, block: bool = True) -> tuple[Any, dict[Location, int], Faults]:
    """The value that YAML text holds (None where it's empty), its lines, and what was wrong with single values.

    Args:
        block: False takes a scalar or a flow value (`{...}`, `[...]`) only, as a flag gives it; its lines are not told.

    Raises:
        ContractError: it is no YAML, nested too deep, or has several documents, directives or keys that are no text.
    """
    builder = _Builder(source, block=block)
    for event in _events(text, source, block):
        builder.take(event)
    if not block and (rest := text[builder.end :].strip()):
        raise builder.fault((), 0, f"{brief(rest)} after the value", "a value alone", "put quotes around a text that has # in it")
    return builder.root, builder.lines if block else {}, builder.faults


def _events(text: str, source: str, block: bool) -> Iterator[Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    yaml.Scanner = _scanner()
    events = yaml.parse(text)
    remedy = "correct it" if block else "put quotes around a text that YAML reads otherwise"
    while True:
        try:
            event = next(events, None)
        except (YAMLError, ValueError) as error:  # ValueError: Python's own, of an escape that names no character
            mark = (error.problem_mark or error.context_mark) if isinstance(error, MarkedYAMLError) else None
            line = mark.line + 1 if mark is not None and block else None
            problem = " ".join(str(error.problem if isinstance(error, MarkedYAMLError) else error).split())
            got = problem if problem in REFUSED.values() else f"text that is no YAML ({problem[:200]})"
            raise ContractError(spot(source, (), line), got=got, allowed="plain YAML 1.2", remedy=remedy) from None
        if event is None:
            return
        yield event


@cache
def _scanner() -> type[Scanner]:
    """A scanner that refuses where they begin what would give a text a second meaning."""
    from ruamel.yaml.scanner import Scanner, ScannerError

    def refuse(what: str) -> Callable[[Scanner], NoReturn]:
        def fetch(scanner: Scanner) -> NoReturn:
            raise ScannerError(None, None, what, scanner.reader.get_mark())

        return fetch

    return type("StrictScanner", (Scanner,), {name: refuse(what) for name, what in REFUSED.items()})
