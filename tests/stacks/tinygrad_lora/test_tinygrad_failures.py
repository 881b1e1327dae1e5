"""What tinygrad raises where a compiler, its cache or a device's memory gives out, as one line that says what to do."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygrad.device import CompileError
from tinygrad.device import Compiler as DeviceCompiler

from contract.errors import EnvironmentUnfit
from contract.training.trainer import OutOfMemory
from contract.worker.process import RequestFailed
from stacks.tinygrad_lora import failures
from stacks.tinygrad_lora.failures import TellingCompiler, require_cache, telling, told
from tests.stacks.tinygrad_lora import tinygrad_worker

ONE_LINE = r"^[^\n]+$"


class Clang:
    """Calls a program as tinygrad's compiler of the CPU calls clang; without a cache."""

    def __init__(self, *command: str) -> None:
        self._command = command

    def compile_cached(self, src: str) -> bytes:
        return subprocess.check_output(self._command, input=src.encode(), stderr=subprocess.DEVNULL)


class Driver:
    """Raises what it was given."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def compile_cached(self, src: str) -> bytes:
        raise self._error


def compiler(own: Any) -> TellingCompiler:
    return telling(own, name="the compiler of X", remedy="do this")


def test_a_compiler_that_works_is_as_it_was() -> None:
    assert compiler(Clang("cat")).compile_cached("int x;") == b"int x;"


def test_what_clang_says_of_a_kernel_is_told() -> None:
    clang = Clang("sh", "-c", "cat > /dev/null; echo >&2; echo '<stdin>:1:5: error: no such type' >&2; echo more >&2; exit 1")
    with pytest.raises(EnvironmentUnfit, match=ONE_LINE) as caught:
        compiler(clang).compile_cached("int x;")
    assert str(caught.value) == (
        "the compiler of X failed on a kernel (exit code 1: <stdin>:1:5: error: no such type); do this"
    )  # fmt: skip


def test_a_clang_that_was_killed_once_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "clang").write_text(f"if mkdir {tmp_path}/tried 2>/dev/null; then kill -9 $$; fi; cat\n")
    assert compiler(Clang("sh", str(tmp_path / "clang"))).compile_cached("int x;") == b"int x;"


def test_a_clang_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnfit, match=r"the compiler of X failed on a kernel \(No such file or directory\); do this"):
        compiler(Clang(str(tmp_path / "clang"))).compile_cached("int x;")


@pytest.mark.parametrize("raised", [CompileError("Nvrtc Error 6, NVRTC_ERROR_COMPILATION\nkernel.cu(3): error: a\n")])
def test_what_a_driver_says_of_a_kernel_is_told(raised: Exception) -> None:
    with pytest.raises(EnvironmentUnfit, match=ONE_LINE) as caught:
        compiler(Driver(raised)).compile_cached("int x;")
    assert "(Nvrtc Error 6, NVRTC_ERROR_COMPILATION)" in str(caught.value)


def test_a_compiler_is_made_to_tell_once() -> None:
    own = Clang("cat")
    assert telling(compiler(own), name="Y", remedy="do that").own is own


class Cache:
    """tinygrad's connection to a cache of its own: in place of the user's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        from tinygrad import helpers

        monkeypatch.setattr(helpers, "CACHEDB", str(path))
        monkeypatch.setattr(failures, "CACHEDB", str(path))
        monkeypatch.setattr(helpers, "_db_connection", None)
        monkeypatch.setattr(helpers, "_db_tables", set())


def test_a_cache_that_can_be_written_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Cache(monkeypatch, tmp_path / "new" / "cache.db")
    require_cache()
    assert (tmp_path / "new" / "cache.db").is_file()


def test_a_cache_where_a_file_is_in_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Cache(monkeypatch, tmp_path / "file" / "cache.db")
    with pytest.raises(EnvironmentUnfit, match=r"cache of kernels .*/file/cache.db can't be used \(.*\); make it writable, .*CACHEDB"):
        require_cache()


def test_a_cache_that_may_not_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tinygrad import helpers

    Cache(monkeypatch, tmp_path / "cache.db")
    sqlite3.connect(tmp_path / "cache.db").execute("CREATE TABLE x (y)")
    monkeypatch.setattr(
        helpers, "_db_connection", sqlite3.connect(f"file:{tmp_path}/cache.db?mode=ro", uri=True, isolation_level="IMMEDIATE")
    )
    with pytest.raises(EnvironmentUnfit, match=r"can't be used \(attempt to write a readonly database\); make it writable"):
        require_cache()


