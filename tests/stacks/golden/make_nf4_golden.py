"""Makes the NF4 golden files with bitsandbytes itself: `python tests/stacks/golden/make_nf4_golden.py [--device cpu|cuda]`.

    cpu     nf4_bitsandbytes.safetensors           every case by the rule of contract/worker/operations.py, or none is written
    cuda    nf4_bitsandbytes_cuda.safetensors      the same weights; needs torch, bitsandbytes, numpy, safetensors and a GPU, nothing else

    case{i}.weight, .packed, .absmax                                   single quantisation
    nested{i}.absmax, .offset, .absmax_codes, .nested_absmax           nested statistics of a weight's absmax

Metadata (JSON): versions; the block sizes and kinds of cases; `departures`, how many codes and absmax of each case are not the rule's;
`near_midpoints`, the same of many inputs within 2 ulp of a midpoint, by block size, and of other hard inputs ([differ, of]).

A tail block is padded with zeros before bitsandbytes sees it, and the packed bytes are cut (docs/adr/0004-nf4-rule.md). On CPU,
nested codes depart from the rule in about 2 blocks of 1,000: there a weight is drawn again until bitsandbytes followed the rule.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import nf4_golden_inputs as inputs
import numpy as np
import torch
from bitsandbytes import functional
from safetensors.numpy import save_file

FILES = {"cpu": "nf4_bitsandbytes.safetensors", "cuda": "nf4_bitsandbytes_cuda.safetensors"}
DRAWS = 1_000
NEAR = 204_800
"""Inputs near a midpoint, of each block size."""
RANDOM = 2**22

Departed = dict[str, tuple[int, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(FILES), default="cpu")
    device = parser.parse_args().device
    torch.manual_seed(inputs.SEED)
    tensors, cases, departures = _cases(device)
    if device == "cpu" and departures:
        raise SystemExit(f"bitsandbytes departs from the rule: {departures}; draw with another SEED")
    near = dict(_near_midpoints(device))
    metadata = {
        "block_sizes": json.dumps({name: block_size for name, (_, block_size) in cases.items()}),
        "kinds": json.dumps({name: kind for name, (kind, _) in cases.items()}),
        "departures": json.dumps(departures),
        "near_midpoints": json.dumps(near),
        "versions": json.dumps(
            {name: version(name) for name in ("bitsandbytes", "torch", "numpy")} | {"python": platform.python_version()}
        ),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.backends.cpu.get_cpu_capability()}",
        "made_by": f"tests/stacks/golden/make_nf4_golden.py --device {device}",
    }
    path = Path(__file__).with_name(FILES[device])
    save_file(tensors, path, metadata=metadata)
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes")
    for name, value in metadata.items():
        if name not in ("block_sizes", "kinds"):
            print(f"{name}: {value}")


def _cases(device: str) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, int]], dict[str, dict[str, int]]]:
    tensors: dict[str, np.ndarray] = {}
    cases: dict[str, tuple[str, int]] = {}
    departures: dict[str, dict[str, int]] = {}
    for index, (kind, weight, block_size) in enumerate(inputs.weights()):
        name = f"case{index}"
        packed, absmax = _quantize(weight, block_size, device)
        codes, absmax_by_the_rule = inputs.by_the_rule(weight, inputs.VALUES, block_size)
        _note(departures, name, codes=(_unpack(packed, codes.size), codes), absmax=(absmax, absmax_by_the_rule))
        cases[name] = (kind, block_size)
        tensors |= {f"{name}.weight": weight, f"{name}.packed": packed, f"{name}.absmax": absmax}
    for index, count in enumerate(inputs.NESTED_COUNTS):
        nested = _nested(np.random.default_rng([inputs.SEED, count]), count, device)
        codes, absmax = inputs.nested_by_the_rule(nested["absmax"] - nested["offset"])
        _note(departures, f"nested{index}", codes=(nested["absmax_codes"], codes), absmax=(nested["nested_absmax"], absmax))
        tensors |= {f"nested{index}.{part}": array for part, array in nested.items()}
    return tensors, cases, departures


def _note(departures: dict[str, dict[str, int]], case: str, **pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """Counts where what bitsandbytes gave is not the rule's."""
    counts = {name: _differing(got, wanted) for name, (got, wanted) in pairs.items()}
    if any(counts.values()):
        departures[case] = counts


