"""MKL's vector library has found its processor before a request can start two threads on it (docs/upstream/torch_vml_first_call.py)."""

from __future__ import annotations

import subprocess
import sys

# The variable is no symbol of the library: its address is in the first instruction, mov eax, [rip + offset], of the function that keeps it.
NUMBER = """
import ctypes, pathlib
import torch
library = ctypes.CDLL(str(pathlib.Path(torch.__path__[0]) / "lib" / "libtorch_cpu.so"))
function = ctypes.cast(library.mkl_vml_serv_cpu_detect, ctypes.c_void_p).value
code = ctypes.string_at(function, 6)
assert code[:2] == bytes([0x8B, 0x05]), "this build of MKL keeps the processor's number in another way: see whether it still races"
number = ctypes.c_int.from_address(function + 6 + int.from_bytes(code[2:], "little", signed=True))
NOT_ASKED_YET = -1
"""


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", NUMBER + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_stack_starts_it_before_any_request() -> None:
    """The race is between threads that ask first, so what counts is that one thread has asked: no luck is in that."""
    started = in_a_fresh_process("""
from stacks.torch_qlora.ops import TorchQlora
assert number.value == NOT_ASKED_YET, "an import has computed something; that was to be the first call"
TorchQlora("CPU")
print(number.value != NOT_ASKED_YET)
""")
    assert started == "True\n"
