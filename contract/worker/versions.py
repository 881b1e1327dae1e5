"""Prints, as JSON, the versions that an environment has of some distributions: `python -m contract.worker.versions NAME ...`.

A worker can start where this can: it imports what every worker does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

import contract.worker.serve  # noqa: F401
from contract.worker.discover import version


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each distribution, None where it is not installed."""
    return {package: version(package) for package in packages}


if __name__ == "__main__":
    print(json.dumps(versions(sys.argv[1:])))