def _differing(got: np.ndarray, wanted: np.ndarray) -> int:
    """Elements whose bits differ."""
    unsigned = np.dtype(f"u{got.dtype.itemsize}")
    return int(np.count_nonzero(got.reshape(-1).view(unsigned) != wanted.reshape(-1).view(unsigned)))


def _quantize(weight: np.ndarray, block_size: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    flat = weight.reshape(-1)
    padded = torch.from_numpy(np.pad(flat, (0, -flat.size % block_size))).to(device)
    packed, state = functional.quantize_4bit(padded, blocksize=block_size, quant_type="nf4")
    cut = packed.reshape(-1)[: (flat.size + 1) // 2].cpu().numpy().copy()
    if flat.size % 2:
        cut[-1] &= 0xF0
    return cut, state.absmax.cpu().numpy()


def _nested(rng: np.random.Generator, count: int, device: str) -> dict[str, np.ndarray]:
    """Nested statistics as bitsandbytes makes them; on CPU, of the first draw for which it keeps to the rule."""
    for _ in range(DRAWS):
        weight = inputs.nested_weight(rng, count)
        tensor = torch.from_numpy(weight).to(device)
        _, single = functional.quantize_4bit(tensor, blocksize=weight.shape[1], quant_type="nf4")
        _, double = functional.quantize_4bit(tensor, blocksize=weight.shape[1], quant_type="nf4", compress_statistics=True)
        absmax, offset = single.absmax.cpu().numpy(), double.offset.cpu().numpy()
        codes, nested = double.absmax.cpu().numpy(), double.state2.absmax.cpu().numpy()
        by_the_rule, _ = inputs.nested_by_the_rule(absmax - offset)
        if device != "cpu" or np.array_equal(codes, by_the_rule):
            return {"absmax": absmax, "offset": offset, "absmax_codes": codes, "nested_absmax": nested}
    raise SystemExit(f"{count} blocks: bitsandbytes departed from the rule in each of {DRAWS} draws; draw with another SEED")


def _near_midpoints(device: str) -> Iterator[tuple[str, tuple[int, int]]]:
    rng = np.random.default_rng(inputs.SEED)
    for block_size in inputs.BLOCK_SIZES:
        weight = inputs.near(rng, NEAR // block_size, block_size, inputs.midpoints(inputs.VALUES))
        yield f"codes, blocks of {block_size}", _codes_that_depart(weight, block_size, device)
    yield "codes of normal random values, blocks of 64", _codes_that_depart(inputs.gaussian(rng, (RANDOM // 64, 64)), 64, device)
    near = inputs.near(rng, NEAR // inputs.NESTED_BLOCK, inputs.NESTED_BLOCK, inputs.midpoints(inputs.dynamic_map()))
    codes, _ = functional.quantize_blockwise(torch.from_numpy(near).to(device), blocksize=inputs.NESTED_BLOCK)
    wanted, _ = inputs.nested_by_the_rule(near)
    yield "nested codes", (_differing(codes.cpu().numpy().reshape(-1), wanted), wanted.size)
    for kind, absmax in inputs.hard_absmax(rng).items():
        yield f"dequantised, absmax {kind}", _dequantized_that_depart(absmax, device)


def _codes_that_depart(weight: np.ndarray, block_size: int, device: str) -> tuple[int, int]:
    packed, _ = _quantize(weight, block_size, device)
    codes, _ = inputs.by_the_rule(weight, inputs.VALUES, block_size)
    return _differing(_unpack(packed, codes.size), codes), codes.size


def _dequantized_that_depart(absmax: np.ndarray, device: str) -> tuple[int, int]:
    """Each of the 16 codes times each absmax, in blocks of 64."""
    codes = np.tile(np.arange(16, dtype=np.uint8), (absmax.size, 4))
    packed = torch.from_numpy((codes[:, ::2] << 4 | codes[:, 1::2]).reshape(-1, 1)).to(device)
    state = functional.QuantState(
        absmax=torch.from_numpy(absmax).to(device), shape=torch.Size(codes.shape), code=functional.get_4bit_type("nf4", device=device),
        blocksize=64, quant_type="nf4", dtype=torch.float32,
    )  # fmt: skip
    got = functional.dequantize_4bit(packed, state).cpu().numpy()
    return _differing(got, inputs.VALUES[codes] * absmax[:, None]), codes.size


def _unpack(packed: np.ndarray, count: int) -> np.ndarray:
    return np.stack((packed >> 4, packed & 15), axis=1).reshape(-1)[:count]


if __name__ == "__main__":
    main()
