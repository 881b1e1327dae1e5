"""Files by content hash, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from contract.worker.files import FileNeeded, FileReference, load, receive, replacing, sha256_of

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file({"w": WEIGHT}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def reference(path: Path, *, tensor: str = "w") -> FileReference:
    return FileReference(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), tensor=tensor, path=str(path))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, ml_dtypes.bfloat16])
def test_loads_bit_for_bit(path: Path, dtype: type) -> None:
    weight = np.arange(-3, 3).astype(dtype).reshape(2, 3)
    save_file({"w": weight}, path)
    got = load(reference(path))
    assert (got.dtype, got.shape, got.tobytes()) == (weight.dtype, weight.shape, weight.tobytes())


def test_an_absent_file_is_needed(path: Path) -> None:
    wanted = reference(path)
    path.unlink()
    with pytest.raises(FileNeeded) as caught:
        load(wanted)
    assert caught.value.sha256 == wanted.sha256


def test_a_file_of_other_content_is_no_substitute(path: Path) -> None:
    wanted = reference(path)
    save_file({"w": WEIGHT + 1}, path)
    with pytest.raises(FileNeeded):
        load(wanted)


def test_a_change_that_keeps_size_and_time_is_seen(path: Path) -> None:
    wanted = reference(path)
    load(wanted)
    before = path.stat()
    save_file({"w": WEIGHT + 1}, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(FileNeeded):
        load(wanted)


def test_an_unreadable_place_is_as_good_as_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is made by hand."""
    wanted = reference(path)

    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(FileNeeded):
        load(wanted)


def test_a_received_file_serves_from_then_on(path: Path) -> None:
    wanted, content = reference(path), path.read_bytes()
    path.unlink()
    received = receive(wanted.sha256, content)
    assert received.read_bytes() == content
    np.testing.assert_array_equal(load(wanted), WEIGHT)


def test_a_received_file_that_rots_is_needed_again(path: Path) -> None:
    wanted, content = reference(path), path.read_bytes()
    path.unlink()
    received = receive(wanted.sha256, content)
    received.write_bytes(content[:-1])
    with pytest.raises(FileNeeded):
        load(wanted)


def test_other_content_than_asked_for_is_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match="send it again"):
        receive("0" * 64, b"something else")
    assert not cache.exists()


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_a_name_that_is_no_hash_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="give 64 hexadecimal digits"):
        load(FileReference(sha256=name, tensor="w", path="/nowhere"))


def test_an_absent_tensor_is_named(path: Path) -> None:
    with pytest.raises(ValueError, match="has no tensor 'v'; it has 1 others"):
        load(reference(path, tensor="v"))


def test_hashes_as_the_standard_says(tmp_path: Path) -> None:
    """SHA-256 of "abc": FIPS 180-4's example."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    with replacing(target) as file:
        file.write(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["file"]


def write_half(target: Path) -> None:
    with replacing(target) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_half(target)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_that_leads_to_itself_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    """Not Python's RuntimeError, which no caller looks for."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links") as caught, replacing(loop):
        pass
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(loop))
