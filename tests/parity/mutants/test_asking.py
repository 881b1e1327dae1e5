"""One asking's process: its end in words, its deadline, and that nothing of it is left."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from parity.mutants import asking
from parity.mutants.asking import Child, Stopped

ROOT = Path(__file__).parents[3]
MODULE = "tests.parity.mutants.children"


def run(folder: Path, word: str, *, deadline: float = 120.0, stop: threading.Event | None = None) -> Child:
    file = folder / "file"
    file.write_text(word)
    return asking.run(MODULE, file, folder, deadline=deadline, stop=stop or threading.Event())


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(("word", "code"), [("0", 0), ("3", 3), ("killed", -signal.SIGABRT)])
def test_how_it_ended(tmp_path: Path, word: str, code: int) -> None:
    child = run(tmp_path, word)
    assert (child.in_time, child.code) == (True, code)
    assert child.last_line.startswith(f"said {word}")
    assert "\x1b" not in child.last_line


def gone(file: Path) -> bool:
    """Whether the process of that id has ended; one that nobody has waited for yet counts as ended."""
    try:
        return psutil.Process(int(file.read_text())).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_at_its_deadline_it_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still until the child is there, and then has run out."""
    monkeypatch.setattr(asking.time, "monotonic", lambda: 1e9 if (tmp_path / "pid").exists() else 0.0)
    assert not run(tmp_path, "hangs", deadline=1e6).in_time
    assert gone(tmp_path / "pid")


def test_a_campaign_that_stops_ends_it_with_all_that_it_started(tmp_path: Path) -> None:
    stop, stopped = threading.Event(), threading.Event()

    def asked() -> None:
        try:
            run(tmp_path, "hangs", stop=stop)
        except Stopped:
            stopped.set()

    thread = threading.Thread(target=asked)
    thread.start()
    while not (tmp_path / "pid").exists():
        assert thread.is_alive()
        time.sleep(0.02)
    stop.set()
    thread.join(120)
    assert stopped.is_set()
    assert gone(tmp_path / "pid")


def test_threads_are_one_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert set(asking.ONE_THREAD.values()) == {"1"}
    probe = tmp_path / "probe.py"
    probe.write_text("import os, sys\nprint(os.environ['OMP_NUM_THREADS'], os.environ['NUM_CPU_THREADS'], file=sys.stderr)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert asking.run("probe", probe, tmp_path, deadline=120.0, stop=threading.Event()).last_line == "1 1"
