"""The launcher against workers that behave and workers that do not (fake_stack.py)."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from contract.errors import MissingError
from contract.worker import wire
from contract.worker.files import FileReference, sha256_of
from contract.worker.process import HarnessError, ProtocolBroken, RequestFailed, StackProcess, WorkerDied, WorkerHung

FAKE_STACK = Path(__file__).with_name("fake_stack.py")
A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(12, dtype=np.float32).reshape(3, 4)
Launch = Callable[..., StackProcess]


@pytest.fixture
def launch() -> Iterator[Launch]:
    made: list[StackProcess] = []

    def start(device: str = "CPU", *, request_seconds: float = 20.0, start_seconds: float = 20.0) -> StackProcess:
        command = (sys.executable, str(FAKE_STACK))
        made.append(StackProcess("fake", command, device, request_seconds=request_seconds, start_seconds=start_seconds))
        return made[-1]

    yield start
    for process in made:
        process.close()


def matmul(process: StackProcess) -> np.ndarray:
    return process.compute("matmul", {"dtype": "float32"}, {"a": A, "b": B}).tensors["y"]


def pid(process: StackProcess) -> int:
    return int(process.request("probe").values["pid"])


def is_alive(number: int) -> bool:
    """False for a zombie as well."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children() -> set[int]:
    """This process's children, zombies too."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(number) for number in (task / "children").read_text().split()}
    return found


def test_computes(launch: Launch) -> None:
    np.testing.assert_array_equal(matmul(launch()), A @ B)


def test_one_process_serves_all_requests(launch: Launch) -> None:
    process = launch()
    assert pid(process) == pid(process) != os.getpid()


def test_busy_time_is_within_the_request(launch: Launch) -> None:
    process = launch()
    process.start()
    before = time.monotonic_ns()
    busy = process.request("train", {"steps": 1, "seconds": 0.05}).busy_ns
    assert before <= busy[0] <= busy[1] - 50_000_000
    assert busy[1] <= time.monotonic_ns()


def test_a_worker_of_a_third_party_is_served(launch: Launch) -> None:
    assert launch("RAW_GOOD").request("probe").busy_ns == (1, 2)


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


def test_nan_travels(launch: Launch) -> None:
    """It is for a check to judge, not for the launcher."""
    assert np.isnan(matmul(launch("NAN"))).all()


def test_prints_go_to_the_log(launch: Launch) -> None:
    process = launch("PRINTS")
    np.testing.assert_array_equal(matmul(process), A @ B)
    np.testing.assert_array_equal(matmul(process), A @ B)
    assert "from C" in process.log_tail()
    assert "from a child" in process.log_tail()


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


def test_a_request_that_cant_travel_reaches_nobody(launch: Launch) -> None:
    process = launch()
    first = pid(process)
    with pytest.raises(wire.WireError, match="complex128"):
        process.request("forward", tensors={"x": np.zeros(2, complex)})
    assert pid(process) == first


def test_answers_belong_to_their_requests_in_any_order(launch: Launch) -> None:
    process = launch()
    pending = [process.submit("forward", tensors={"x": np.full(1, number)}) for number in range(8)]
    for number in (3, 0, 7, 1, 2, 6, 5, 4):
        assert pending[number].result().tensors["x"] == number


def test_an_answer_is_collected_once(launch: Launch) -> None:
    pending = launch().submit("probe")
    pending.result()
    with pytest.raises(ValueError, match="was collected before"):
        pending.result()


def test_a_failure_between_two_requests_is_its_own(launch: Launch) -> None:
    process = launch()
    first, second, third = process.submit("probe"), process.submit("merge"), process.submit("probe")
    assert third.result().values == first.result().values
    with pytest.raises(RequestFailed):
        second.result()


def test_a_request_of_a_dead_worker_is_never_answered_by_the_next(launch: Launch) -> None:
    process = launch("DIES")
    process.start()
    first = process.submit("compute", {"op": "matmul", "attrs": {}}, {"a": A, "b": B})
    second = process.submit("probe")
    with pytest.raises(WorkerDied, match="exit code 7"):
        first.result()
    pid(process)
    with pytest.raises(WorkerDied, match="was ended before it could answer probe"):
        second.result()


def test_progress_keeps_a_slow_request_alive(launch: Launch) -> None:
    process = launch(request_seconds=1.0)
    assert process.request("train", {"steps": 8, "seconds": 0.25}).values == {"steps": 8}


def test_cancel_stops_a_long_request(launch: Launch) -> None:
    process = launch()
    training = process.submit("train", {"steps": 1000, "seconds": 0.05})
    time.sleep(0.3)
    process.request("cancel")
    assert 0 < training.result().values["steps"] < 1000
    assert process.request("train", {"steps": 2, "seconds": 0.0}).values == {"steps": 2}


def test_cancel_reaches_a_request_that_has_not_begun(launch: Launch) -> None:
    process = launch()
    first = process.submit("train", {"steps": 4, "seconds": 0.1})
    second = process.submit("train", {"steps": 1000, "seconds": 0.05})
    process.submit("cancel")
    assert second.result().values == {"steps": 0}
    assert first.result().values["steps"] < 4


@pytest.fixture
def reference(tmp_path: Path) -> FileReference:
    path = tmp_path / "weights.safetensors"
    save_file({"w": A, "v": B}, path)
    return FileReference(sha256=sha256_of(path), tensor="w", path=str(path))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_does_not_travel_where_the_worker_has_it(launch: Launch, reference: FileReference, cache: Path) -> None:
    np.testing.assert_array_equal(launch().request("forward", tensors={"x": reference}).tensors["x"], A)
    assert not cache.exists()


@pytest.fixture
def elsewhere(reference: FileReference, tmp_path: Path) -> FileReference:
    """A reference by a relative path, which only the launcher's working folder resolves."""
    return dataclasses.replace(reference, path=os.path.relpath(reference.path, tmp_path))


