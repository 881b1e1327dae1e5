"""What runs in a cage: serves an answer's function, or runs tests that call it. One JSON object a line, both ways.

A script for `python -I -S -c`: it imports nothing of ours. Standard input brings messages and standard output takes them; the code that
it runs sees neither (its prints go to standard error). First comes {"limits", "source", "entry"}; then, of an answer,

    <- {"compiled": true} or {"compiled": false, "error"}       before any of its code has run
    <- {"loaded": true} or {"loaded": false, "error"}
    -> {"call": 1, "args": [...], "kwargs": {...}}
    <- {"call": 1, "returned": ...} or {"call": 1, "raised", "message"} or {"call": 1, "unfit"}

and of tests the same two, then calls the other way round, then {"outcomes": [[name, error or null], ...]}.
An answer has this process to itself once it runs, so anything that it says is only a value, right or wrong.
"""

from __future__ import annotations

import builtins
import json
import math
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

MAX_WORDS = 500
ALLOWED = "None, bool, int, float, str, and lists, tuples and dicts (whose keys are str) of them"

Message = dict[str, Any]


class AnswerFailed(BaseException):
    """The answer returned what no JSON value can be. No test can catch it as an Exception."""


class AnswerRaised(Exception):
    """The answer raised an exception of its own, or one that is none of Python's."""


def plain(value: object) -> object:
    """A copy of a value, of exactly JSON's kinds; a tuple becomes a list.

    Raises:
        TypeError: a type that JSON lacks, a subclass, NaN, an infinity.
        RecursionError: too deep.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if isinstance(value, float) and kind is float:
        if not math.isfinite(value):
            raise TypeError(f"got {value}; allowed: {ALLOWED}, without NaN and infinities")
        return value
    if isinstance(value, list | tuple) and kind in (list, tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict) and kind is dict and all(type(key) is str for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"got a value of type {kind.__name__}; allowed: {ALLOWED}")


def described(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, SyntaxError) and error.msg:
        where = f" (line {error.lineno})" if error.lineno else ""
        return f"{type(error).__name__}: {error.msg[:MAX_WORDS]}{where}"
    words = str(error)[:MAX_WORDS]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


class Pipe:
    """The two ends of this process's standard input and output, taken away from what it runs."""

    def __init__(self) -> None:
        self._requests = os.fdopen(os.dup(0), "rb")
        self._answers = os.dup(1)
        reading, writing = os.pipe()
        os.dup2(reading, 0)
        os.dup2(2, 1)
        os.close(reading)
        os.close(writing)

    def hear(self) -> Message:
        """The next message. Ends the process where there is no more."""
        line = self._requests.readline()
        if not line:
            os._exit(0)
        message: Message = json.loads(line)
        return message

    def tell(self, message: Message) -> None:
        """Sends a message."""
        left = json.dumps(message).encode() + b"\n"
        while left:
            left = left[os.write(self._answers, left) :]


def load(pipe: Pipe, first: Message, namespace: dict[str, Any]) -> bool:
    """Compiles and runs the source in a namespace, and says how that went."""
    try:
        code = compile(first["source"], "<answer>", "exec", dont_inherit=True)
    except BaseException as error:
        pipe.tell({"compiled": False, "error": described(error)})
        return False
    pipe.tell({"compiled": True})
    try:
        exec(code, namespace)
    except BaseException as error:
        pipe.tell({"loaded": False, "error": described(error)})
        return False
    return True


def serve(pipe: Pipe, first: Message) -> None:
    """Answers calls until the pipe ends."""
    namespace: dict[str, Any] = {"__name__": "answer"}
    if not load(pipe, first, namespace):
        return
    function = namespace.get(first["entry"])
    if not callable(function):
        pipe.tell({"loaded": False, "error": f"it defines no function {first['entry']}"})
        return
    pipe.tell({"loaded": True})
    while True:
        request = pipe.hear()
        pipe.tell({"call": request["call"], **_called(function, request)})


def _called(function: Callable[..., object], request: Message) -> Message:
    try:
        value = function(*request["args"], **request["kwargs"])
    except BaseException as error:
        return {"raised": type(error).__name__, "message": str(error)[:MAX_WORDS]}
    try:
        json.dumps(found := plain(value))  # an integer of over 4,300 digits has no spelling
        return {"returned": found}
    except (TypeError, ValueError, RecursionError) as error:
        return {"unfit": str(error)[:MAX_WORDS]}


def run_tests(pipe: Pipe, first: Message) -> None:
    """Runs each function test_* once, in the order of the source."""
    calls, loaded = 0, False

    def entry(*args: object, **kwargs: object) -> object:
        nonlocal calls
        if not loaded:
            raise RuntimeError("only a function test_* may call the answer")
        calls += 1
        pipe.tell({"call": calls, "args": plain(args), "kwargs": plain(kwargs)})
        return _returned(pipe.hear())

    namespace: dict[str, Any] = {"__name__": "tests", first["entry"]: entry}
    if not load(pipe, first, namespace):
        return
    loaded = True
    pipe.tell({"loaded": True})
    tests = [(name, test) for name, test in namespace.items() if name.startswith("test_") and callable(test)]
    pipe.tell({"outcomes": [[name, _outcome(test)] for name, test in tests]})


def _returned(reply: Message) -> object:
    if "returned" in reply:
        return reply["returned"]
    if "unfit" in reply:
        raise AnswerFailed(reply["unfit"])
    kind = getattr(builtins, reply["raised"], None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            raised = kind(reply["message"])
        except TypeError:  # one whose constructor takes more, such as UnicodeDecodeError
            raised = AnswerRaised(f"{reply['raised']}: {reply['message']}")
        raise raised
    raise AnswerRaised(f"{reply['raised']}: {reply['message']}")


def _outcome(test: Callable[[], object]) -> str | None:
    try:
        test()
    except BaseException as error:
        return described(error)
    return None


def main(role: str) -> None:
    """Sets this process's limits, and does what its role asks."""
    pipe = Pipe()
    first = pipe.hear()
    for name, limit in first["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    (run_tests if role == "tests" else serve)(pipe, first)


if __name__ == "__main__":
    main(sys.argv[1])
