"""WebGPU without a browser: Dawn, from the wheel `dawn-python`."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path

_LIBRARIES = {
    ("Linux", "x86_64"): "libwebgpu_dawn_x86_64.so",
    ("Linux", "aarch64"): "libwebgpu_dawn_aarch64.so",
    ("Darwin", "arm64"): "libwebgpu_dawn_arm64.dylib",
    ("Darwin", "x86_64"): "libwebgpu_dawn_x86_64.dylib",
}
_BACKENDS = {"Linux": "WGPUBackendType_Vulkan", "Darwin": "WGPUBackendType_Metal"}


def prepare() -> None:
    """Names the wheel's library and the system's backend to tinygrad, where the user has named none.

    tinygrad reads WEBGPU_PATH and WEBGPU_BACKEND once, when it opens the device.
    """
    spec, system = importlib.util.find_spec("pydawn"), platform.system()
    library = _LIBRARIES.get((system, platform.machine()))
    if spec is None or spec.origin is None or library is None:
        return
    os.environ.setdefault("WEBGPU_PATH", str(Path(spec.origin).parent / "lib" / library))
    os.environ.setdefault("WEBGPU_BACKEND", _BACKENDS[system])
