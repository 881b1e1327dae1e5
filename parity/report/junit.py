"""A run as JUnit XML: a suite a tier, a case a cell."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from contract.worker.files import replacing
from parity.report.record import Result, Run, Status

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0, section 2.2, can't hold: a worker's last words may be coloured."""


def write(run: Run, path: Path) -> None:
    """Writes the report, whole or not at all. Not covered is an error, since nothing that was skipped may look green."""
    report = JUnitXml("parity")
    for tier in sorted({*run.tiers, *(result.tier for result in run.results)}):
        suite = TestSuite(f"tier {tier}")
        for result in run.results:
            if result.tier == tier:
                suite.add_testcase(_case(result))
        report.add_testsuite(suite)
    if run.problems:
        suite = TestSuite("waivers")
        for problem in run.problems:
            case = TestCase(_printable(problem), "parity.waivers")
            case.result = [Failure(_printable(problem))]
            suite.add_testcase(case)
        report.add_testsuite(suite)
    report.update_statistics()
    with replacing(path) as file:
        file.write(report.tostring())


def _case(result: Result) -> TestCase:
    who = "+".join(f"{stack}@{device}" for stack, device in zip(result.stacks, result.device, strict=True))
    case = TestCase(f"{result.question} {result.dtype} {who}", f"parity.{result.id}", result.seconds)
    reason = _printable(result.reason)
    match result.status:
        case Status.FAIL:
            failure = Failure(reason, "divergence")
            replayed = f"parity replay {shlex.quote(result.reproducer)}" if result.reproducer else result.no_reproducer
            failure.text = _printable("\n\n".join(text for text in (replayed, result.snippet) if text))
            case.result = [failure]
        case Status.ERROR | Status.NOT_COVERED:
            case.result = [Error(reason, result.status)]
        case Status.NOT_APPLICABLE | Status.WAIVED | Status.UNCOVERED_ALLOWED | Status.LEFT_TO_NIGHTLY:
            case.result = [Skipped(reason)]
        case Status.PASS:
            pass
    return case


def _printable(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
