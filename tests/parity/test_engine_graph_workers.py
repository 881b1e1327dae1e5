"""Workers that break in the middle of tier C or D: the design's exit codes, and the report says which tap; other checks run on."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from contract.worker.answers import Answer
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity.cells import Device
from parity.checks import registry, trajectory_case
from parity.checks.check import Case, Check, Question
from parity.checks.graph_packed import smaller
from parity.checks.trajectory_run import LLAMA
from parity.engine import Engine
from parity.profiles import Profile
from parity.report.record import Result, Status, exit_code
from tests.parity.graph_stack import small_case
from tests.parity.graph_worker import GraphWorker
from tests.parity.numpy_stack import Done
from tests.parity.trajectory_stack import CAPABILITIES

WORKER = Path(__file__).with_name("graph_worker.py")
HANGS_FOR = 3.0


@pytest.fixture(scope="module")
def steps() -> list[Case]:
    """A run's second and third step."""
    _, run = trajectory_case.opened_run(LLAMA, "float64")
    return list(islice(trajectory_case.steps_of(run), 1, 3))


def asking(check_id: str, cases: list[Case]) -> Check:
    """A check's precision in float64, on these cases alone."""
    check = next(check for check in registry.CHECKS if check.id == check_id)
    plans = tuple(plan for plan in check.plans if (plan.question, plan.dtype) == (Question.PRECISION, "float64"))
    others = dict.fromkeys(set(Question) - {Question.PRECISION}, "not the question here")
    return dataclasses.replace(
        check, plans=plans, not_applicable=others, cases=None, fixed_cases=lambda: iter(cases), fixed_count=len(cases), locate=None,
        few=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def graphs() -> list[Case]:
    """A small Llama on seven tokens, twice."""
    case = next(one for one in smaller(small_case(which=1), ()) if one.batch.ids.shape[1] < 8)
    return [case, dataclasses.replace(case, name="the same again", _made=case._made)]


@pytest.fixture(autouse=True)
def thresholds_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the next test: they do not hang on the device."""
    monkeypatch.setattr(Case, "forget", lambda self: None)


class Here:
    """The worker's stack without a process, which only those need that lose it."""

    def __init__(self, device: str) -> None:
        self.name, self.device, self._stack = "bad", device, GraphWorker(device)
        self.graph: str | None = None
        self.training: str | None = None
        self.busy: list[tuple[int, int]] = []

    def request(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> Answer:
        """As StackProcess.request."""
        return self.submit(request, values, tensors).result()

    def submit(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> Done:
        """Computes at once."""
        reply = getattr(self._stack, request)(**values, tensors=tensors)
        return Done(Answer(reply.values, reply.tensors, (0, 1)))


@contextlib.contextmanager
def stack(device: str) -> Iterator[Here | StackProcess]:
    """On a device that ends its process, a process."""
    if device not in ("DIES", "HANGS"):
        yield Here(device)
        return
    seconds = HANGS_FOR if device == "HANGS" else 60.0
    with StackProcess("bad", (sys.executable, str(WORKER)), device, request_seconds=seconds, start_seconds=60.0) as process:
        yield process


def results(device: str, graphs: list[Case], steps: list[Case]) -> dict[str, list[Result]]:
    """Of tier C and of tier D, and of tier C once more."""
    found: dict[str, list[Result]] = {}
    info = StackInfo(name="bad", command=("nothing",), capabilities=CAPABILITIES)
    with stack(device) as bad:
        engine = Engine(
            {"bad": cast(StackProcess, bad)}, {"bad": CAPABILITIES}, profile=Profile(examples=1), seed=1, rerun="--seed 1",
            statistical=100,
        )  # fmt: skip
        for tier, check in (
            ("C", asking("c.llama", graphs)),
            ("D", asking("d.trajectory", steps)),
            ("C after", asking("c.llama", graphs[:1])),
        ):
            devices = [Device(info=info, name="CPU", dtypes=frozenset({"float64"}))]
            cells = [cell for cell in matrix.matrix([check], devices) if cell.plan is not None]
            found[tier] = engine.run(check, cells)
    return found


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (
            "MISSING",
            {"C": r"answered layers\.0\.attention_norm as None, must be \(\(1, \d, ", "D": r"answered loss as None, must be \(\(\), "},
        ),
        ("EXTRA", {"C": r"answered stray as .*, must be None", "D": r"answered stray as .*, must be None"}),
        ("SHAPE", {"C": r"answered layers\.0\.attention_norm as \(\(1, \d, \d+, 1\)", "D": r"answered loss as \(\(1,\)"}),
        ("DTYPE", {"C": r"answered layers\.0\.attention_norm as .*float16", "D": r"answered loss as .*float16"}),
        ("DIES", {"C": r"the worker ended with exit code 7; its last words:\nno heap is left", "D": r"the worker ended with exit code 7"}),
        ("HANGS", {"C": r"took over 3 s to answer .*, and was killed", "D": r"took over 3 s to answer .*, and was killed"}),
    ],
)
def test_a_worker_that_breaks_is_exit_3_and_the_tap_is_named(
    device: str, said: dict[str, str], graphs: list[Case], steps: list[Case]
) -> None:
    found = results(device, graphs, steps)
    for tier in ("C", "D"):
        (result,) = found[tier]
        assert result.status is Status.ERROR
        assert re.search(said[tier], result.reason), result.reason
        assert exit_code((result,), ()) == 3
    assert [result.status for result in found["C after"]] == [Status.PASS]


def test_a_nan_is_exit_1_and_the_tap_is_named(graphs: list[Case], steps: list[Case]) -> None:
    found = results("NAN", graphs, steps)
    for tier, tap in (("C", "layers.0.attention_norm["), ("D", "loss")):
        (result,) = found[tier]
        assert result.status is Status.FAIL
        assert result.reason.startswith(tap), result.reason
        assert "got nan" in result.reason
        assert exit_code((result,), ()) == 1


def test_a_worker_that_is_right_passes(graphs: list[Case], steps: list[Case]) -> None:
    assert [result.status for tier in results("CPU", graphs, steps).values() for result in tier] == [Status.PASS] * 3
