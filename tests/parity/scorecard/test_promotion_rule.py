"""The rule as data: what is shipped, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import UserError
from parity.scorecard.promotion import rule_sha256
from parity.scorecard.promotion_rule import FILE, read_rule


def test_the_shipped_rule_is_the_documented_one() -> None:
    """What the issue of promotion fixes word for word; margins come from the simulation."""
    rule = read_rule()
    assert (rule.validity.cycles, rule.validity.seeds) == (2, 3)
    assert (rule.validity.complete_pairs, rule.validity.infra_errors) == (0.99, 0.01)
    assert (rule.bounds.cycle_alpha, rule.bounds.pooled_alpha, rule.bounds.resamples) == (0.05, 0.025, 10_000)
    assert (rule.veto.mcnemar, rule.veto.family_loss, rule.veto.family_alpha) == (0.01, 0.1, 0.05)
    assert rule.margins.semantics <= 0.05  # a true loss of 5 points is then at or over the margin, and its error at most pooled_alpha


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1", "version: 2", "version: got 2"),
        ("  semantics: 0.05\n", "", "margins.semantics: got nothing"),
        ("veto:", "vetoes:", "vetoes: got an unknown field"),
        ("  mcnemar: 0.01 ", "  mcnemar: 0.7 ", "veto.mcnemar: got 0.7"),
        ("  mcnemar: 0.01 ", "  mcnemar: .nan ", "veto.mcnemar"),
        ("  cycles: 2 ", "  cycles: 1 ", "validity.cycles: got 1"),
        ("  power: 0.8 ", "  power: yes ", "bounds.power"),
        ("  power: 0.8 ", "  power: 0.8\n  power: 0.9 ", "power"),
        ("version: 1", "[", "rule.yaml"),
        ("version: 1", "\x00", "rule.yaml"),
    ],
)
def test_another_rule_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "rule.yaml"
    text = FILE.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_rule(path)
    assert said in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"\xff", b"!!python/object:os.system {}\n"])
def test_what_is_no_rule(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rule.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"rule\.yaml"):
        read_rule(tmp_path / "rule.yaml")


def test_each_field_is_in_the_rule_s_hash() -> None:
    rule = read_rule()
    other = rule.model_copy(update={"margins": rule.margins.model_copy(update={"tokens": 0.2})})
    assert rule_sha256(rule) == rule_sha256(read_rule())
    assert rule_sha256(rule) != rule_sha256(other)
