"""How much memory a device has, and how much of it is free now; in bytes."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from contract.errors import ContractError, brief

_UNITS = {"B": 1, **{f"{letter}iB": 2 ** (10 * power) for power, letter in enumerate("KMGT", start=1)}}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(B|[KMGT]iB)", re.ASCII)

_QUERY = ("nvidia-smi", "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits", "--id=0")
_QUERY_SECONDS = 10.0
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_OF_SELF = Path("/proc/self/cgroup")


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes in all, bytes free now (None where only the whole is known), and who says so."""

    total: int
    available: int | None
    source: str


def parse_size(text: str, *, place: str = "--device-memory") -> int:
    """Bytes of a size such as 16GiB or 1.5 GiB.

    Raises:
        ContractError: it's no size, or none at all.
    """
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size == 0:
        raise ContractError(place, got=brief(text), allowed=f"a number and one of {', '.join(_UNITS)}", remedy="write it so: 16GiB")
    return size


def format_size(size: int) -> str:
    """Bytes with three significant digits or more: 1.95 GiB, 512 MiB."""
    unit = next((unit for unit in reversed(_UNITS) if size >= _UNITS[unit]), "B")
    number = size / _UNITS[unit]
    return f"{number:.{0 if unit == 'B' or number >= 100 else 2}f} {unit}"


def measure(device: str) -> DeviceMemory | None:
    """What a device of this machine has; None where nothing here can tell."""
    name = device.partition(":")[0]
    if name == "CPU":
        return _host()
    return _cuda() if name == "CUDA" else None


def _host() -> DeviceMemory:
    """Main memory, or the control group's share of it."""
    import psutil

    memory = psutil.virtual_memory()
    total, available, source = int(memory.total), int(memory.available), "main memory"
    for limit, used in _limits():
        if limit < total:
            total, source = limit, "the control group's limit"
        available = min(available, max(0, limit - used))
    return DeviceMemory(total=total, available=available, source=source)


def _limits() -> list[tuple[int, int]]:
    """(limit, used) of this process's control group and of all above it: version 2, or version 1."""
    try:
        lines = _CGROUP_OF_SELF.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/") or ".." in path or controllers not in ("", "memory"):
            continue
        root = _CGROUPS / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = root / path.strip("/")
        # in a container the path may be the host's, which is not to be seen: the root is then the container's own group
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            limit, used = (_number(folder / name) for name in names)
            if limit is not None:
                found.append((limit, used or 0))
    return found


def _number(path: Path) -> int | None:
    """A whole number in a file; None where there is none ("max": no limit)."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _cuda() -> DeviceMemory | None:
    """The first NVIDIA GPU, as its driver's tool tells."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
        total, free = (int(part) * 2**20 for part in done.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return DeviceMemory(total=total, available=free, source="nvidia-smi")
