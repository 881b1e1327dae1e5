"""What several commands take."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from contract.errors import UserError


def words(text: str) -> tuple[str, ...]:
    """The words of a comma-separated list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def devices(pairs: list[str]) -> dict[str, str]:
    """Device by stack, of STACK=DEVICE.

    Raises:
        UserError: a pair that is none.
    """
    devices = {}
    for pair in pairs:
        stack, equals, name = pair.partition("=")
        if not (stack and equals and name):
            raise UserError(f"--device is {pair!r}, must be STACK=DEVICE, as in tinygrad_lora=WEBGPU")
        devices[stack] = name
    return devices


def failures_folder(given: Path | None) -> Path:
    """Where files of failures go: a folder, which need not be there yet, or one in the user's cache.

    Raises:
        UserError: it is no folder.
    """
    from contract.worker.files import cache_folder  # NumPy, which most commands' start needs not

    if given is not None and given.exists() and not given.is_dir():
        raise UserError(f"--reproducers is {given}, a file; give a folder")
    return given or cache_folder() / "failures"


def require_profile(name: str) -> None:
    """Raises UserError where there is no such profile."""
    from parity import profiles

    if name not in profiles.PROFILES:
        raise UserError(f"there is no profile {name!r}; allowed: {', '.join(profiles.PROFILES)}")


def require_questions(names: Iterable[str]) -> None:
    """Raises UserError where there is no such question."""
    from parity.checks.check import Question

    for name in names:
        if name not in set(Question):
            raise UserError(f"--allow-uncovered is {name!r}; allowed: {', '.join(Question)}")


def require_writable(*paths: Path | None) -> None:
    """Tries to make a file beside each path, so that a run of minutes does not end in an error."""
    given = [path for path in paths if path is not None]
    if len({path.resolve() for path in given}) < len(given):
        raise UserError(f"{given[0]} is named for two reports; give each a file of its own")
    for path in given:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is a folder or a device; give the name of a file")
        try:
            with tempfile.NamedTemporaryFile(dir=path.resolve().parent):
                pass
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror}); make its folder, or give another") from None
