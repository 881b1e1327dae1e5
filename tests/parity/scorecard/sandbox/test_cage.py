"""A cage ends whole, and is refused where it can't be made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from contract.errors import EnvironmentUnfit
from parity.scorecard.sandbox import isolation
from parity.scorecard.sandbox.cage import Cage
from parity.scorecard.sandbox.launching import Method, visible
from parity.scorecard.sandbox.limits import Limits
from parity.scorecard.sandbox.peer import Ended

LEAVES = """\
import os, signal, time
def leave():
    here, there = os.pipe()
    for _ in range(2):
        if os.fork():
            os.wait()
        else:
            os.setsid()
            for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(one, signal.SIG_IGN)
            if os.fork():
                os._exit(0)
            os.write(there, b'x')
            time.sleep(1000)
    return len(os.read(here, 1) + os.read(here, 1))
"""
"""Leaves two processes of sessions of their own, whose parents are gone."""

WHO = """\
from parity.scorecard.sandbox.cage import Cage
from parity.scorecard.sandbox.isolation import method
from parity.scorecard.sandbox.limits import Limits
with Cage("answer", method=method("required"), limits=Limits()) as cage:
    cage.begin("import ctypes, os\\ndef who(): return [os.getuid(), os.getgid(), ctypes.CDLL(None).ptrace(16, 1, 0, 0)]", "who")
    cage.peer.send({"call": 1, "args": [], "kwargs": {}})
    print([cage.receive() for _ in range(3)][2]["returned"])
