"""Python answers: compiled and called in one cage, tested from another. This process compares nothing and runs nothing of either."""

from __future__ import annotations

from typing import Any, cast

from parity.scorecard.sandbox.cage import Cage
from parity.scorecard.sandbox.launching import Method
from parity.scorecard.sandbox.limits import Limits
from parity.scorecard.sandbox.peer import Ended
from parity.scorecard.validators.judged import BrokenValidator, Judged
from parity.scorecard.validators.spec import PythonValidator

NO_REPLY = "it wrote on its pipe what is no reply"


def judge(validator: PythonValidator, answer: str, *, method: Method, limits: Limits) -> Judged:
    """Syntax: the answer compiles. Semantics: every test passes.

    Raises:
        BrokenValidator: the tests don't compile, don't load, or there are none.
        EnvironmentUnfit: no such cage can be made here.
    """
    with Cage("answer", method=method, limits=limits) as caged:
        caged.begin(answer, validator.entry)
        try:
            compiled = caged.receive()  # said before any of the answer's code has run
        except Ended as error:
            return Judged.failed(f"compiling: {error}", syntax=False)
        if compiled != {"compiled": True}:
            return Judged.failed(_words(compiled), syntax=False)
        try:
            loaded = caged.receive()
        except Ended as error:
            return Judged.failed(f"loading: {error}")
        if loaded != {"loaded": True}:
            return Judged.failed(f"loading: {_words(loaded)}")
        with Cage("tests", method=method, limits=limits) as tests:
            tests.begin(validator.tests, validator.entry)
            return _tested(caged, tests)


def _tested(caged: Cage, tests: Cage) -> Judged:
    """Carries calls to the answer and values to the tests, until these say how they came out."""
    while True:
        try:
            message = tests.receive()
        except Ended as error:
            return Judged.failed(f"its tests: {error}")
        if "error" in message:
            raise BrokenValidator(f"a python validator's tests don't load: {message['error']}; allowed: a module; mend them")
        if "outcomes" in message:
            return _verdict(message["outcomes"])
        if "call" in message:
            try:
                tests.peer.send(_reply(caged, message))
            except Ended as error:
                return Judged.failed(f"call {message['call']}: {error}")


def _reply(caged: Cage, request: dict[str, Any]) -> dict[str, Any]:
    """What the answer says to a call, cut down to what it may say."""
    caged.peer.send(request)
    reply = caged.receive()
    if reply.get("call") == request["call"]:
        if "returned" in reply:
            return {"returned": reply["returned"]}
        words = {key: reply[key] for key in ("raised", "message", "unfit") if isinstance(reply.get(key), str)}
        if words.keys() in ({"raised", "message"}, {"unfit"}):
            return words
    raise Ended(NO_REPLY)


def _words(reply: dict[str, Any]) -> str:
    error = reply.get("error")
    return error if isinstance(error, str) else NO_REPLY


def _verdict(outcomes: object) -> Judged:
    found = cast(list[tuple[str, str | None]], outcomes)
    if not found:
        raise BrokenValidator("a python validator has no test: got no function test_*; allowed: at least one; write one")
    failures = [f"{name}: {error}" for name, error in found if error is not None]
    return Judged.failed(*failures) if failures else Judged.passed()
