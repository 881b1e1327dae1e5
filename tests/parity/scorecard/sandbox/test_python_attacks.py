"""Hostile answers: each is a failure of its task alone."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity.scorecard.sandbox.cage import Cage
from parity.scorecard.sandbox.isolation import method
from parity.scorecard.sandbox.limits import Limits
from parity.scorecard.validators.judge import Judge
from parity.scorecard.validators.spec import PythonValidator
from tests.parity.scorecard.sandbox.python_attacks import ATTACKS, DEADLINE, PROBES, UNREADABLE, probing

TESTS = """\
def test_doubles():
    first = double(2)
    second = double(5)
    assert (first, second) == (4, 10)
"""
DOUBLES = PythonValidator(kind="python", entry="double", tests=TESTS)
HONEST = "def double(x):\n    return 2 * x\n"
SHORT = Limits(seconds=1.0, cpu_seconds=1)
"""For what ends at its deadline only. Nothing here asks that it got anywhere by then."""


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, object]]:
    """What the judge's side has, and an answer must not reach."""
    name = f"\0twostack-{id(object())}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(name)
        local.listen()
        yield {"HERE": str(Path(__file__).resolve()), "PORT": server.getsockname()[1], "NAME": name}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_fails_its_task_and_nothing_else(name: str) -> None:
    source, error = ATTACKS[name]
    with Judge(limits=SHORT if DEADLINE in error else None) as judge:
        judged = judge.validate(DOUBLES, source)
    assert not judged.semantics
    assert len(judged.errors) == 1
    assert re.search(error, judged.errors[0]), judged.errors
    assert judged.errors[0].isprintable()


REASONS = {
    "AssertionError", "BlockingIOError", "ConnectionRefusedError", "FileNotFoundError", "MemoryError", "OSError", "PermissionError",
    "RuntimeError", "ValueError", "gaierror",
}  # fmt: skip
"""Of a probe that is held. Not NameError, AttributeError or TypeError: those would be mistakes of this test."""


def test_a_cage_holds_every_probe(places: dict[str, object]) -> None:
    told = "".join(f"{key} = {value!r}\n" for key, value in places.items())
    with Cage("answer", method=method("required"), limits=Limits()) as cage:
        cage.begin(told + probing(), "attack")
        assert cage.receive() == {"compiled": True}
        assert cage.receive() == {"loaded": True}
        came_of_it = {name: _tried(cage, number, name) for number, name in enumerate(PROBES)}
    assert {name: reason for name, reason in came_of_it.items() if reason not in REASONS} == {}


def _tried(cage: Cage, number: int, name: str) -> object:
    cage.peer.send({"call": number, "args": [name], "kwargs": {}})
    return cage.receive().get("returned")


def test_these_probes_work_where_nothing_holds_them(places: dict[str, object]) -> None:
    """Those that harm nobody: so what holds them is the cage."""
    harmless = (
        "reads /etc/passwd", "reads its parent's environment", "reads the judge's files", "reads the judge's files by a relative path",
        "connects to the judge's machine", "connects to an abstract socket", "runs a shell",
    )  # fmt: skip
    told = "".join(f"{key} = {value!r}\n" for key, value in places.items())
    with Cage("answer", method="none", limits=Limits()) as cage:
        cage.begin(told + probing(), "attack")
        assert cage.receive() == {"compiled": True}
        assert cage.receive() == {"loaded": True}
        assert [_tried(cage, number, name) for number, name in enumerate(harmless)] == ["it worked"] * len(harmless)


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_does_not_compile_has_no_syntax(name: str) -> None:
    with Judge() as judge:
        judged = judge.validate(DOUBLES, UNREADABLE[name])
    assert not judged.syntax
    assert not judged.semantics
    assert judged.errors


def test_an_honest_answer_passes_after_attacks() -> None:
    with Judge() as judge:
        for name in ("kills everybody", "leaves a process of another session"):
            assert not judge.validate(DOUBLES, ATTACKS[name][0]).semantics
        assert judge.validate(DOUBLES, HONEST).semantics
