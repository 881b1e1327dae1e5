"""A verdict as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from contract.worker.files import replacing
from parity.scorecard.promotion_verdict import POOLED, Verdict


def write(verdict: Verdict, path: Path) -> None:
    """Writes the report, whole or not at all."""
    with replacing(path) as file:
        file.write(text(verdict).encode())


def text(verdict: Verdict) -> str:
    """The whole report."""
    parts = [f"# {verdict.decision}", "", *_bullets(verdict.reasons)]
    if verdict.binding is not None:
        binding = verdict.binding
        parts += ["", f"{binding.stack}: base {binding.base}, graph {binding.graph}, objective {binding.objective}, suite {binding.suite}."]
    if verdict.measured:
        parts += [
            "",
            "## Deltas",
            "",
            "candidate - baseline; bounds are those of the loss, with confidence 1 - alpha.",
            "",
            *_deltas(verdict),
        ]
    if verdict.flips:
        parts += ["", "## Flips", "", *_flips(verdict)]
    if verdict.families:
        parts += ["", "## Families", "", *_table(
            ("family", "loss in semantics", "p (Holm)"), [(one.family, f"{one.loss:+.4f}", f"{one.p:.3g}") for one in verdict.families]
        )]  # fmt: skip
    if verdict.control:
        parts += ["", "## A/A", "", *_table(
            ("metric", "difference", "p (Holm)"), [(one.metric, f"{one.loss:+.4f}", f"{one.p:.3g}") for one in verdict.control]
        )]  # fmt: skip
    if verdict.questions is not None:
        asked = verdict.questions
        parts += ["", "## Questions", "", *_bullets((
            f"Is the production lane at a plateau? {_yes(asked.plateau)}: {asked.plateau_why}.",
            f"Does the candidate win decisively? {_yes(asked.decisive)}: {asked.decisive_why}.",
        ))]  # fmt: skip
    evidence = [(name, digest) for name, digest in sorted(verdict.evidence.items())]
    parts += ["", "## Evidence", "", *_table(("file", "SHA-256"), [*evidence, ("the rule", verdict.rule_sha256)])]
    return "\n".join(parts) + "\n"


def _deltas(verdict: Verdict) -> list[str]:
    rows = []
    for one in verdict.measured:
        delta = f"{one.delta:+.2%}" if one.relative else f"{one.delta:+.4f}"
        passed = "-" if one.passed is None else _yes(one.passed)
        margin = "-" if one.margin is None else f"{one.margin}"
        rows.append((
            one.scope if one.scope != POOLED else "all", one.metric, f"{one.baseline:.4f}", f"{one.candidate:.4f}", delta,
            f"{one.lower:+.4f}", f"{one.upper:+.4f}", margin, passed, f"{one.minimum_detectable:.4f}",
        ))  # fmt: skip
    heads = ("cycle", "metric", "baseline", "candidate", "delta", "loss at least", "at most", "margin", "within", "detectable")
    return _table(heads, rows)


def _flips(verdict: Verdict) -> list[str]:
    rows = [
        (one.scope, f"{one.flip_rate:.2%}", f"{one.control_flip_rate:.2%}", f"{one.lost}", f"{one.won}", f"{one.mcnemar:.3g}")
        for one in verdict.flips
    ]
    return _table(("cycle", "flip rate", "of A/A", "lost", "won", "McNemar p"), rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _bullets(lines: Iterable[str]) -> list[str]:
    return [f"- {_cell(line)}" for line in lines]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return lines + [f"| {' | '.join(map(_cell, row))} |" for row in rows]


def _cell(text: str) -> str:
    """Names come from outside: no bar or line feed may break a table, no tag a page."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
