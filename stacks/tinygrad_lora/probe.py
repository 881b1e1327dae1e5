"""What tinygrad can do on this machine."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinygrad import Device, dtypes
from tinygrad.helpers import NUM_CPU_THREADS

from contract.run.device_memory import format_size
from stacks.tinygrad_lora.compiler import Compiler
from stacks.tinygrad_lora.memory import largest_tensor

_DTYPES = {"float32": dtypes.float32, "float64": dtypes.float64, "bfloat16": dtypes.bfloat16}


def dtypes_of(device: str) -> list[str]:
    """The dtypes of this stack that the device itself has: WebGPU and Metal have no float64."""
    supported = Device[device].renderer.supported_dtypes()
    return [name for name, dtype in _DTYPES.items() if dtype in supported]


def describe(device: str, compiler: Compiler | None) -> dict[str, Any]:
    """device, name, dtypes, versions, compiler, threads, notes; and defects: none are known of what this stack uses."""
    on_cpu = device == "CPU"
    return {
        "device": device,
        "name": _cpu_name() if on_cpu else f"{device} {getattr(Device[device], 'arch', '')}".strip(),
        "dtypes": dtypes_of(device),
        "versions": {"tinygrad": version("tinygrad"), "python": platform.python_version()},
        "compiler": None if compiler is None else {"kind": compiler.kind, "command": compiler.command, "version": compiler.version()},
        "threads": NUM_CPU_THREADS.value if on_cpu else None,
        "notes": _notes(device, compiler),
        "defects": {},
    }


def _notes(device: str, compiler: Compiler | None) -> list[str]:
    notes = []
    if "float64" not in dtypes_of(device):
        notes.append(f"{device} has no float64: it is held against the CPU's")
    if (limit := largest_tensor(device)) is not None:
        notes.append(f"no tensor on {device} may take over {format_size(limit[0])} ({limit[1]})")
    if compiler is not None and (choice := compiler.note()):
        notes.append(choice)
    return notes


def _cpu_name() -> str:
    """The processor's model, as Linux names it; elsewhere as the platform does."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
