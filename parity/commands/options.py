"""What several commands take."""

from __future__ import annotations

import tempfile
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
