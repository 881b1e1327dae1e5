"""The `parity` command in a process of its own: pipes, links, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.parity.numpy_stack import configure


@pytest.fixture
def two_stacks(tmp_path: Path) -> Path:
    """A working folder whose parity.toml adds two stacks in NumPy."""
    configure(tmp_path, one=[], two=[])
    return tmp_path


def run_here(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from parity.cli import main; main()", "run", "--only", "a.matmul", "--profile", "quick", *arguments],
        cwd=folder, stderr=subprocess.PIPE, text=True, check=False, timeout=120, **options,
    )  # fmt: skip


def test_what_nobody_reads_changes_no_verdict_and_no_report(two_stacks: Path) -> None:
    """As `parity run ... | true` does."""
    read, write = os.pipe()
    os.close(read)
    done = run_here(two_stacks, "--stacks", "one,two", "--json", "run.json", stdout=write)
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert (two_stacks / "run.json").is_file()


def test_a_link_stays_a_link(two_stacks: Path) -> None:
    (two_stacks / "target.json").write_text("old")
    (two_stacks / "link.json").symlink_to("target.json")
    done = run_here(two_stacks, "--stacks", "one,two", "--json", "link.json", stdout=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert (two_stacks / "link.json").is_symlink()
    assert '"schema_version"' in (two_stacks / "target.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "/dev/null"], "/dev/null is a folder or a device; give the name of a file"),
        (["--json", "same", "--junit", "same"], "same is named for two reports; give each a file of its own"),
        (["--tier", "B"], "check a.matmul is of tier A; --tier names B"),
    ],
)
def test_more_that_is_refused_before_anything_runs(two_stacks: Path, arguments: list[str], message: str) -> None:
    done = run_here(two_stacks, "--stacks", "one,two", *arguments, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, f"parity: {message}\n")


def test_a_termination_leaves_no_worker(two_stacks: Path) -> None:
    """As a cancelled CI job does: SIGTERM while a stack hangs."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from parity.cli import main; main()", "run", "--only", "a.matmul", "--device", "two=HANGS"],
        cwd=two_stacks, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(two_stacks)},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(two_stacks.glob("twostack-*/*.log")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(two_stacks.glob("twostack-*"))