"""


def _call(cage: Cage, number: int = 1) -> object:
    cage.peer.send({"call": number, "args": [], "kwargs": {}})
    return cage.receive()


def _begun(cage: Cage, source: str, entry: str) -> None:
    cage.begin(source, entry)
    assert cage.receive() == {"compiled": True}
    assert cage.receive() == {"loaded": True}


def _hear_all(cage: Cage) -> None:
    while True:
        cage.receive()


def _namespace(process: int | str, name: str) -> str | None:
    try:
        return os.readlink(f"/proc/{process}/ns/{name}")
    except OSError:
        return None


def _in_namespace(name: str) -> list[str]:
    return [process for process in os.listdir("/proc") if process.isdecimal() and _namespace(process, "pid") == name]


def test_nothing_is_left_of_a_cage() -> None:
    with Cage("answer", method="namespaces", limits=Limits()) as cage:
        _begun(cage, LEAVES, "leave")
        name = _namespace(cage.pid, "pid_for_children")
        assert name not in (None, _namespace("self", "pid"))
        assert _call(cage) == {"call": 1, "returned": 2}
        assert len(_in_namespace(str(name))) == 4  # process 1, the answer, and what it left
    assert _in_namespace(str(name)) == []
    assert not psutil.pid_exists(cage.pid)


def test_nothing_is_left_where_a_program_ends_by_itself() -> None:
    with Cage("answer", method="namespaces", limits=Limits()) as cage:
        _begun(cage, LEAVES + "    \ndef ends():\n    leave()\n    os._exit(3)\n", "ends")
        name = _namespace(cage.pid, "pid_for_children")
        with pytest.raises(Ended, match="exit code 3"):
            _call(cage)
    assert _in_namespace(str(name)) == []


def test_without_isolation_what_was_left_is_killed_too() -> None:
    with Cage("answer", method="none", limits=Limits()) as cage:
        _begun(cage, LEAVES, "leave")
        assert _call(cage) == {"call": 1, "returned": 2}
        below = psutil.Process(cage.pid).children(recursive=True)
        assert len(below) == 3
    assert not [one for one in below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_without_isolation_its_folder_goes() -> None:
    with Cage("answer", method="none", limits=Limits()) as cage:
        _begun(cage, "import os\ndef write():\n    open('left', 'w').write('x')\n    return os.getcwd()\n", "write")
        reply = _call(cage)
        assert isinstance(reply, dict)
        folder = Path(reply["returned"])
        assert folder.parent == Path(tempfile.gettempdir()).resolve()
        assert (folder / "left").exists()
    assert not folder.exists()


@pytest.mark.parametrize("method", ["namespaces", "none"])
def test_a_deadline_ends_a_program_that_ignores_signals(method: Method) -> None:
    source = "import signal, time\nfor one in (1, 2, 3, 15): signal.signal(one, signal.SIG_IGN)\ntime.sleep(1000)\n"
    began = time.monotonic()
    with Cage("answer", method=method, limits=Limits(seconds=1.0)) as cage:
        cage.begin(source, "nothing")
        with pytest.raises(Ended, match=r"within 1 s"):
            _hear_all(cage)
    assert time.monotonic() - began < 500  # it slept for 1,000
    assert not psutil.pid_exists(cage.pid)


def test_a_dead_judge_takes_its_cages_along() -> None:
    script = (
        "import os, time\nfrom parity.scorecard.sandbox.cage import Cage\nfrom parity.scorecard.sandbox.limits import Limits\n"
        "cage = Cage('answer', method='namespaces', limits=Limits(seconds=1000))\n"
        "cage.begin('import time\\ntime.sleep(1000)', 'x')\ncage.receive()\n"
        "print(os.readlink(f'/proc/{cage.pid}/ns/pid_for_children'), flush=True)\ntime.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as judge:
        assert judge.stdout is not None
        name = judge.stdout.readline().strip()
        inside = [psutil.Process(int(one)) for one in _in_namespace(name)]
        assert len(inside) == 2
        judge.send_signal(signal.SIGKILL)
    psutil.wait_procs(inside, timeout=60)
    assert _in_namespace(name) == []


def test_it_holds_for_a_superuser_and_for_a_user() -> None:
    expected = "[1000, 1000, -1]"  # and process 1 can't be traced
    for user in ([], ["unshare", "--user", "--map-user=1234", "--map-group=1234"]):
        done = subprocess.run([*user, sys.executable, "-c", WHO], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_where_no_isolation_can_be_had_it_refuses_in_words() -> None:
    shell = f"echo 0 > /proc/sys/user/max_user_namespaces && exec {sys.executable} -c '{WHO}'"
    done = subprocess.run(["unshare", "--user", "--map-root-user", "sh", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "EnvironmentUnfit" in last
    assert "answers in Python run in a sandbox only, and none can be had here (namespaces: unshare: " in last
    assert "isolation: none" in last


def test_it_refuses_where_there_are_no_namespaces_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation.sys, "platform", "darwin")
    with pytest.raises(EnvironmentUnfit, match="darwin has no namespaces"):
        isolation._isolated.__wrapped__()
    assert isolation.method("none") == "none"


@pytest.mark.parametrize(("user", "chosen"), [(1000, "bubblewrap"), (0, None)])
def test_bubblewrap_is_for_users_who_may_make_no_namespaces(monkeypatch: pytest.MonkeyPatch, user: int, chosen: str | None) -> None:
    def tried(method: Method) -> None:
        if method == "namespaces":
            raise EnvironmentUnfit("unshare: Operation not permitted")

    monkeypatch.setattr(isolation, "_try", tried)
    monkeypatch.setattr(isolation.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(isolation.os, "geteuid", lambda: user)
    if chosen:
        assert isolation._isolated.__wrapped__() == chosen
    else:
        with pytest.raises(EnvironmentUnfit, match=r"bubblewrap: it does not bound how many processes a superuser starts"):
            isolation._isolated.__wrapped__()


def test_a_cage_shows_no_more_than_python_needs() -> None:
    binds, links = visible()
    assert not [path for path in binds if Path(__file__).is_relative_to(path)]
    assert not {"/", "/etc", "/home", "/proc", "/dev", "/tmp", str(Path.home())} & {*binds, *links}


def test_pipes_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Cage("answer", method="namespaces", limits=Limits()) as cage, suppress(Ended):
            cage.begin("x = 1", "x")
            cage.receive()
    assert len(os.listdir("/proc/self/fd")) == before
