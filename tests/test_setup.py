"""ci/setup.sh, run with a Python that only pretends to install; and that constraints.txt pins what it should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PRETENDER = """\
#!/bin/sh
# -c goes to the real interpreter; -m venv and -m pip are noted down, and fail when told to
case "$1 $2" in
    "-m venv") echo venv >>"{log}"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip") echo pip >>"{log}"; test ! -e "{broken}" ;;
    *) exec "{python}" "$@" ;;
esac
"""


class Clone:
    """A clone of the repository, in a folder with a space, with a pretender for Python."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log, self.broken = folder / "a clone", folder / "log", folder / "broken"
        (self.root / "ci").mkdir(parents=True)
        for name in ("pyproject.toml", "constraints.txt", "ci/setup.sh"):
            shutil.copy(ROOT / name, self.root / name)
        self.python = folder / "python3.11"
        self.python.write_text(PRETENDER.format(log=self.log, broken=self.broken, python=sys.executable))
        self.python.chmod(0o755)

    def set_up(self, python: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHON": str(self.python) if python is None else python}
        command = ["sh", str(self.root / "ci/setup.sh")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")

    def steps(self) -> list[str]:
        """What was done since the last call."""
        steps = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return steps


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_installs_once(clone: Clone) -> None:
    done = clone.set_up()
    assert (done.returncode, done.stderr) == (0, "")
    assert clone.steps() == ["venv", "pip"]
    again = clone.set_up()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert clone.steps() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_installs_anew_after_a_change(clone: Clone, name: str) -> None:
    clone.set_up()
    clone.steps()
    with open(clone.root / name, "a", encoding="utf-8") as file:
        file.write("# changed\n")
    leftover = clone.root / ".venv" / "leftover"
    leftover.touch()
    assert clone.set_up().returncode == 0
    assert clone.steps() == ["venv", "pip"]
    assert not leftover.exists()


def test_installs_anew_in_a_moved_clone(clone: Clone) -> None:
    """An environment holds its own path."""
    clone.set_up()
    clone.steps()
    clone.root = clone.root.rename(clone.root.with_name("moved"))
    assert clone.set_up().returncode == 0
    assert clone.steps() == ["venv", "pip"]


def test_a_failed_installation_is_never_trusted(clone: Clone) -> None:
    clone.broken.touch()
    assert clone.set_up().returncode != 0
    assert clone.steps() == ["venv", "pip"]
    clone.broken.unlink()
    assert clone.set_up().returncode == 0
    assert clone.steps() == ["venv", "pip"]


def test_a_failed_renewal_is_never_trusted_though_the_files_are_put_back(clone: Clone) -> None:
    clone.set_up()
    before = (clone.root / "constraints.txt").read_text()
    (clone.root / "constraints.txt").write_text(before + "# changed\n")
    clone.broken.touch()
    assert clone.set_up().returncode != 0
    clone.broken.unlink()
    (clone.root / "constraints.txt").write_text(before)
    clone.steps()
    assert clone.set_up().returncode == 0
    assert clone.steps() == ["venv", "pip"]


@pytest.mark.parametrize("python", ["/nowhere/python3.11", "false"])
def test_no_python_is_told_in_one_line(clone: Clone, python: str) -> None:
    done = clone.set_up(python)
    assert done.returncode == 1
    assert done.stderr == (f"set-up: no Python 3.11 found (tried: {python}); install it, or name it: make PYTHON=/path/to/python3.11 ...\n")
    assert not (clone.root / ".venv").exists()


def normalized(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_every_direct_dependency_is_pinned_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    pins = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    assert [normalized(pin) for pin in pins] == sorted({normalized(name) for name in wanted} - {project["project"]["name"]})
