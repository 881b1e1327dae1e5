"""A tensor that is past what a device takes; memory that ends is test_tinygrad_failures.py's, WebGPU itself test_webgpu.py's."""

from __future__ import annotations

import pytest

from contract.worker.stack import NotSupported
from stacks.tinygrad_lora import memory

MIB = 2**20


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"maxBufferSize": 4096 * MIB, "maxStorageBufferBindingSize": 128 * MIB}
    monkeypatch.setattr(memory, "_webgpu_limits", lambda: limits)


def test_the_smaller_of_webgpu_s_limits_counts(limited: None) -> None:
    assert memory.largest_tensor("WEBGPU") == (128 * MIB, "maxStorageBufferBindingSize")


@pytest.mark.parametrize("device", ["CPU", "CUDA", "CL", "METAL"])
def test_other_devices_have_no_limit_but_their_memory(device: str) -> None:
    assert memory.largest_tensor(device) is None
    memory.require_fits(device, {"lm_head": 2**50})


def test_a_tensor_at_the_limit_fits(limited: None) -> None:
    memory.require_fits("WEBGPU", {"lm_head": 128 * MIB, "norm": 4})
    memory.require_fits("WEBGPU", {})


def test_the_largest_tensor_past_the_limit_is_named(limited: None) -> None:
    with pytest.raises(NotSupported) as caught:
        memory.require_fits("WEBGPU", {"norm": 4, "layers.0.up_proj": 128 * MIB + 4, "lm_head": 512 * MIB})
    assert str(caught.value) == (
        "lm_head takes 512 MiB on WEBGPU; allowed: 128 MiB a tensor (maxStorageBufferBindingSize, as its driver says); take a smaller "
        "model, quant.base nf4 where it is one of a block's linears, or the device CPU"
    )
