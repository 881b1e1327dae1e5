"""Opening a device of tinygrad's, so that whatever is wrong with it is one line that says what to do."""

from __future__ import annotations

from tinygrad import Device
from tinygrad.helpers import DEV, PARALLEL

from contract.errors import EnvironmentUnfit, MissingError, UserError
from stacks.tinygrad_lora import compiler, lowered, memory, webgpu
from stacks.tinygrad_lora.failures import require_cache, telling

_NEEDS = {
    "CUDA": "it needs an NVIDIA driver, and NVRTC to compile kernels",
    "WEBGPU": "it needs the extra webgpu (pip install 'twostack[webgpu]') and, on Linux, a Vulkan driver",
    "CL": "it needs an OpenCL driver",
    "METAL": "it needs macOS",
}
DEVICES = ("CPU", *_NEEDS)


def open_device(device: str) -> compiler.Compiler | None:
    """Opens the device of this process, before the first kernel; answers the C compiler of the CPU.

    Raises:
        UserError: an unknown device.
        MissingError: it is not here.
        EnvironmentUnfit: no compiler works for it, or tinygrad's cache of kernels can't be used.
    """
    if device not in DEVICES:
        raise UserError(f"tinygrad_lora has no device {device!r}; allowed: {', '.join(DEVICES)}")
    found = open_beside(device)
    DEV.value = device
    return found


def open_beside(device: str) -> compiler.Compiler | None:
    """As `open_device`, and tensors that name no device stay where they went."""
    found = compiler.prepare() if device == "CPU" else None
    if device == "WEBGPU":
        webgpu.prepare()
    require_cache()
    lowered.keep()
    # kernels are compiled in this process: a pool starts cold, gains nothing on two cores, and outlives a worker that is killed
    PARALLEL.value = 0
    try:
        opened = Device[device]
    except Exception as error:
        if found is not None:  # its memory is there; what it compiles when it is opened is what failed
            raise EnvironmentUnfit(f"tinygrad can't open the CPU ({said(error)}); {found.remedy()}") from error
        raise MissingError(f"tinygrad can't open {device} here ({said(error)}); {_NEEDS[device]}; or use the device CPU") from error
    try:
        renderer = opened.renderer
    except Exception as error:
        raise EnvironmentUnfit(f"tinygrad finds no compiler for {device} ({said(error)}); {_NEEDS.get(device)}") from error
    name = f"the compiler of {device}" if found is None else f"the C compiler {found.command} ({found.kind})"
    remedy = f"see to the driver of {device}, or use the device CPU" if found is None else found.remedy()
    renderer.compiler = telling(renderer.compiler, name=name, remedy=remedy)
    memory.guard(device)
    return found


def said(error: BaseException) -> str:
    """An error on one line; of several, all of them."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(said(one) for one in error.exceptions)
    return " ".join(str(error).split()) or type(error).__name__
