"""tinygrad: CapturedJit.free_intermediates frees the arena of the memory planner, and views into it keep pointers to the freed memory.

Expected: the next call allocates the arena anew, and each view lies at the arena's address plus its offset. Only the view that is used
first is made anew: for the others the arena is allocated by then, and they still have the address that they had. On CPU kernels then
write into memory that is another's; on CUDA it is an illegal access (error 700) once the memory is given back to the driver.

Needs tinygrad, NumPy and a C compiler (clang). Exit 1: the defect shows; 0: it doesn't.
"""

import os
import sys
from importlib.metadata import version

import numpy as np

os.environ.setdefault("DEV", "CPU")
from tinygrad import Device, Tensor, TinyJit
from tinygrad.uop.ops import buffers


@TinyJit
def function(x: Tensor) -> Tensor:
    y = (x + 1).contiguous()
    z = (y.sum() + y * 2).contiguous()
    return (z.max() + z).contiguous()


def misplaced() -> list[int]:
    """How many bytes each view lies off its place."""
    found = []
    for uop in function.captured.linear.toposort():
        view = buffers.get(uop)
        if view is not None and view.base is not view and view.is_initialized():
            found.append(_address(view._buf) - _address(view.base._buf) - view.offset)
    return found


def _address(pointer: object) -> int:
    return int(getattr(pointer, "va_addr", None) or getattr(pointer, "value", pointer))


def main() -> int:
    print(f"tinygrad {version('tinygrad')}, DEV={os.environ['DEV']}")
    x = Tensor(np.arange(4096, dtype=np.float32)).realize()
    for _ in range(3):
        function(x).realize()
    assert misplaced()
    assert not any(misplaced())
    function.captured.free_intermediates()
    others = [Tensor(np.zeros(size, np.int8)).realize() for size in range(16384, 66560, 256)]  # whatever the size, one takes the memory
    Device[Device.DEFAULT].allocator.free_cache()
    function(x).realize()
    del others
    wrong = sum(bytes_off != 0 for bytes_off in misplaced())
    print(f"expected: 0 of {len(misplaced())} views off their place")
    print(f"measured: {wrong} of {len(misplaced())}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
