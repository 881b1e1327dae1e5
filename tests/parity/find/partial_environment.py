"""An environment without some distributions: a virtual environment of its own whose site-packages links to everything else.

Neither their modules nor their metadata are in there, so it is what a machine has on which they were never installed.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path


def make(folder: Path, without: Sequence[str]) -> Path:
    """Makes it; its Python."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (own,) = folder.glob("lib/python*/site-packages")
    left_out = {_normal(name) for name in without}
    gone = {part for name in without for part in _top_level(name)}
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        distribution = _normal(path.name.partition("-")[0]) if path.name.endswith(".dist-info") else ""
        if distribution not in left_out and path.name.partition(".")[0] not in gone:
            (own / path.name).symlink_to(path)
    return folder / "bin" / "python"


def lacks(python: Path, module: str) -> bool:
    """Whether that Python can't import a module."""
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    return done.returncode == 1 and f"No module named '{module}'" in done.stderr


def _top_level(name: str) -> set[str]:
    """The names in site-packages that belong to a distribution."""
    files = metadata.files(name) or []
    return {file.parts[0].partition(".")[0] for file in files if not file.parts[0].endswith(".dist-info") and file.parts[0] != ".."}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def run(python: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`parity` by that Python, of this tree."""
    assert sys.version_info[:2] == (3, 11)
    tree = str(Path(__file__).parents[3])
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from parity.cli import main; main()"
    return subprocess.run(
        [python, "-c", program, tree, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False, timeout=280
    )  # fmt: skip
