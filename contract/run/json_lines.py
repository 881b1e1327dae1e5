"""The lines of a JSON text's values."""

from __future__ import annotations

import json
import re

from contract.run.layer import Location

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],\n]|[^\s{}\[\]:,"]+')


def json_lines(text: str) -> dict[Location, int]:
    """Where each value of a text that is known to be JSON begins, counted from 1."""
    lines: dict[Location, int] = {}
    line = 1
    path: list[str | int | None] = []
    for match in TOKEN.finditer(text):
        token = match.group()
        if token == "\n":
            line += 1
        elif token in "]}":
            path.pop()
        elif token == ",":
            path[-1] = path[-1] + 1 if isinstance(path[-1], int) else None
        elif path and path[-1] is None:  # a key
            path[-1] = json.loads(token)
        else:
            lines[tuple(part for part in path if part is not None)] = line
            if token in "[{":
                path.append(0 if token == "[" else None)
    return lines
