"""Rows as text, ids and labels: what transformers and TRL make of the same rows (parity/goldens/text.json)."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from parity.checks import policy_files
from parity.checks.check import Answered, Case
from parity.checks.policy_case import UNSUPERVISED, PolicyCase, ShownRow, golden, steps_of
from parity.checks.trajectory_judges import ledger
from parity.judge.verdict import Comparison

Labelled = tuple[np.ndarray, np.ndarray]
"""A row's ids and labels, int64."""

_SIDES = {"keep_start": "right", "keep_end": "left"}
"""What TRL keeps -> on which side a contract truncates."""


@cache
def text() -> dict[str, Any]:
    """The golden file."""
    return golden("text")


def source() -> str:
    """Who made it."""
    made_with = text()["made_with"]
    return f"what transformers {made_with['transformers']} and TRL {made_with['trl']} make of the same rows"


@dataclass(frozen=True, kw_only=True, eq=False)
class TextCase(PolicyCase):
    """A run over rows of which another program says what is learned.

    wanted: by the row's number in the file; None: there is nothing to learn. titles: of the rows.
    """

    wanted: Mapping[int, Labelled | None]
    titles: Sequence[str]


def count() -> int:
    """Runs of the golden file."""
    return len(text()["runs"])


def cases() -> Iterator[TextCase]:
    """Each run of the golden file: a template and a tokenizer, rows whole or truncated on one side."""
    for run in text()["runs"]:
        titles = [row["dialogue"] for row in run["rows"]]
        folder = tempfile.TemporaryDirectory(prefix="twostack-policy-")
        rows = [{"messages": text()["dialogues"][title]} for title in titles]
        template = None if run["setup"] in ("chatml", "last_k") else text()["templates"][run["setup"]]
        policy_files.write(Path(folder.name), rows, tokenizer=run["tokenizer"], template=template)
        yield TextCase(
            name=f"{run['setup']}, tokenizer {run['tokenizer']}, {run['keeps'] or 'whole rows'}", inputs={}, folder=folder,
            asked=(policy_files.asked(_contract(run, Path(folder.name))),), titles=titles,
            wanted={number: _wanted(row, run["setup"]) for number, row in enumerate(run["rows"])},
        )  # fmt: skip


def _contract(run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    last_k = run["setup"] == "last_k"
    exec_: dict[str, Any] = {"batch_size": 4, "grad_accum": 2, "epochs": 1, "ce_last_k": text()["k"]}
    exec_ |= {"seq_len": text()["seq_len"]} if run["keeps"] else {}
    data = {"template": "chatml" if run["setup"] == "chatml" or last_k else "tokenizer", "truncation": _SIDES.get(run["keeps"], "left")}
    return policy_files.contract(folder, objective="last_k" if last_k else "chatml_supervised", data=data, exec=exec_)


def _wanted(row: Mapping[str, Any], setup: str) -> Labelled | None:
    """Theirs, with what is other on purpose: no loss on the first token, which nothing predicts (TRL leaves that to the loss); and an end
    of sequence after a template that never ends a turn, which would teach a model not to stop."""
    if row["ids"] is None:
        return None
    ids = np.array(row["ids"], np.int64)
    labels = np.full_like(ids, UNSUPERVISED)
    for first, end in row["learned"]:
        labels[first:end] = ids[first:end]
    if setup == "bare":
        last = _end_of_sequence()
        ids, labels = np.append(ids, last), np.append(labels, last)
    labels[:1] = UNSUPERVISED
    return (ids, labels) if (labels != UNSUPERVISED).any() else None


def _end_of_sequence() -> int:
    """Of the tokenizer of the set-up `bare`: its one added token, the last."""
    content = golden("across/tokenizer")
    return int(content["added_tokens"][-1]["id"])


def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """The same rows, each once, with the same ids and the same labels."""
    assert isinstance(case, TextCase)
    steps = steps_of(answered[0].answers[0])
    shown = {row.sample: row for step in steps for row in step.rows()}
    skipped = sorted(row for step in steps for row in step.skipped)
    learned = sorted(row.sample for step in steps for row in step.rows())
    wanted = {number: labelled for number, labelled in case.wanted.items() if labelled is not None}
    nothing = [number for number, labelled in case.wanted.items() if labelled is None]
    return [
        ledger("rows to learn from", np.array(learned, np.int64), np.array(sorted(wanted), np.int64), source()),
        ledger("rows with nothing to learn", np.array(skipped, np.int64), np.array(nothing, np.int64), source()),
        *(_of_rows(part, at, shown, wanted, case.titles) for at, part in enumerate(("ids", "labels"))),
    ]


def _of_rows(
    part: str, at: int, shown: Mapping[int, ShownRow], wanted: Mapping[int, Labelled], titles: Sequence[str]
) -> Comparison:  # fmt: skip
    """One part of every row, one after the other; the first row that has another one is named."""
    nothing = np.zeros(0, np.int64)
    found = {number: getattr(shown[number], part) if number in shown else nothing for number in wanted}
    strange = [number for number, labelled in wanted.items() if not np.array_equal(found[number], labelled[at])]
    told = ledger(part, np.concatenate(list(found.values())), np.concatenate([one[at] for one in wanted.values()]), source())
    return dataclasses.replace(told, place=f"{part} of {titles[strange[0]]!r}") if strange else told
