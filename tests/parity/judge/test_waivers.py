"""waivers.toml: its form, and what a waiver covers."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from contract.errors import UserError
from parity.judge import waivers

GOOD = '[[waiver]]\ncheck = "a.exp"\nstack = "numpy_lora"\nreason = "issue 17"\nowner = "ada"\nexpires = 2031-01-31\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "waivers.toml"
    path.write_text(text)
    return path


def test_no_file_means_no_waiver(tmp_path: Path) -> None:
    assert waivers.read(tmp_path / "waivers.toml") == ()


def test_a_waiver_is_read(tmp_path: Path) -> None:
    (waiver,) = waivers.read(write(tmp_path, GOOD))
    assert waiver == waivers.Waiver(check="a.exp", stack="numpy_lora", reason="issue 17", owner="ada", expires=datetime.date(2031, 1, 31))


def test_the_form_in_the_docstring_is_read(tmp_path: Path) -> None:
    (waiver,) = waivers.read(write(tmp_path, (waivers.Waiver.__doc__ or "").partition("::")[2]))
    assert waiver.check == "a.exp"


@pytest.mark.parametrize(
    ("check", "stacks", "covered"),
    [
        ("a.exp", ("numpy_lora",), True),
        ("a.exp", ("other", "numpy_lora"), True),
        ("a.exp", ("other",), False),
        ("a.log", ("numpy_lora",), False),
    ],
)
def test_what_is_covered(tmp_path: Path, check: str, stacks: tuple[str, ...], covered: bool) -> None:
    (waiver,) = waivers.read(write(tmp_path, GOOD))
    assert waiver.covers(check, stacks) is covered


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[waiver]\n", "as TOML"),
        (GOOD.replace("expires", "until"), r"waiver\.0\.expires: Field required"),
        (GOOD.replace("reason = ", "because = "), r"waiver\.0\.reason: Field required"),
        (GOOD.replace("owner = ", "who = "), r"waiver\.0\.owner: Field required"),
        (GOOD.replace('"ada"', '" "'), r"waiver\.0\.owner: String should match"),
        (GOOD + 'question = "precision"\n', r"waiver\.0\.question: Extra inputs are not permitted"),
        (GOOD.replace("2031-01-31", '"some day"'), r"waiver\.0\.expires"),
        (GOOD.replace("[[waiver]]", "[[waivers]]"), "waivers: Extra inputs are not permitted"),
        (GOOD.replace("[[waiver]]", "[waiver]"), "waiver"),
    ],
)
def test_a_file_that_is_not_sound_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        waivers.read(write(tmp_path, text))
    assert str(tmp_path / "waivers.toml") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"\xff\xfe[[waiver]]", None])
def test_a_file_that_can_not_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "waivers.toml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"waivers\.toml"):
        waivers.read(path)
