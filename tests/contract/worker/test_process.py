"""The launcher and a worker that behaves (fake_stack.py): answers, their order, progress, closing."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest

from contract.worker import wire
from contract.worker.process import RequestFailed, StackProcess, WorkerDied, WorkerHung
from tests.contract.worker.launching import A, B, Launch, children, is_alive, matmul, pid


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


def test_nan_travels(launch: Launch) -> None:
    """It is for a check to judge, not for the launcher."""
    assert np.isnan(matmul(launch("NAN"))).all()


def test_prints_go_to_the_log(launch: Launch) -> None:
    process = launch("PRINTS")
    np.testing.assert_array_equal(matmul(process), A @ B)
    np.testing.assert_array_equal(matmul(process), A @ B)
    assert "from C" in process.log_tail()
    assert "from a child" in process.log_tail()


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


def test_progress_keeps_a_slow_request_alive(launch: Launch) -> None:
    process = launch(request_seconds=1.0)
    assert process.request("train", {"steps": 8, "seconds": 0.25}).values == {"steps": 8}


def widened(process: StackProcess, tensors: dict[str, np.ndarray], widen: dict[str, str]) -> np.ndarray:
    values = {"op": "matmul", "attrs": {"dtype": "float64"}, "widen": widen}
    return process.request("compute", values, tensors).tensors["y"]


def test_a_tensor_may_travel_narrow_and_be_computed_wide(launch: Launch) -> None:
    """Numbers whose product float32 would round."""
    a, b = np.full((2, 3), 2**24 - 1, np.float32), np.full((3, 4), 2**24 - 3, np.float32)
    got = widened(launch(), {"a": a, "b": b}, {"a": "float64", "b": "float64"})
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, a.astype(np.float64) @ b.astype(np.float64))


@pytest.mark.parametrize(("widen", "why"), [({"a": "float32"}, "does not widen to float32; send it as float32"), ({"c": "float64"}, "'c'")])
def test_a_tensor_is_never_narrowed(launch: Launch, widen: dict[str, str], why: str) -> None:
    with pytest.raises(RequestFailed, match=why):
        widened(launch(), {"a": A.astype(np.float64), "b": B.astype(np.float64)}, widen)


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


def test_a_scalar_that_is_no_array_is_refused_and_not_dropped(launch: Launch) -> None:
    """np.float64 is what indexing an array gives; it was once left out of the request in silence."""
    with pytest.raises(TypeError, match="bar is a float64; allowed: a NumPy array"):
        launch().request("compute", {}, {"bar": np.float64(1.0)})  # type: ignore[dict-item]


def test_a_watcher_is_told_progress_and_called_while_none_comes(launch: Launch) -> None:
    seen: list[dict[str, Any] | None] = []
    answer = launch().submit("train", {"steps": 2, "seconds": 0.45}).result(seen.append)
    assert answer.values == {"steps": 2}
    assert [values for values in seen if values is not None] == [{"step": 0}, {"step": 1}]
    assert seen.count(None) >= 2


def test_a_watcher_may_cancel(launch: Launch) -> None:
    process = launch()
    training = process.submit("train", {"steps": 1000, "seconds": 0.02})

    def watch(values: dict[str, Any] | None) -> None:
        if values == {"step": 3}:
            process.submit("cancel")

    assert 3 < training.result(watch).values["steps"] < 1000


def test_what_a_watcher_raises_ends_the_wait(launch: Launch) -> None:
    process = launch()
    training = process.submit("train", {"steps": 1000, "seconds": 0.02})

    def watch(values: dict[str, Any] | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.result(watch)
    process.kill()
    assert not children()


def test_silence_is_over_with_each_frame_though_a_watcher_looks(launch: Launch) -> None:
    process = launch()
    assert process.submit("train", {"steps": 3, "seconds": 0.3}, seconds=0.7).result(lambda values: None).values == {"steps": 3}
    with pytest.raises(WorkerHung, match=r"took over 0\.3 s to answer train"):
        process.submit("train", {"steps": 1, "seconds": 30.0}, seconds=0.3).result(lambda values: None)


def test_ctrl_c_is_the_launcher_s_and_sigterm_ends_a_request_early(launch: Launch) -> None:
    process = launch()
    worker = pid(process)
    training = process.submit("train", {"steps": 1000, "seconds": 0.02})
    os.kill(worker, signal.SIGINT)

    def watch(values: dict[str, Any] | None) -> None:
        if values == {"step": 5}:
            os.kill(worker, signal.SIGTERM)

    assert 5 < training.result(watch).values["steps"] < 1000
    with pytest.raises(WorkerDied, match="exit code 0"):
        process.request("probe")


def test_sigterm_ends_a_worker_that_waits(launch: Launch) -> None:
    process = launch()
    worker = pid(process)
    os.kill(worker, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(worker)
