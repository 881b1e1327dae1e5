"""Finding a C compiler for tinygrad, and the script that makes one of the wheel ziglang."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from contract.errors import EnvironmentUnfit
from stacks.tinygrad_lora import compiler

FLAGS = ("-c", "-x", "c", "-O2", "-fPIC", "-ffreestanding", "-fno-math-errno", "-nostdlib", "-fno-ident")
X86_64, AARCH64 = 62, 183
"""e_machine of an ELF file (the generic System V ABI)."""


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No CC, no clang, a cache folder and a temporary folder of our own, with spaces in their names."""
    monkeypatch.setenv("CC", "")
    monkeypatch.delenv("CC")
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiler, "cache_folder", lambda: tmp_path / "the cache")
    temporary = tmp_path / "for a while"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    return temporary


def compile_with(command: str, *flags: str, source: bytes = b"float f(float x) { return x; }") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([command, *FLAGS, *flags, "-", "-o", "-"], input=source, capture_output=True, check=False)


def machine_of(elf: bytes) -> int:
    assert elf.startswith(b"\x7fELF")
    return int.from_bytes(elf[18:20], "little")


def test_zig_serves_where_there_is_no_clang(bare_machine: Path) -> None:
    found = compiler.prepare()
    assert found.kind == "zig"
    assert os.environ["CC"] == found.command
    assert "clang" in found.version()
    assert compiler.prepare() == found
    assert len(list(Path(found.command).parent.iterdir())) == 1


def test_a_path_with_a_space_and_a_quote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zig = compiler._zig()
    assert zig is not None
    elsewhere = tmp_path / "it's here"
    elsewhere.symlink_to(zig.parent)
    monkeypatch.setattr(compiler, "_zig", lambda: elsewhere / "zig")
    assert compiler.prepare().kind == "zig"


@pytest.mark.parametrize(
    ("flags", "machine"),
    [
        (("--target=x86_64-none-unknown-elf", "-march=x86_64_v3"), X86_64),
        (("--target=arm64-none-unknown-elf", "-ffixed-x18", "-mcpu=cortex_a72"), AARCH64),
    ],
)
def test_tinygrads_targets(bare_machine: Path, flags: tuple[str, ...], machine: int) -> None:
    done = compile_with(compiler.prepare().command, *flags)
    assert machine_of(done.stdout) == machine
    assert list(bare_machine.iterdir()) == []


def test_a_faulty_source_fails_and_leaves_nothing(bare_machine: Path) -> None:
    done = compile_with(compiler.prepare().command, "--target=x86_64-none-unknown-elf", source=b"float f(")
    assert done.returncode != 0
    assert done.stdout == b""
    assert b"error" in done.stderr
    assert list(bare_machine.iterdir()) == []


def test_a_users_own_compiler_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "mine"
    own.write_text(f'#!/bin/sh\nexec "{compiler.prepare().command}" "$@"\n')
    own.chmod(0o755)
    monkeypatch.setenv("CC", str(own))
    assert compiler.prepare() == compiler.Compiler(kind="CC", command=str(own))
    assert os.environ["CC"] == str(own)


def test_clang_on_the_path_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: f"/somewhere/{name}")
    assert compiler._find() == compiler.Compiler(kind="clang", command="clang")
    assert "CC" not in os.environ


@pytest.mark.parametrize(
    ("own", "message"), [("/no/such/compiler", "can't be run: No such file"), ("false", r"exit code 1.*put clang on PATH")]
)
def test_a_users_compiler_that_does_not_work(monkeypatch: pytest.MonkeyPatch, own: str, message: str) -> None:
    monkeypatch.setenv("CC", own)
    with pytest.raises(EnvironmentUnfit, match=message):
        compiler.prepare()


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_zig", lambda: None)
    with pytest.raises(EnvironmentUnfit, match=r"neither CC, clang nor the wheel ziglang; put clang on PATH, or run: pip install"):
        compiler.prepare()


def test_an_unwritable_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setattr(compiler, "cache_folder", lambda: tmp_path / "a file")
    with pytest.raises(EnvironmentUnfit, match="can't be written"):
        compiler.prepare()
