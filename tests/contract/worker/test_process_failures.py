"""The launcher against workers that die, hang, talk nonsense or refuse (fake_stack.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from contract.worker.process import HarnessError, ProtocolBroken, RequestFailed, StackProcess, WorkerDied, WorkerHung
from tests.contract.worker.launching import FAKE_STACK, A, B, Launch, children, is_alive, matmul, pid


@pytest.mark.parametrize(("device", "how"), [("DIES", "ended with exit code 7"), ("CRASHES", "was killed by SIGSEGV")])
def test_death_says_how(launch: Launch, device: str, how: str) -> None:
    with pytest.raises(WorkerDied, match=how):
        matmul(launch(device))


def test_death_shows_the_last_words(launch: Launch) -> None:
    process = launch("DIES")
    with pytest.raises(WorkerDied, match="the heap is on fire"):
        matmul(process)
    assert "the heap is on fire" in process.log_tail()


def test_the_request_after_a_death_starts_a_fresh_worker(launch: Launch) -> None:
    process = launch("DIES")
    first = pid(process)
    with pytest.raises(WorkerDied):
        matmul(process)
    assert pid(process) != first


def test_a_hang_is_killed_with_its_children(launch: Launch) -> None:
    process = launch("HANGS", request_seconds=0.5)
    process.start()
    first = pid(process)
    before = children()
    started = time.monotonic()
    with pytest.raises(WorkerHung, match=r"took over 0\.5 s to answer compute(.|\n)*waiting for a lock"):
        matmul(process)
    assert time.monotonic() - started < 5
    assert not is_alive(first)
    assert children() == before - {first}
    assert pid(process) != first


def test_a_hang_leaves_no_grandchild(launch: Launch) -> None:
    process = launch("HANGS", request_seconds=0.5)
    worker = pid(process)
    pending = process.submit("compute", {"op": "matmul", "attrs": {}}, {"a": A, "b": B})
    deadline = time.monotonic() + 10
    path = Path(f"/proc/{worker}/task/{worker}/children")
    while not (grandchildren := path.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert grandchildren
    process.kill()
    while any(is_alive(int(number)) for number in grandchildren) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(is_alive(int(number)) for number in grandchildren)
    with pytest.raises(WorkerDied, match="was ended before it could answer"):
        pending.result()


def test_a_worker_that_reads_nothing_is_hung(launch: Launch) -> None:
    big = np.zeros(2**20, np.float32)
    with pytest.raises(WorkerHung, match=r"took over 0\.5 s to take the request forward"):
        launch("RAW_DEAF", request_seconds=0.5).request("forward", tensors={"x": big})


def test_a_worker_that_never_greets_is_hung(launch: Launch) -> None:
    with pytest.raises(WorkerHung, match=r"took over 0\.5 s to"):
        launch("RAW_MUTE", start_seconds=0.5).start()


@pytest.mark.parametrize(("device", "why"), [("RAW_OLD", "speaks protocol 0, allowed is 1"), ("RAW_NO_GREETING", "answered request 1")])
def test_a_wrong_greeting_is_refused(launch: Launch, device: str, why: str) -> None:
    with pytest.raises(ProtocolBroken, match=why):
        launch(device).start()


@pytest.mark.parametrize(
    "device",
    [
        *("RAW_GARBAGE", "RAW_TEXT_BEFORE", "RAW_WRONG_ID", "RAW_LIST_ID", "RAW_HUGE_HEADER", "RAW_DEEP", "RAW_HUGE_PAYLOAD"),
        *("RAW_BAD_PAYLOAD", "RAW_STATUS", "RAW_BARE_ERROR", "RAW_VALUES", "RAW_BUSY"),
    ],
)
def test_nonsense_breaks_the_protocol_and_ends_the_worker(launch: Launch, device: str) -> None:
    process = launch(device)
    process.start()
    (worker,) = children()
    started = time.monotonic()
    with pytest.raises(ProtocolBroken, match="fake: broke the protocol"):
        process.request("probe")
    assert time.monotonic() - started < 10
    assert not is_alive(worker)


def test_text_after_an_answer_breaks_the_next_request(launch: Launch) -> None:
    process = launch("RAW_TEXT_AFTER")
    process.request("probe")
    with pytest.raises(ProtocolBroken, match="did the worker print on its protocol pipe"):
        process.request("probe")


def test_a_worker_that_ends_inside_a_frame_died(launch: Launch) -> None:
    with pytest.raises(WorkerDied, match="ended with exit code 3"):
        launch("RAW_CUT_SHORT").request("probe")


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("MISSING", r"answered y as nothing, must be float32\[2, 4\]"),
        ("EXTRA", r"answered z as float32\[2, 4\], must be nothing"),
        ("SHAPE", r"answered y as float32\[4, 2\], must be float32\[2, 4\]"),
        ("DTYPE", r"answered y as float64\[2, 4\], must be float32\[2, 4\]"),
    ],
)
def test_an_answer_at_odds_with_the_table_breaks_the_protocol(launch: Launch, device: str, why: str) -> None:
    with pytest.raises(ProtocolBroken, match=why):
        matmul(launch(device))


def test_an_error_has_class_message_and_traceback_and_the_worker_lives_on(launch: Launch) -> None:
    process = launch("RAISES")
    first = pid(process)
    with pytest.raises(RequestFailed) as caught:
        matmul(process)
    assert caught.value.error_class == "ArithmeticError"
    assert caught.value.message == "the sum is odd; allowed are even ones"
    assert "in _raise" in caught.value.trace
    assert pid(process) == first


@pytest.mark.parametrize("device", ["COMPLEX", "NAN_VALUE", "NOT_JSON", "NOTHING"])
def test_an_answer_that_cant_travel_is_an_error_and_the_worker_lives_on(launch: Launch, device: str) -> None:
    process = launch(device)
    first = pid(process)
    with pytest.raises(RequestFailed):
        matmul(process)
    assert pid(process) == first


@pytest.mark.parametrize(
    ("request_name", "values", "why"),
    [
        ("merge", {}, "does not support the request 'merge'"),
        ("explode", {}, "there is no request 'explode'; allowed: probe, compute"),
        ("compute", {"op": "fourier"}, "there is no operation 'fourier'; allowed: matmul"),
    ],
)
def test_what_a_stack_lacks_is_not_supported(launch: Launch, request_name: str, values: dict[str, str], why: str) -> None:
    with pytest.raises(RequestFailed, match=why) as caught:
        launch().request(request_name, values)
    assert caught.value.error_class == "NotSupported"


def test_a_stack_that_cant_be_made_says_why(launch: Launch) -> None:
    with pytest.raises(RequestFailed, match="no module named frobnicate") as caught:
        launch("ABSENT").start()
    assert caught.value.error_class == "ImportError"
    assert not children()


def test_a_command_that_is_not_there_says_so() -> None:
    process = StackProcess("fake", ("/nowhere/worker",), "CPU")
    with pytest.raises(WorkerDied, match="could not start /nowhere/worker: No such file"):
        process.start()
    process.close()


def test_a_request_of_a_dead_worker_is_never_answered_by_the_next(launch: Launch) -> None:
    process = launch("DIES")
    process.start()
    first = process.submit("compute", {"op": "matmul", "attrs": {}}, {"a": A, "b": B})
    second = process.submit("probe")
    with pytest.raises(WorkerDied, match="exit code 7"):
        first.result()
    pid(process)
    with pytest.raises(WorkerDied, match="exit code 7"):
        second.result()


def test_every_failure_of_a_worker_is_a_harness_error() -> None:
    assert issubclass(WorkerDied, HarnessError)
    assert issubclass(WorkerHung, HarnessError)
    assert issubclass(ProtocolBroken, HarnessError)
    assert not issubclass(RequestFailed, HarnessError)


def test_a_worker_ends_when_its_launcher_is_gone(tmp_path: Path) -> None:
    script = (
        "import json, os, sys\nfrom contract.worker.process import StackProcess\n"
        f"process = StackProcess('fake', (sys.executable, {str(FAKE_STACK)!r}), 'CPU')\n"
        "print(json.dumps(process.request('probe').values), flush=True)\n"
        "process.submit('train', {'steps': 1000, 'seconds': 0.05})\nos._exit(0)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    worker = json.loads(done.stdout)["pid"]
    deadline = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(worker)


@pytest.mark.nightly
def test_a_hundred_deaths_leave_nothing_behind(launch: Launch) -> None:
    process = launch("DIES")
    pid(process)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        with pytest.raises(WorkerDied):
            matmul(process)
    assert not children()
    pid(process)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
