"""torch, CPU with MKL: a process's first parallel call of sqrt, exp, log, sin, cos, tanh or erf may be imprecise in one thread's part.

A race, so that it shows in some processes only: 9 of 40 on an idle machine of 2 cores, few or none on a busy one. The cause, read in
libtorch_cpu.so of torch 2.13.0, is in MKL's vector library. mkl_vml_serv_cpu_detect keeps the processor's number in a static variable
without a lock, and stores it twice: first the number that mkl_serv_vml_cpu_detect returns, then what a table makes of it. A thread that
reads in between takes kernels by the wrong number, with 11 bits of precision in float32. All functions and dtypes share the variable, so
that any earlier call on one thread prevents it.

The script starts fresh processes and counts; then it puts the first number into the variable by hand, for the length of a call each, to
see what a thread in between computes. That part is no race.

Needs torch and NumPy. Exit 1: the defect shows, in a process or by that number; 0: it doesn't.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

PROCESSES = 20
FUNCTIONS = ("sqrt", "exp", "log", "sin", "cos", "tanh", "erf", "reciprocal")
DTYPES = (torch.float32, torch.float64)


def arguments(dtype: torch.dtype) -> torch.Tensor:
    """100,000 numbers: enough for two threads."""
    return torch.from_numpy(np.random.default_rng(0).uniform(1, 4, 100_000)).to(dtype)


def differ_in_a_fresh_process() -> int:
    """How many of the first call's results are not the second's."""
    done = subprocess.run([sys.executable, __file__, "fresh"], check=True, capture_output=True, text=True)
    return int(done.stdout)


def fresh() -> int:
    x = arguments(torch.float32)
    print(int(torch.count_nonzero(torch.sqrt(x) != torch.sqrt(x))))
    return 0


def stored(library: ctypes.CDLL) -> ctypes.c_int | None:
    """MKL's variable, which the first instruction of its function reads (mov eax, [rip + offset]); None where that is otherwise."""
    try:
        function = ctypes.cast(library.mkl_vml_serv_cpu_detect, ctypes.c_void_p).value
    except AttributeError:
        return None
    code = ctypes.string_at(function, 6)
    return ctypes.c_int.from_address(function + 6 + int.from_bytes(code[2:], "little", signed=True)) if code[:2] == b"\x8b\x05" else None


def error_in_between(function: str, dtype: torch.dtype, variable: ctypes.c_int, first: int) -> float:
    """The largest relative error of a call that reads the first number."""
    x, last = arguments(dtype), variable.value
    right = getattr(torch, function)(x)
    variable.value = first
    wrong = getattr(torch, function)(x)
    variable.value = last
    return float(((wrong - right) / right).abs().max())


def main() -> int:
    print(f"torch {torch.__version__}, MKL {torch.backends.mkl.is_available()}, {torch.backends.cpu.get_cpu_capability()}")
    print("expected: the first call gives what the second gives")
    seen = sum(differ_in_a_fresh_process() > 0 for _ in range(PROCESSES))
    print(f"a race: sqrt in float32 was wrong in {seen} of {PROCESSES} fresh processes, {torch.get_num_threads()} threads")

    torch.sqrt(torch.ones(1))
    library = ctypes.CDLL(str(Path(torch.__path__[0]) / "lib" / "libtorch_cpu.so"))
    variable = stored(library)
    if variable is None:
        print("measured: the count above alone; this build of MKL keeps the processor's number in another way")
        return int(seen > 0)
    # torch.sqrt above was the first call of this process, on one thread
    first, last = library.mkl_serv_vml_cpu_detect(), variable.value
    if first == last:
        print(f"measured: the processor's number is {last} from the first; the count above alone")
        return int(seen > 0)
    print(f"measured: the processor's number is another one first ({first}, then {last})")
    for dtype in DTYPES:
        errors = (f"{function} {error_in_between(function, dtype, variable, first):.0e}" for function in FUNCTIONS)
        print(f"relative error in between, {str(dtype).removeprefix('torch.')}: {', '.join(errors)}")
    return 1


if __name__ == "__main__":
    sys.exit(fresh() if sys.argv[1:] == ["fresh"] else main())
