"""The C compiler behind tinygrad's CPU device: the user's own, clang, or the one inside the wheel `ziglang`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from contract.errors import EnvironmentUnfit
from contract.worker.files import cache_folder, replacing

_REMEDY = "put clang on PATH, or run: pip install 'twostack[tinygrad]' (it brings the wheel ziglang)"
_STDERR = 200
"""Letters of what a compiler said that a message shows."""

_SHIM = """\
#!/bin/sh
# clang's command line as tinygrad writes it, done by zig's clang: source from stdin, object to stdout.
# zig keeps every object that it made, and tinygrad keeps them too: so zig's cache is thrown away.
cache=$(mktemp -d) || exit 1
trap 'rm -rf "$cache"' EXIT
trap 'exit 1' HUP INT TERM
for argument do
  shift
  case $argument in
    --target=arm64-*) set -- "$@" -target aarch64-freestanding-none ;;
    --target=*) argument=${argument#--target=}; set -- "$@" -target "${argument%%-*}-freestanding-none" ;;
    -march=*) set -- "$@" "-mcpu=${argument#-march=}" ;;
    *) set -- "$@" "$argument" ;;
  esac
done
ZIG_LOCAL_CACHE_DIR=$cache ZIG_GLOBAL_CACHE_DIR=$cache @ZIG@ cc -g0 -fno-sanitize=all -fno-stack-protector \\
  -fno-asynchronous-unwind-tables "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A working compiler: which kind it is, the program that tinygrad calls, and why an earlier choice was passed over (or "")."""

    kind: str
    command: str
    passed_over: str = ""

    def version(self) -> str:
        """The first line of what the compiler says of itself."""
        done = subprocess.run([self.command, "--version"], capture_output=True, text=True, check=False)
        return done.stdout.partition("\n")[0].strip() or "unknown"

    def note(self) -> str:
        """What a user is to know of the choice; "" where there is nothing to tell."""
        if self.kind != "zig":
            return ""
        why = f"clang on PATH does not work ({self.passed_over})" if self.passed_over else "no clang on PATH"
        return f"{why}: kernels are compiled by the clang inside the wheel ziglang"

    def told(self) -> str:
        """For a run's manifest: another compiler may contract and order otherwise, and so give other bits."""
        return f"the C compiler of kernels that tinygrad's cache lacks ({self.kind}): {self.version()}"

    def remedy(self) -> str:
        """What to do where this one fails. CC comes before everything else, so while it is set nothing else helps."""
        if self.kind == "CC":
            return f"unset CC, or let it name a clang; else {_REMEDY}"
        if self.kind == "zig":
            return f"free some space in {tempfile.gettempdir()}, where zig works, or put a clang on PATH that does"
        return _REMEDY


def prepare() -> Compiler:
    """Sees to it that tinygrad's CPU device finds a compiler, and tries it once.

    tinygrad calls `$CC`, or `clang` where that is not set, reading the variable when it first compiles. A CC of the user's is taken or
    refused; in place of a clang on the path that does not work, the wheel's serves.

    Raises:
        EnvironmentUnfit: there is none, it does not work, or the cache folder can't be written.
    """
    zig = _zig()
    shim = None if zig is None else _shim_path(zig)
    chosen = os.environ.get("CC")
    if chosen and chosen != str(shim):
        return _working(Compiler(kind="CC", command=chosen))
    passed_over = ""
    if shutil.which("clang"):
        clang = Compiler(kind="clang", command="clang")
        passed_over = _fault(clang)
        if not passed_over or zig is None:
            return _working(clang)
    if zig is None or shim is None:
        raise EnvironmentUnfit(f"tinygrad's CPU device needs a C compiler and there is neither CC, clang nor the wheel ziglang; {_REMEDY}")
    _write(shim, _shim_text(zig))
    os.environ["CC"] = str(shim)
    return replace(_working(Compiler(kind="zig", command=str(shim))), passed_over=passed_over)


def _working(compiler: Compiler) -> Compiler:
    if fault := _fault(compiler):
        raise EnvironmentUnfit(f"the C compiler {compiler.command} ({compiler.kind}) {fault}; {compiler.remedy()}")
    return compiler


def first_line(said: bytes) -> str:
    """The first line of a compiler's standard error that says anything."""
    lines = (line.strip() for line in said.decode(errors="replace").splitlines())
    return next(filter(None, lines), "it said nothing")[:_STDERR]


def _zig() -> Path | None:
    """The zig program inside the wheel `ziglang`, found without importing it."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        return None
    zig = Path(spec.origin).resolve().parent / "zig"
    return zig if zig.exists() else None


def _shim_text(zig: Path) -> str:
    return _SHIM.replace("@ZIG@", shlex.quote(str(zig)))


def _shim_path(zig: Path) -> Path:
    """A path named by the shim's content, so that another zig or another shim gets a file of its own."""
    return cache_folder() / "compilers" / f"zig-clang-{hashlib.sha256(_shim_text(zig).encode()).hexdigest()[:16]}"


def _write(path: Path, text: str) -> None:
    if path.exists() and os.access(path, os.X_OK):
        return
    try:
        with replacing(path) as file:
            file.write(text.encode())
            os.fchmod(file.fileno(), 0o755)
    except OSError as error:
        raise EnvironmentUnfit(f"{path.parent} can't be written ({error.strerror}); make it writable or set XDG_CACHE_HOME") from None


def _fault(compiler: Compiler) -> str:
    """Compiles one line the way that tinygrad does: a CC that is no clang fails here, and not in the middle of a run. "": it works."""
    machine = platform.machine().lower()
    target = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)
    flags = ["-c", "-x", "c", "-O2", "-fPIC", "-ffreestanding", "-nostdlib", f"--target={target}-none-unknown-elf", "-", "-o", "-"]
    try:
        done = subprocess.run([compiler.command, *flags], input=b"int one(void) { return 1; }\n", capture_output=True, check=False)
    except OSError as error:
        return f"can't be run: {error.strerror}"
    if done.returncode == 0 and done.stdout.startswith(b"\x7fELF"):
        return ""
    return f"can't compile for tinygrad (exit code {done.returncode}: {first_line(done.stderr)})"
