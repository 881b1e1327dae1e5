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
    assert found.told().startswith("the C compiler of kernels that tinygrad's cache lacks (zig): clang version ")
    assert found.note() == "no clang on PATH: kernels are compiled by the clang inside the wheel ziglang"
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


@pytest.fixture
def clang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program called clang on the path: a link to zig's clang, which a test may put another in place of."""
    folder = tmp_path / "bin"
    folder.mkdir()
    own = folder / "clang"
    shim = compiler.prepare().command
    monkeypatch.delenv("CC")
    own.write_text(f'#!/bin/sh\nexec "{shim}" "$@"\n')
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(compiler.shutil, "which", lambda name: str(own))
    return own


def test_clang_on_the_path_is_enough(clang: Path) -> None:
    found = compiler.prepare()
    assert found == compiler.Compiler(kind="clang", command="clang")
    assert "CC" not in os.environ
    assert found.note() == ""


def test_a_clang_that_does_not_work_is_passed_over_and_told_of(clang: Path) -> None:
    clang.write_text("#!/bin/sh\necho >&2\necho 'clang: no such target' >&2\nexit 3\n")
    found = compiler.prepare()
    assert (found.kind, os.environ["CC"]) == ("zig", found.command)
    assert found.note().startswith("clang on PATH does not work (can't compile for tinygrad (exit code 3: clang: no such target)): ")


def test_a_clang_that_does_not_work_is_refused_where_there_is_no_wheel(clang: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clang.write_text("#!/bin/sh\nexit 3\n")
    monkeypatch.setattr(compiler, "_zig", lambda: None)
    with pytest.raises(EnvironmentUnfit, match=r"clang \(clang\) can't compile .* it said nothing.*pip install 'twostack\[tinygrad\]'"):
        compiler.prepare()


def test_zig_without_space_to_work_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "not there"))
    monkeypatch.setattr(compiler.tempfile, "gettempdir", lambda: "/where/zig/works")
    with pytest.raises(EnvironmentUnfit, match=r"\(zig\) can't compile for tinygrad \(exit code 1: mktemp.*free some space in /where/zig"):
        compiler.prepare()


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
