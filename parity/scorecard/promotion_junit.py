"""A verdict as JUnit XML: a case a criterion."""

from __future__ import annotations

from pathlib import Path

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from contract.errors import printable
from contract.worker.files import replacing
from parity.scorecard.promotion_verdict import Verdict


def write(verdict: Verdict, path: Path) -> None:
    """Writes the report, whole or not at all. INVALID is an error, and HOLD a failure too: neither may look green."""
    suite = TestSuite("parity promote")
    decision = TestCase(verdict.decision, "promote.decision")
    if verdict.decision == "INVALID":
        decision.result = [Error(printable(reason), "INVALID") for reason in verdict.invalid]
    elif verdict.decision != "PROMOTE":
        decision.result = [Failure(printable(reason), verdict.decision) for reason in verdict.reasons]
    suite.add_testcase(decision)
    for one in verdict.measured:
        if one.margin is None:
            continue
        case = TestCase(printable(f"{one.scope} {one.metric}"), "promote.non_inferiority")
        if not one.passed:
            case.result = [Failure(f"the loss is {one.loss:+.4f}, at most {one.upper:+.4f}; allowed: below {one.margin}", "not shown")]
        suite.add_testcase(case)
    vetoes = TestCase("vetoes", "promote.veto")
    vetoes.result = [Failure(printable(veto), "veto") for veto in verdict.vetoes]
    suite.add_testcase(vetoes)
    report = JUnitXml("parity promote")
    report.add_testsuite(suite)
    report.update_statistics()
    with replacing(path) as file:
        file.write(report.tostring())
