"""Makes nf4_bitsandbytes.safetensors with bitsandbytes itself: `python tests/stacks/golden/make_nf4_golden.py`.

case{i}.weight, .packed, .absmax                                   single quantisation
nested{i}.absmax, .offset, .absmax_codes, .nested_absmax           nested statistics of a weight's absmax

The metadata holds the block sizes (JSON, by case) and the versions. bitsandbytes 0.50.2 departs from
the rule of contract/worker/operations.py near midpoints on CPU (about 2 nested codes of 1,000), so a
weight is drawn again until bitsandbytes followed the rule throughout: every stack can be held to that.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from bitsandbytes import functional
from safetensors.numpy import save_file

GOLDEN = Path(__file__).with_name("nf4_bitsandbytes.safetensors")
SEED = 20_260
DRAWS = 1_000
CASES = (((4, 64), 64), ((5, 80), 32), ((3, 50), 64), ((2, 192), 128), ((6, 17), 64), ((1, 4096), 4096), ((7, 16), 64), ((3, 1024), 1024))
NESTED = (((257, 32), 32), ((600, 64), 64), ((16, 1024), 64), ((3, 320), 64))


def main() -> None:
    generator = torch.Generator().manual_seed(SEED)
    tensors: dict[str, np.ndarray] = {}
    block_sizes: dict[str, int] = {}
    for index, (shape, block_size) in enumerate(CASES):
        weight = torch.randn(shape, generator=generator) * 0.02
        if index == 0:
            weight[1] = 0.0
        tensors |= {f"case{index}.{part}": array for part, array in _single(weight, block_size).items()}
        block_sizes[f"case{index}"] = block_size
    for index, (shape, block_size) in enumerate(NESTED):
        tensors |= {f"nested{index}.{part}": array for part, array in _nested(shape, block_size, generator).items()}
    versions = {package: version(package) for package in ("bitsandbytes", "torch", "numpy")}
    metadata = {
        "block_sizes": json.dumps(block_sizes),
        "versions": json.dumps(versions | {"python": platform.python_version()}),
        "device": f"CPU, {torch.backends.cpu.get_cpu_capability()}",
        "made_by": "tests/stacks/golden/make_nf4_golden.py",
    }
    save_file(tensors, GOLDEN, metadata=metadata)
    print(f"{GOLDEN.name}: {len(tensors)} tensors, {GOLDEN.stat().st_size} bytes")


def _single(weight: torch.Tensor, block_size: int) -> dict[str, np.ndarray]:
    packed, state = functional.quantize_4bit(weight, blocksize=block_size, quant_type="nf4")
    codes, absmax = _by_the_rule(weight.numpy().reshape(-1), functional.get_4bit_type("nf4", device="cpu").numpy(), block_size)
    nibbles = packed.reshape(-1).numpy()
    got = np.stack((nibbles >> 4, nibbles & 15), axis=1).reshape(-1)[: codes.size]
    if not np.array_equal(got, codes) or not np.array_equal(state.absmax.numpy(), absmax):
        raise SystemExit(f"weight {list(weight.shape)}: bitsandbytes departs from the rule; draw with another SEED")
    return {"weight": weight.numpy(), "packed": nibbles, "absmax": state.absmax.numpy()}


def _nested(shape: tuple[int, int], block_size: int, generator: torch.Generator) -> dict[str, np.ndarray]:
    rows = torch.logspace(-3, 0, shape[0])[:, None]
    for _ in range(DRAWS):
        weight = torch.randn(shape, generator=generator) * rows
        _, single = functional.quantize_4bit(weight, blocksize=block_size, quant_type="nf4")
        _, double = functional.quantize_4bit(weight, blocksize=block_size, quant_type="nf4", compress_statistics=True)
        absmax, offset = single.absmax.numpy(), double.offset.numpy()
        got, got_absmax = double.absmax.numpy(), double.state2.absmax.numpy()
        codes, nested_absmax = _by_the_rule(absmax - offset, functional.create_dynamic_map().numpy(), 256)
        if np.array_equal(got, codes) and np.array_equal(got_absmax, nested_absmax):
            return {"absmax": absmax, "offset": offset, "absmax_codes": got, "nested_absmax": got_absmax}
    raise SystemExit(f"weight {list(shape)}: bitsandbytes departed from the rule in each of {DRAWS} draws; draw with another SEED")


def _by_the_rule(values: np.ndarray, table: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = np.pad(values, (0, -values.size % block_size)).reshape(-1, block_size)
    absmax = np.abs(blocks).max(axis=1)
    reciprocal = np.float32(1) / np.maximum(absmax, np.float32(1e-38))
    midpoints = np.float32(0.5) * (table[:-1] + table[1:])
    codes = np.searchsorted(midpoints, blocks * reciprocal[:, None], side="left").astype(np.uint8)
    return codes.reshape(-1)[: values.size], absmax


if __name__ == "__main__":
    main()