def launch_elsewhere(folder: Path) -> StackProcess:
    script = f"import os, runpy, sys; os.chdir({str(folder)!r}); sys.path[0] = {str(FAKE_STACK.parent)!r}; "
    return StackProcess("fake", (sys.executable, "-c", script + f"runpy.run_path({str(FAKE_STACK)!r}, run_name='__main__')"), "CPU")


def test_a_file_is_sent_where_it_is_absent_and_then_kept(
    elsewhere: FileReference, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    second = dataclasses.replace(elsewhere, tensor="v")
    with launch_elsewhere(tmp_path / "other") as process:
        later = process.submit("forward", tensors={"x": elsewhere, "y": second, "z": A})
        between = process.submit("probe")
        answer = later.result()
        np.testing.assert_array_equal(answer.tensors["x"], A)
        np.testing.assert_array_equal(answer.tensors["y"], B)
        np.testing.assert_array_equal(answer.tensors["z"], A)
        assert between.result().values["device"] == "CPU"
        Path(elsewhere.path).unlink()
        np.testing.assert_array_equal(process.request("forward", tensors={"x": elsewhere}).tensors["x"], A)
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [f"{elsewhere.sha256}.safetensors"]


def test_two_absent_files_are_both_sent(elsewhere: FileReference, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    save_file({"w": B}, tmp_path / "more.safetensors")
    more = FileReference(sha256=sha256_of(tmp_path / "more.safetensors"), tensor="w", path="more.safetensors")
    with launch_elsewhere(tmp_path / "other") as process:
        answer = process.request("forward", tensors={"x": elsewhere, "y": more})
    np.testing.assert_array_equal(answer.tensors["x"], A)
    np.testing.assert_array_equal(answer.tensors["y"], B)


def test_a_file_of_other_content_is_refused(launch: Launch, reference: FileReference, cache: Path) -> None:
    save_file({"w": B}, reference.path)
    process = launch()
    with pytest.raises(RequestFailed, match=f"got a file with SHA-256 [0-9a-f]{{64}}, asked for {reference.sha256}"):
        process.request("forward", tensors={"x": reference})
    assert not list(cache.rglob("*.safetensors"))
    assert pid(process)


def test_a_file_that_nobody_has_is_missing(launch: Launch, reference: FileReference, cache: Path) -> None:
    Path(reference.path).unlink()
    process = launch()
    with pytest.raises(MissingError, match="put the file there"):
        process.request("forward", tensors={"x": reference})
    assert pid(process)


def test_a_tensor_that_the_file_lacks_is_an_error(launch: Launch, reference: FileReference) -> None:
    with pytest.raises(RequestFailed, match="has no tensor 'u'"):
        launch().request("forward", tensors={"x": dataclasses.replace(reference, tensor="u")})


def test_a_worker_may_ask_only_for_files_of_the_request(launch: Launch, reference: FileReference) -> None:
    with pytest.raises(ProtocolBroken, match="which the request does not name"):
        launch("RAW_GREEDY").request("forward", tensors={"x": reference})


def test_a_worker_may_not_ask_twice(launch: Launch, reference: FileReference) -> None:
    with pytest.raises(ProtocolBroken, match="asked again"):
        launch("RAW_FORGETFUL").request("forward", tensors={"x": reference})


def test_close_ends_the_worker_and_can_be_repeated(launch: Launch) -> None:
    process = launch()
    worker = pid(process)
    started = time.monotonic()
    process.close()
    process.close()
    process.kill()
    assert time.monotonic() - started < 2
    assert not is_alive(worker)
    assert not children()
    assert process.log_tail() == ""


def test_a_closed_stack_can_be_asked_again(launch: Launch) -> None:
    process = launch()
    first = pid(process)
    process.close()
    assert pid(process) != first


def test_close_before_the_start_is_fine(launch: Launch) -> None:
    launch().close()
    assert not children()


def test_close_does_not_wait_for_a_request_under_way(launch: Launch) -> None:
    process = launch("HANGS")
    process.submit("compute", {"op": "matmul", "attrs": {}}, {"a": A, "b": B})
    started = time.monotonic()
    process.close()
    assert time.monotonic() - started < 2
    assert not children()


def test_no_thread_and_no_file_is_left_behind(launch: Launch) -> None:
    process = launch()
    process.request("probe")
    process.close()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        process.request("probe")
        process.close()
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > len(before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


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
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    worker = json.loads(done.stdout)["pid"]
    deadline = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(worker)
