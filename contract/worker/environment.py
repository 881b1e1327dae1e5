"""Another virtual environment: which Python it has, what is installed there, and how a stack of this project is started in it."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path

from contract.errors import MissingError
from contract.worker import elsewhere

_SECONDS = 120.0
_STARTER = Path(elsewhere.__file__)


def interpreter(path: Path) -> Path:
    """The Python of a virtual environment, or the one that is named itself.

    Raises:
        MissingError: there is none.
    """
    python = path / "bin" / "python" if path.is_dir() else path
    if not python.is_file():
        raise MissingError(f"environment {path}: {python} is not there; give a virtual environment's folder, or its bin/python")
    return python


def command(python: Path, module: str, folder: Path) -> tuple[str, ...]:
    """What starts a module there; its package lies in `folder`. A link is not followed: it is what a virtual environment is known by."""
    return str(python), "-P", str(_STARTER), module, str(folder)


@cache
def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str | None]:
    """The versions that the environment has of some distributions, None where one is not installed.

    Raises:
        MissingError: it can't be asked, or lacks what every worker needs.
    """
    asked = [*command(python, "contract.worker.versions", elsewhere.HERE), *packages]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"environment {python}: it does not start ({error}); give a Python of 3.11 or newer") from None
    if done.returncode:
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MissingError(
            f"environment {python}: a worker can't start there ({told}); it needs Python 3.11 or newer with this project's packages: "
            f"{python} -m pip install twostack"
        )
    found: dict[str, str | None] = json.loads(done.stdout)
    return found