def test_a_cache_that_is_no_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_text("this is none" * 100)
    Cache(monkeypatch, tmp_path / "cache.db")
    with pytest.raises(EnvironmentUnfit, match=r"can't be used \(file is not a database\); remove it"):
        require_cache()


def test_no_cache_is_asked_for_where_the_user_wants_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Cache(monkeypatch, tmp_path)
    monkeypatch.setattr(failures.CACHELEVEL, "value", 0)
    require_cache()


def test_a_disk_that_fills_up_during_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tinygrad import helpers

    Cache(monkeypatch, tmp_path / "cache.db")
    require_cache()
    own = DeviceCompiler("a_key")
    own.compile = lambda src: bytes(100_000)
    full = compiler(own)
    helpers.db_connection().execute("PRAGMA max_page_count=4")
    with pytest.raises(EnvironmentUnfit, match=r"can't be used \(database or disk is full\); .*free some space"):
        full.compile_cached("int x;")


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("CUDA Error 2, out of memory"), RuntimeError("module load failed with status code 2: CUDA_ERROR_OUT_OF_MEMORY"),
        RuntimeError("OpenCL Error -4: MEM_OBJECT_ALLOCATION_FAILURE"),
        RuntimeError("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"),
    ],
)  # fmt: skip
def test_memory_that_ends_in_a_launch_is_told_so(raised: RuntimeError) -> None:
    @told
    def launch() -> None:
        raise raised

    with pytest.raises(OutOfMemory) as caught:
        launch()
    assert str(caught.value) == str(raised)


def test_a_kernel_that_a_driver_does_not_take() -> None:
    @told
    def launch() -> None:
        raise RuntimeError("Shader compilation failed: unknown type\nmore")

    with pytest.raises(EnvironmentUnfit, match=r"failed on a kernel \(Shader compilation failed: unknown type\); update it, or use"):
        launch()


@pytest.mark.parametrize("raised", [RuntimeError("CUDA Error 700, an illegal memory access"), ValueError("out of memory")])
def test_what_is_no_failure_of_the_device_s_stays_what_it_is(raised: Exception) -> None:
    @told
    def launch() -> None:
        raise raised

    with pytest.raises(type(raised)) as caught:
        launch()
    assert caught.value is raised


def test_a_worker_whose_cache_can_not_be_opened_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CACHEDB", str(tmp_path / "file" / "cache.db"))
    with pytest.raises(RequestFailed, match="tinygrad's cache of kernels") as caught, tinygrad_worker.start():
        pass
    assert caught.value.error_class == "EnvironmentUnfit"


def test_a_compiler_that_fails_on_a_kernel_of_a_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It compiles what a worker starts with, and then no more; the next request finds it well again."""
    from stacks.tinygrad_lora.compiler import prepare

    real = prepare().command
    broken = tmp_path / "broken"
    own = tmp_path / "clang"
    own.write_text(f'#!/bin/sh\nif [ -e "{broken}" ]; then echo "no space" >&2; exit 7; fi\nexec "{real}" "$@"\n')
    own.chmod(0o755)
    monkeypatch.setenv("CC", str(own))
    monkeypatch.setenv("CACHEDB", str(tmp_path / "cache.db"))
    with tinygrad_worker.start() as process:
        broken.touch()
        given = {"a": np.ones((2, 3), np.float32), "b": np.ones((3, 4), np.float32)}
        with pytest.raises(RequestFailed, match=r"failed on a kernel \(exit code 7: no space\); unset CC") as caught:
            process.compute("matmul", {}, given)
        assert caught.value.error_class == "EnvironmentUnfit"
        broken.unlink()
        np.testing.assert_array_equal(process.compute("matmul", {}, given).tensors["y"], np.full((2, 4), 3, np.float32))


def test_memory_of_the_cpu_that_is_refused_is_a_memory_error() -> None:
    """In a process of its own, whose address space is limited."""
    program = (
        "import resource\n"
        "from stacks.tinygrad_lora.device import open_device\n"
        "open_device('CPU')\n"
        "from tinygrad.device import Buffer\n"
        "from tinygrad import dtypes\n"
        "import psutil\n"
        "resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**28,) * 2)\n"
        "first = Buffer('CPU', 2**27, dtypes.uint8).allocate()\n"
        "del first\n"  # it goes to tinygrad's own store of buffers, which is freed for the next one
        "second = Buffer('CPU', 2**27 + 2**26, dtypes.uint8).allocate()\n"
        "try:\n"
        "    Buffer('CPU', 2**28, dtypes.uint8).allocate()\n"
        "except MemoryError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Allocation of 256.00 MB failed on CPU.")
