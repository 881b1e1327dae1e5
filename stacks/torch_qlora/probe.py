"""What torch and bitsandbytes can do on this machine, and which known defects of bitsandbytes show here.

Each defect is looked for by the smallest input that shows it, against bitsandbytes itself, past this
stack's guards.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional, matmul_4bit
from bitsandbytes.nn import Linear4bit

from contract.worker.operation import NESTED_BLOCK_SIZE
from stacks.torch_qlora import nf4


def describe(device: torch.device) -> dict[str, Any]:
    """device, name, dtypes, versions, threads, notes; and defects: id -> whether it shows (CPU only)."""
    on_cpu = device.type == "cpu"
    return {
        "device": device.type.upper(),
        "name": _cpu_name() if on_cpu else torch.cuda.get_device_name(device),
        "dtypes": _dtypes(device),
        "versions": {package: version(package) for package in ("torch", "bitsandbytes")} | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "notes": _cpu_notes() if on_cpu else [f"CUDA {torch.version.cuda}"],
        "defects": {name: shows() for name, shows in DEFECTS.items()} if on_cpu else {},
    }


def _dtypes(device: torch.device) -> list[str]:
    """Those of graphs; a GPU older than bfloat16 lacks it."""
    narrow = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    return ["float32", "float64", "bfloat16"] if narrow else ["float32", "float64"]


def _cpu_name() -> str:
    """The processor's model, as Linux names it; elsewhere as the platform does."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _cpu_notes() -> list[str]:
    asks = getattr(functional, "has_avx512bf16", None)  # bitsandbytes before 0.49 has no kernels of its own there, and does not ask
    bfloat16 = "bitsandbytes takes no AVX512-BF16" if asks is None else f"{'with' if asks() else 'without'} AVX512-BF16"
    return [f"instructions: {torch.backends.cpu.get_cpu_capability()}, {bfloat16}"]


def _dequantizes_the_wrong_shape() -> bool:
    """Rows that are no whole number of blocks: the kernel takes a neighbour's absmax."""
    block_size, shape = 64, (8, 16)
    packed, state = functional.quantize_4bit(_ramp(shape), blocksize=block_size, quant_type="nf4")
    codes = nf4.unpack(packed.reshape(-1), shape[0] * shape[1]).long()
    right = (nf4.values(packed.device)[codes].view(-1, block_size) * state.absmax[:, None]).view(shape)
    return not torch.equal(functional.dequantize_4bit(packed, state), right)


def _floors_the_tail_block() -> bool:
    """A zero tail block has absmax 0, not 1e-38."""
    _, state = functional.quantize_4bit(torch.zeros(96), blocksize=64, quant_type="nf4")
    return bool(state.absmax[-1] != 0)


def _looks_up_coarsely() -> bool:
    """A value just above a midpoint of the dynamic map has the upper code."""
    table = nf4.dynamic_map(torch.device("cpu"))
    above = torch.nextafter(0.5 * (table[:-1] + table[1:]), torch.tensor(2.0))
    values = torch.cat((torch.ones(1), above))
    codes, _ = functional.quantize_blockwise(values, code=table, blocksize=NESTED_BLOCK_SIZE)
    return not torch.equal(codes[1:].long(), torch.arange(1, table.numel()))


def _computes_garbage_in_float64() -> bool:
    """An identity in NF4 times ones is ones, in any dtype."""
    packed, state = functional.quantize_4bit(torch.eye(64), blocksize=64, quant_type="nf4")
    ones = torch.ones(1, 64, dtype=torch.float64)
    try:
        return not torch.equal(matmul_4bit(ones, packed, quant_state=state), ones)
    except (RuntimeError, ValueError):
        return False


def _evaluates_in_bfloat16() -> bool:
    """257 times an identity is 257; bfloat16 holds 256 or 258 only."""
    layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=False)
    layer.load_state_dict({"weight": torch.eye(64)})
    layer = layer.to("cpu").eval()
    x = torch.full((1, 64), 257.0)
    with torch.no_grad():
        return not torch.equal(layer(x), x)


def _ramp(shape: tuple[int, int]) -> torch.Tensor:
    """1, 2, 3, ...: no two blocks have the same absmax."""
    return torch.arange(1, shape[0] * shape[1] + 1, dtype=torch.float32).view(shape)


DEFECTS: dict[str, Callable[[], bool]] = {
    "bitsandbytes-cpu-dequantize-shape": _dequantizes_the_wrong_shape,
    "bitsandbytes-cpu-tail-block": _floors_the_tail_block,
    "bitsandbytes-cpu-nested-lookup": _looks_up_coarsely,
    "bitsandbytes-cpu-float64-compute": _computes_garbage_in_float64,
    "bitsandbytes-cpu-eval-bfloat16": _evaluates_in_bfloat16,
}
"""Known defects of bitsandbytes 0.50.2 on CPU: id -> whether it shows on this machine."""
