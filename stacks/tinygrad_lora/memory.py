"""What a device's memory takes: the largest tensor, and allocations that fail in words.

tinygrad 0.14 raises MemoryError where a driver refuses memory, but for two devices: its CPU's OSError of mmap passes by, and a buffer of
WebGPU's is made without a look at the device's answer, so that one that was refused shows as an invalid binding of some later kernel.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Mapping
from typing import Any

from tinygrad import Device
from tinygrad.device import BufferSpec

from contract.run.device_memory import format_size
from contract.worker.stack import NotSupported

_WEBGPU_LIMITS = ("maxBufferSize", "maxStorageBufferBindingSize")
"""A kernel binds whole buffers, so that the smaller of the two is the limit (WebGPU, section 3.6.2)."""


def largest_tensor(device: str) -> tuple[int, str] | None:
    """Bytes of the largest tensor that the open device takes, and which limit that is; None where it has none of the kind."""
    return _webgpu_limit() if device == "WEBGPU" else None


def require_fits(device: str, tensors: Mapping[str, int]) -> None:
    """Holds tensors, by name in bytes, against the device's limit, before the first is uploaded.

    Raises:
        NotSupported: the largest is past it.
    """
    limit = largest_tensor(device)
    if limit is None or not tensors:
        return
    name = max(tensors, key=tensors.__getitem__)
    if tensors[name] > limit[0]:
        raise NotSupported(
            f"{name} takes {format_size(tensors[name])} on {device}; allowed: {format_size(limit[0])} a tensor ({limit[1]}, as its driver "
            "says); take a smaller model, quant.base nf4 where it is one of a block's linears, or the device CPU"
        )


def guard(device: str) -> None:
    """Has the open device's allocator raise MemoryError wherever there is no memory."""
    allocator: Any = Device[device].allocator
    if device == "CPU" and not hasattr(allocator, "guarded"):
        _guard_main_memory(allocator)
    elif device == "WEBGPU" and not hasattr(allocator, "guarded"):
        _guard_webgpu(allocator)


def _guard_main_memory(allocator: Any) -> None:
    """Memory that mmap refuses is told of as tinygrad's other allocators do, so that buffers it keeps are freed, and it tries again."""
    own, free_cache = allocator._alloc, allocator.free_cache

    def allocated(size: int, options: BufferSpec) -> Any:
        try:
            return own(size, options)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise MemoryError(error.strerror) from None

    def freed() -> None:
        allocator.dev.synchronize()  # the first time it makes buffers, and tinygrad's loop over those it keeps does not bear that
        free_cache()

    allocator._alloc, allocator.free_cache, allocator.guarded = allocated, freed, True


def _guard_webgpu(allocator: Any) -> None:
    """A buffer is asked for within the limits, and the device whether it made one."""
    own, checked, webgpu = allocator._alloc, allocator.alloc, _webgpu()
    largest, name = _webgpu_limit()

    def within(size: int, options: BufferSpec | None = None) -> Any:
        if size > largest:
            raise MemoryError(f"a tensor of {format_size(size)} is past the device's limit of {format_size(largest)} ({name})")
        return checked(size, options)

    def allocated(size: int, options: BufferSpec) -> Any:
        device = allocator.dev
        webgpu.wgpuDevicePushErrorScope(device.device_res, webgpu.WGPUErrorFilter_OutOfMemory)
        buffer = own(size, options)
        if said := device.pop_error():
            webgpu.wgpuBufferRelease(buffer)
            raise MemoryError(said)
        return buffer

    allocator.alloc, allocator._alloc, allocator.guarded = within, allocated, True


def _webgpu() -> Any:
    """tinygrad's binding of Dawn, which loads the library: only where the device is WebGPU."""
    return importlib.import_module("tinygrad.runtime.autogen.webgpu")


def _webgpu_limit() -> tuple[int, str]:
    limits = _webgpu_limits()
    name = min(limits, key=limits.__getitem__)
    return limits[name], name


def _webgpu_limits() -> dict[str, int]:
    webgpu, opened = _webgpu(), Device["WEBGPU"]
    found = webgpu.WGPUSupportedLimits()
    webgpu.wgpuDeviceGetLimits(opened.device_res, found)
    return {name: int(getattr(found.limits, name)) for name in _WEBGPU_LIMITS}
