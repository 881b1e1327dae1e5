"""How much memory a device has: sizes as they are written, limits of control groups, a GPU's driver."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ContractError
from contract.run import device_memory
from contract.run.device_memory import DeviceMemory, format_size, measure, parse_size

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GiB", 16 * GIB), ("1.5 GiB", 3 * GIB // 2), ("512MiB", GIB // 2), ("1TiB", 1024 * GIB), ("7B", 7), ("2KiB", 2048)],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "16", "16GB", "-1GiB", "0GiB", "0.0000001B", "1e9B", "GiB", "16 GiB ", "nanGiB", "9" * 400 + "B", "١GiB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match=r"--device-memory: got .*; allowed: a number and one of B, KiB, MiB, GiB, TiB"):
        parse_size(text)


@given(text=st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    message = ""
    try:
        size = parse_size(text)
    except ContractError as error:
        size, message = 1, str(error)
    assert size > 0
    assert "\n" not in message


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (2048, "2.00 KiB"), (513 * 2**20, "513 MiB"), (GIB + GIB // 2, "1.50 GiB"), (5 * 2**50, "5120 TiB")],
)
def test_a_size_in_words(size: int, text: str) -> None:
    assert format_size(size) == text


def controlled(monkeypatch: pytest.MonkeyPatch, folder: Path, lines: str, files: dict[str, str]) -> DeviceMemory:
    """The host as a process sees it whose control group is described by some files."""
    for name, content in files.items():
        (folder / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "fs" / name).write_text(content)
    (folder / "self").write_text(lines)
    monkeypatch.setattr(device_memory, "_CGROUPS", folder / "fs")
    monkeypatch.setattr(device_memory, "_CGROUP_OF_SELF", folder / "self")
    found = measure("CPU")
    assert found is not None
    return found


def test_without_a_limit_it_is_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = controlled(monkeypatch, tmp_path, "0::/", {"memory.max": "max\n"})
    assert (found.total, found.source) == (psutil.virtual_memory().total, "main memory")
    assert found.available is not None
    assert 0 < found.available <= found.total


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        ("0::/job\n", {"job/memory.max": "1000000", "job/memory.current": "400000"}),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "1000000", "a/memory.current": "400000"}),
        ("0::/host/path\n", {"memory.max": "1000000", "memory.current": "400000"}),
        ("3:cpu:/\n4:memory:/job\n", {"memory/job/memory.limit_in_bytes": "1000000", "memory/job/memory.usage_in_bytes": "400000"}),
    ],
    ids=["version 2", "a parent's", "a container's", "version 1"],
)
def test_a_control_group_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: str, files: dict[str, str]) -> None:
    found = controlled(monkeypatch, tmp_path, lines, files)
    assert found == DeviceMemory(total=1000000, available=600000, source="the control group's limit")


def test_a_limit_over_the_machine_s_memory_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = controlled(monkeypatch, tmp_path, "0::/", {"memory.max": str(2**62), "memory.current": "5"})
    assert (found.total, found.source) == (psutil.virtual_memory().total, "main memory")


@pytest.mark.parametrize("lines", ["", "nonsense\n", "0::/../../..\n"])
def test_a_strange_control_group_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: str) -> None:
    assert controlled(monkeypatch, tmp_path, lines, {}).source == "main memory"


def answers(monkeypatch: pytest.MonkeyPatch, what: str | Exception) -> None:
    def run(command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        if isinstance(what, Exception):
            raise what
        return subprocess.CompletedProcess(command, 0, stdout=what)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "81559, 80000\n")
    assert measure("CUDA") == measure("CUDA:0") == DeviceMemory(total=81559 * 2**20, available=80000 * 2**20, source="nvidia-smi")


@pytest.mark.parametrize(
    "what",
    [
        FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 10), subprocess.CalledProcessError(9, "nvidia-smi"),
        "", "[N/A], [N/A]\n", "1\n", "1, 2, 3\n",
    ],
    ids=repr,
)  # fmt: skip
def test_a_gpu_that_does_not_tell_is_not_known(monkeypatch: pytest.MonkeyPatch, what: str | Exception) -> None:
    answers(monkeypatch, what)
    assert measure("CUDA") is None


def test_other_devices_are_not_known() -> None:
    assert measure("WEBGPU") is None
