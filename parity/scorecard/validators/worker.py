"""Judges SQL and JSON in a process of its own: `python -m parity.scorecard.validators.worker MEMORY`. One JSON object a line, both ways.

It says {"ready": true} once; to {"validator", "answer"} it says {"syntax", "semantics", "errors"}, or {"broken": words}.
"""

from __future__ import annotations

import resource
import sys

from pydantic import TypeAdapter

from parity.scorecard.sandbox.inside import Message, Pipe
from parity.scorecard.validators import json_document, sql
from parity.scorecard.validators.judged import BrokenValidator, Judged
from parity.scorecard.validators.spec import JsonValidator, SqlValidator


def judged(validator: JsonValidator | SqlValidator, answer: str) -> Judged:
    """By the validator's kind.

    Raises:
        BrokenValidator: the validator itself is wrong.
    """
    if isinstance(validator, SqlValidator):
        return sql.judge(validator, answer)
    return json_document.judge(validator, answer)


def main(memory: int) -> None:
    """Serves until the pipe ends."""
    pipe = Pipe()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    models: TypeAdapter[JsonValidator | SqlValidator] = TypeAdapter(JsonValidator | SqlValidator)
    pipe.tell({"ready": True})
    while True:
        request: Message = pipe.hear()
        try:
            found = judged(models.validate_python(request["validator"]), request["answer"])
        except BrokenValidator as error:
            pipe.tell({"broken": str(error)})
        except (MemoryError, RecursionError) as error:
            pipe.tell({"syntax": False, "semantics": False, "errors": [f"judging: {type(error).__name__}"]})
        else:
            pipe.tell({"syntax": found.syntax, "semantics": found.semantics, "errors": list(found.errors)})


if __name__ == "__main__":
    main(int(sys.argv[1]))
