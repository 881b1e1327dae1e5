"""Suites: tasks that a script of this package makes, the same bytes every time, held against the digest that a spec gives."""

from __future__ import annotations

from contract.errors import ContractError, brief
from parity.scorecard.spec import Spec
from parity.scorecard.task import Task, digest

NAMES = ("text_to_sql",)


def tasks_of(spec: Spec, source: str) -> tuple[Task, ...]:
    """A spec's tasks: those that it writes out, or those of the suite that it names.

    Raises:
        ContractError: both or neither, no such suite, more tasks than it has, or another digest than the spec gives.
    """
    if (spec.suite is None) == (not spec.tasks):
        got = "neither tasks nor a suite" if spec.suite is None else "tasks and a suite"
        raise ContractError(source, got=got, allowed="one of the two", remedy="give tasks, or suite")
    if spec.suite is None:
        return spec.tasks
    if spec.suite.name not in NAMES:
        raise ContractError(f"{source}: suite.name", got=brief(spec.suite.name), allowed=", ".join(NAMES), remedy="correct it")
    from parity.scorecard.suites import text_to_sql  # makes all of it when it is first asked

    tasks = text_to_sql.suite(spec.suite.tasks)
    found = digest(tasks)
    if spec.suite.sha256 is not None and spec.suite.sha256 != found:
        raise ContractError(
            f"{source}: suite.sha256", got=spec.suite.sha256, allowed=f"{found}, which the suite of this version has",
            remedy="score with the version that the spec was written for, or write the spec for this one",
        )  # fmt: skip
    return tasks


def training_of(name: str, pairs: int) -> bytes:
    """The training set of a suite, JSONL; no prompt and no answer of it is a task's.

    Raises:
        ContractError: no such suite, or not so many pairs.
    """
    if name not in NAMES:
        raise ContractError("--suite", got=brief(name), allowed=", ".join(NAMES), remedy="correct it")
    from parity.scorecard.suites import text_to_sql

    return text_to_sql.training(pairs)
