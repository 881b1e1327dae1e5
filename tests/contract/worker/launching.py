"""What the launcher's tests share: the fake stack, one product, and a look at this process's children (Linux)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from contract.worker.process import StackProcess

FAKE_STACK = Path(__file__).with_name("fake_stack.py")
A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(12, dtype=np.float32).reshape(3, 4)
Launch = Callable[..., StackProcess]


def matmul(process: StackProcess) -> np.ndarray:
    return process.compute("matmul", {"dtype": "float32"}, {"a": A, "b": B}).tensors["y"]


def pid(process: StackProcess) -> int:
    return int(process.request("probe").values["pid"])


def is_alive(number: int) -> bool:
    """False for a zombie as well."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children() -> set[int]:
    """This process's children, zombies too."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(number) for number in (task / "children").read_text().split()}
    return found
