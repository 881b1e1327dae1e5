"""Weights by content hash between a launcher and a worker: sent once, only when absent, never another's."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from contract.errors import MissingError
from contract.worker.files import FileReference, sha256_of
from contract.worker.process import ProtocolBroken, RequestFailed, StackProcess
from tests.contract.worker.launching import FAKE_STACK, A, B, Launch, pid


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


def test_a_part_of_a_tensor_and_a_turned_one(launch: Launch, reference: FileReference, cache: Path) -> None:
    part = dataclasses.replace(reference, start=1, stop=2)
    turned = dataclasses.replace(part, transposed=True)
    answer = launch().request("forward", tensors={"x": part, "y": turned, "z": reference})
    np.testing.assert_array_equal(answer.tensors["x"], A[..., 1:2])
    np.testing.assert_array_equal(answer.tensors["y"], A[..., 1:2].T)
    np.testing.assert_array_equal(answer.tensors["z"], A)


def test_what_is_whole_says_nothing_of_parts(reference: FileReference) -> None:
    """A worker of another language may know the three fields of protocol 1's first days alone."""
    assert set(reference.fields()) == {"sha256", "tensor", "path"}
    assert FileReference(**dataclasses.replace(reference, start=0).fields()).start == 0


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
