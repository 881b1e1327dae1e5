"""Opening a device: what is not here, and what does not work here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract.errors import EnvironmentUnfit, MissingError, UserError
from stacks.tinygrad_lora import compiler, device, memory
from stacks.tinygrad_lora.compiler import Compiler
from stacks.tinygrad_lora.device import DEVICES, open_beside, open_device
from stacks.tinygrad_lora.failures import TellingCompiler


class Opened:
    """A device of tinygrad's, as far as it is looked at here."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        self.allocator = object()

    @property
    def renderer(self) -> Any:
        if isinstance(self._renderer, Exception):
            raise self._renderer
        return self._renderer


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Device -> what opening it gives or raises; the device of this process is put back."""

    class Machine(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            found = super().__getitem__(name)
            if isinstance(found, Exception):
                raise found
            return found

    here = Machine()
    monkeypatch.setattr(device, "Device", here)
    monkeypatch.setattr(memory, "Device", here)
    monkeypatch.setattr(device, "DEV", SimpleNamespace(value=None))
    monkeypatch.setattr(compiler, "prepare", lambda: Compiler(kind="clang", command="clang"))
    return here


def test_an_unknown_device() -> None:
    with pytest.raises(UserError, match=r"^tinygrad_lora has no device 'TPU'; allowed: CPU, CUDA, WEBGPU, CL, METAL$"):
        open_device("TPU")


@pytest.mark.parametrize(
    ("name", "needs"), [("CUDA", "an NVIDIA driver"), ("CL", "an OpenCL driver"), ("METAL", "macOS"), ("WEBGPU", "webgpu")]
)
def test_a_device_that_is_not_here(machine: dict[str, Any], name: str, needs: str) -> None:
    machine[name] = RuntimeError("failed to load library\ntry setting X_PATH?")
    with pytest.raises(
        MissingError, match=rf"^tinygrad can't open {name} here \(failed to load library try setting X_PATH\?\); .*{needs}"
    ) as caught:
        open_device(name)
    assert str(caught.value).endswith("; or use the device CPU")
    assert "\n" not in str(caught.value)


def test_all_that_was_tried_is_told(machine: dict[str, Any]) -> None:
    machine["CUDA"] = ExceptionGroup(
        "No interface is available", [RuntimeError("one"), ExceptionGroup("more", [OSError("two"), KeyError()])]
    )
    with pytest.raises(MissingError, match=r"here \(one; two; KeyError\); "):
        open_device("CUDA")


def test_a_cpu_whose_first_kernels_do_not_compile_is_unfit_and_not_missing(machine: dict[str, Any]) -> None:
    machine["CPU"] = RuntimeError("clang failed")
    with pytest.raises(EnvironmentUnfit, match=r"can't open the CPU \(clang failed\); put clang on PATH, or run: pip install"):
        open_device("CPU")


def test_a_device_without_a_compiler_is_unfit(machine: dict[str, Any]) -> None:
    machine["CUDA"] = Opened(ExceptionGroup("No renderer for CUDA is available", [RuntimeError("no NVRTC"), RuntimeError("no nvcc")]))
    with pytest.raises(EnvironmentUnfit, match=r"finds no compiler for CUDA \(no NVRTC; no nvcc\); it needs .*NVRTC"):
        open_device("CUDA")


def test_only_the_device_of_the_process_takes_tensors_that_name_none(machine: dict[str, Any]) -> None:
    from tinygrad.device import Compiler as DeviceCompiler

    class Renderer:
        compiler = DeviceCompiler()

    machine["CL"] = machine["METAL"] = opened = Opened(Renderer())
    assert open_device("CL") is None
    assert vars(device)["DEV"].value == "CL"
    assert open_beside("METAL") is None
    assert vars(device)["DEV"].value == "CL"
    assert isinstance(opened.renderer.compiler, TellingCompiler)
    assert not isinstance(opened.renderer.compiler.own, TellingCompiler)


def test_the_devices_are_those_that_are_declared() -> None:
    import json

    declared = json.loads(Path(device.__file__).with_name("capabilities.json").read_text())
    assert tuple(declared["devices"]) == DEVICES
