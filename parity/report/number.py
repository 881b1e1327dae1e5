"""Numbers of a record."""

from __future__ import annotations

from typing import Annotated

from pydantic import WithJsonSchema

Number = Annotated[float, WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["Infinity", "-Infinity", "NaN"]}]})]
"""A float that may be no JSON number; such a one is written as a string."""
