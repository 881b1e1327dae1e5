"""What a run is estimated to hold in memory, and what it does hold: both stacks, on the CPU or an NVIDIA GPU.

Run: .venv/bin/python benchmarks/memory.py [--device CUDA] [--stack NAME] [--only SHAPE] [--base none|nf4] [--dtype bfloat16] [--rows FILE]
Prints a Markdown table. `--fit` prints the coefficients that the measured rows give for capabilities.json, held-out shapes left out.
`--rows FILE` keeps what was measured, one JSON object a line, and adds to what is there; `--fit` alone reads it.

Measured is the peak memory of a worker process that opens a graph and then answers `gradients` twice: the second time with its
kernels captured, as every later step of a run. On the CPU that is VmHWM (Linux); on a GPU what nvidia-smi says is in use beyond what was
before, which both stacks' allocators keep once they took it. The optimiser's state can't be measured yet, since no stack has
the request `step`; a worker's answer holds two copies of the gradients instead, which are as large as AdamW's m and v.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
from memory_run import peaks
from pydantic import TypeAdapter
from safetensors.numpy import save_file
from scipy.optimize import nnls

from contract.model.layout import LlamaLayout
from contract.run import memory
from contract.run.device_memory import format_size
from contract.run.spec import ComputeDtype, FineTuneContract
from contract.run.survey import declared_memory
from contract.worker import discover, files, graph
from contract.worker.capabilities import Memory
from contract.worker.discover import StackInfo
from contract.worker.files import FileReference
from contract.worker.plan import GraphPlan, Lora, Nf4
from contract.worker.process import StackProcess

SECONDS = 1800.0
BASES = ("none", "nf4")
STACKS = ("torch_qlora", "tinygrad_lora")
TRAINED = ("tinygrad_lora",)
"""Those that are measured in a run of four steps (benchmarks/memory_run.py); of the others a worker answers `gradients` twice."""
FITTED: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "torch_qlora": (("activations", ("BTD", "BTQ")), ("activations", ("BTF",))),
    "tinygrad_lora": (
        ("activations", ("BTD", "BTQ")), ("activations", ("BTF",)), ("work", ("BTD", "BTQ")), ("work", ("BTF",)), ("work", ("BHTS",)),
    ),
}  # fmt: skip
"""What is fitted: a field of Memory, and which parts of it share one coefficient. Nearly all models have Q = D.

tinygrad keeps every linear's output, and computes what lies between them again.
"""

SLICES: Mapping[str, dict[str, int] | None] = {"torch_qlora": None, "tinygrad_lora": None}
"""As a stack cuts a frozen linear."""

PANELLED = ("tinygrad_lora",)
"""Those that copy a weight to another layout where they multiply by it, as stacks/tinygrad_lora/linear.py does on a CPU."""

PATHS: Mapping[str, tuple[str, ...]] = {
    "torch_qlora": ("chunked_loss", "fused_attention", "fused_lora", "fused_elementwise"), "tinygrad_lora": (),
}  # fmt: skip
"""The production paths of every run (stacks/torch_qlora/paths.py); on an NF4 base `nf4_linear` too."""

CHUNK: Mapping[str, int | None] = {"torch_qlora": 2**24, "tinygrad_lora": 2**24}
"""As stacks/*/loss.py computes logits."""

HEAD_APART = {"torch_qlora": False, "tinygrad_lora": True}
"""Whether a tied head is a copy of the embedding: tinygrad's rows are looked up on the host, its head lies on the device."""

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and a batch; the letters of contract/worker/taps.py."""

    name: str
    B: int
    T: int
    R: int
    D: int
    F: int
    layers: int
    H: int
    K: int
    E: int
    V: int
    tied: bool = True
    held_out: bool = False


SHAPES = (
    Shape(name="small", B=2, T=128, R=4, D=256, F=688, layers=4, H=8, K=4, E=32, V=8000),
    Shape(name="medium", B=4, T=256, R=4, D=512, F=1408, layers=8, H=8, K=2, E=64, V=32000),
    Shape(name="long", B=2, T=1024, R=4, D=256, F=512, layers=6, H=8, K=8, E=32, V=1000),
    Shape(name="wide", B=8, T=256, R=4, D=512, F=4096, layers=4, H=8, K=4, E=64, V=2000),
    Shape(name="vocabulary", B=4, T=128, R=4, D=256, F=512, layers=2, H=4, K=2, E=64, V=128256),
    Shape(name="deep", B=4, T=256, R=4, D=192, F=512, layers=24, H=6, K=3, E=32, V=4000),
    Shape(name="weights", B=1, T=32, R=4, D=1024, F=2816, layers=12, H=16, K=4, E=64, V=32000),
    Shape(name="rank", B=4, T=256, R=128, D=512, F=1024, layers=4, H=8, K=8, E=64, V=4000),
    Shape(name="untied", B=1, T=512, R=8, D=768, F=1024, layers=4, H=4, K=2, E=64, V=32000, tied=False),
    Shape(name="smollm2", B=4, T=256, R=16, D=576, F=1536, layers=30, H=9, K=3, E=64, V=49152, held_out=True),
    Shape(name="grouped", B=3, T=384, R=8, D=640, F=1728, layers=10, H=10, K=5, E=64, V=16000, held_out=True),
    Shape(name="shallow", B=2, T=192, R=16, D=384, F=2048, layers=5, H=6, K=2, E=64, V=49152, held_out=True),
    Shape(name="uneven", B=1, T=512, R=8, D=768, F=1024, layers=4, H=4, K=2, E=64, V=50257, tied=False, held_out=True),
    Shape(name="round", B=1, T=512, R=8, D=768, F=1024, layers=4, H=4, K=2, E=64, V=50000, tied=False, held_out=True),
    Shape(name="one_long", B=1, T=768, R=8, D=768, F=2048, layers=6, H=12, K=4, E=64, V=24000, tied=False, held_out=True),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: bytes at the peak of opening, and at the peak of what came after."""

    stack: str
    device: str
    shape: str
    base: str
    opening: int
    running: int
    dtype: ComputeDtype = "float32"

    @property
    def peak(self) -> int:
        """Of both."""
        return max(self.opening, self.running)


_ROW = TypeAdapter(Row)


def main() -> None:
    """Measures, prints, or fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="CPU", choices=("CPU", "CUDA"))
    parser.add_argument("--stack", action="append", choices=STACKS)
    parser.add_argument("--only", action="append", choices=[shape.name for shape in SHAPES])
    parser.add_argument("--base", action="append", choices=BASES)
    parser.add_argument("--dtype", default="float32", choices=get_args(ComputeDtype))
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    rows = [] if arguments.rows is None or not arguments.rows.exists() else _read(arguments.rows)
    wanted = [
        (stack, shape, base)
        for stack in arguments.stack or STACKS
        for shape in SHAPES
        if shape.name in (arguments.only or [shape.name])
        for base in arguments.base or BASES
        if (stack, arguments.device, arguments.dtype, shape.name, base)
        not in {(row.stack, row.device, row.dtype, row.shape, row.base) for row in rows}
    ]
    stacks = discover.installed()
    for stack, shape, base in [] if arguments.fit else wanted:
        rows.append(measure(stacks[stack], shape, base, arguments.device, arguments.dtype))
        if arguments.rows is not None:
            with open(arguments.rows, "ab") as file:
                file.write(_ROW.dump_json(rows[-1]) + b"\n")
    for stack in arguments.stack or STACKS:
        device, dtype = arguments.device, arguments.dtype
        own = [row for row in rows if (row.stack, row.device, row.dtype) == (stack, device, dtype)]
        declared = fit(own, stack, device, dtype) if arguments.fit else declared_memory(stacks[stack].capabilities, device, dtype)
        if declared is None:
            raise SystemExit(f"{stack} declares nothing of its memory on {arguments.device}; --fit gives what belongs there")
        if arguments.fit:
            print(declared.model_dump_json(indent=2))
        print(table(own, declared))


def _read(path: Path) -> list[Row]:
    return [_ROW.validate_json(line) for line in path.read_bytes().splitlines()]


# Measuring


def measure(stack: StackInfo, shape: Shape, base: str, device: str, dtype: ComputeDtype) -> Row:
    """The peaks of a fresh worker."""
    if stack.name in TRAINED:
        return _of_run(stack, shape, base, device, dtype)
    rng, layout = np.random.default_rng(0), _layout(shape)
    before = _in_use(0, device)
    with _weights(layout, rng) as references, StackProcess(stack.name, stack.command, device, request_seconds=SECONDS) as process:
        lora, held = Lora(rank=shape.R, alpha=2 * shape.R), None if base == "none" else Nf4()
        paths = (*PATHS[stack.name], *(("nf4_linear",) if held else ()))
        plan = GraphPlan.model_validate({"layout": layout, "dtype": dtype, "lora": lora, "base": held, "paths": paths})
        [worker] = psutil.Process().children()
        adapter = {name: 0.02 * rng.standard_normal(size, dtype=np.float32) for name, (size, _) in graph.adapter(plan).items()}
        weights = {name: references[name] for name in graph.weights(plan)}
        process.request("open", {"graph": "measured", "plan": plan.model_dump(mode="json")}, {**weights, **adapter})
        opening = _in_use(worker.pid, device) - before
        ids = rng.integers(0, layout.vocab_size, (shape.B, shape.T))
        for _ in range(2):
            if device == "CPU":
                _anew(worker.pid)
            process.request("gradients", {"graph": "measured", "taps": ["loss"]}, {"ids": ids, "labels": ids})
        running = _in_use(worker.pid, device) - before
    return Row(stack=stack.name, device=device, dtype=dtype, shape=shape.name, base=base, opening=opening, running=running)


def _of_run(stack: StackInfo, shape: Shape, base: str, device: str, dtype: ComputeDtype) -> Row:
    before = _in_use(0, device)
    run = {
        "batch_size": shape.B,
        "seq_len": shape.T,
        "grad_accum": 1,
        "epochs": 1,
        "warmup_steps": 0,
        "compute_dtype": dtype,
        "device": device,
    }
    fields = {"lane": "research", "adapter": {"method": "lora", "rank": shape.R}, "quant": {"base": base}, "exec": run}
    opening, running = peaks(
        stack,
        _layout(shape),
        fields,
        device=device,
        seconds=SECONDS,
        in_use=lambda pid: _in_use(pid, device),
        anew=_anew if device == "CPU" else int,
    )
    return Row(
        stack=stack.name, device=device, dtype=dtype, shape=shape.name, base=base, opening=opening - before, running=running - before
    )


def _anew(pid: int) -> int:
    """VmHWM begins anew."""
    return Path(f"/proc/{pid}/clear_refs").write_text("5")


@contextmanager
def _weights(layout: LlamaLayout, rng: np.random.Generator) -> Iterator[dict[str, FileReference]]:
    """Random weights, in a file."""
    plan = GraphPlan(layout=layout, dtype="float32", lora=Lora(rank=1, alpha=1))
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        path = Path(file.name)
        expected = graph.weights(plan)
        save_file({name: 0.02 * rng.standard_normal(size, dtype=np.float32) for name, (size, _) in expected.items()}, path)
        sha256 = files.sha256_of(path)
        yield {name: FileReference(sha256=sha256, tensor=name, path=str(path)) for name in expected}


def _layout(shape: Shape) -> LlamaLayout:
    return LlamaLayout(
        vocab_size=shape.V, hidden_size=shape.D, intermediate_size=shape.F, num_hidden_layers=shape.layers, num_attention_heads=shape.H,
        num_key_value_heads=shape.K, head_dim=shape.E, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=1e4,
        attention_bias=False, mlp_bias=False, tie_word_embeddings=shape.tied,
    )  # fmt: skip


def _in_use(pid: int, device: str) -> int:
    """Bytes: a process' VmHWM (0 for none), or what is in use on the GPU."""
    if device == "CPU":
        lines = Path(f"/proc/{pid}/status").read_text().splitlines() if pid else ["VmHWM: 0 kB"]
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    query = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0")
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) * MIB


# Estimating


def table(rows: list[Row], declared: Memory) -> str:
    """Estimate and measurement, shape by shape."""
    lines = ["| stack | shape | base | held out | estimated | measured | estimated / measured - 1 |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        shape = _shape(row.shape)
        estimated = memory.estimate(_layout(shape), _contract(shape, row.base), declared).total
        cells = [row.stack, row.shape, row.base, "yes" if shape.held_out else ""]
        cells += [format_size(estimated), format_size(row.peak), f"{estimated / row.peak - 1:+.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fit(rows: list[Row], stack: str, device: str, dtype: ComputeDtype) -> Memory:
    """Non-negative coefficients that make the sum of squared relative errors least, over shapes that are not held out.

    The formula is linear in each of them where the run's own peak counts; `loading` comes from the peaks of opening after that.
    """
    used = [row for row in rows if not _shape(row.shape).held_out]
    grown = [row for row in used if row.running > row.opening or device == "CPU"]  # a GPU's peak of opening stays
    cut = SLICES[stack]

    def with_only(**given: Any) -> Memory:
        none = {"process": 0, "loading": 0, "residue": 0, "activations": {}, "work": {}, "logits": 0}
        given["slices"] = None if cut is None else {**cut, **given.pop("slices", {})}
        of = {
            "device": device,
            "dtype": dtype,
            "head_apart": HEAD_APART[stack],
            "chunk": CHUNK[stack],
            "recomputes": stack == "torch_qlora",
        }
        return Memory.model_validate({**none, **of, "source": "benchmarks/memory.py", **given})

    unknown: list[dict[str, Any]] = [{"process": MIB}, {"residue": 1}, {"logits": 1}, {"adapter": 1}]
    unknown += [{"panels": 1}] if stack in PANELLED else []
    unknown += [{field: dict.fromkeys(parts, 1)} for field, parts in FITTED[stack]]
    columns, wanted = [], []
    for row in grown:
        known = _total(row, with_only())
        columns.append([(_total(row, with_only(**given)) - known) / row.running for given in unknown])
        wanted.append((row.running - known) / row.running)
    process, residue, logits, adapter, *others = (round(float(value), 2) for value in nnls(np.array(columns), np.array(wanted))[0])
    panels = others.pop(0) if stack in PANELLED else 0.0
    copies: dict[str, dict[str, float]] = {"activations": {}, "work": {}, "slices": {}}
    for (field, parts), value in zip(FITTED[stack], others, strict=True):
        copies[field] |= dict.fromkeys(parts, value) if value else {}
    result = with_only(process=round(process) * MIB, residue=residue, logits=logits, adapter=adapter, panels=panels, **copies)
    return result.model_copy(update={"loading": round(max(0.0, _loading(used, result)), 2)})


def _loading(rows: list[Row], running: Memory) -> float:
    """The median over those rows whose peak is that of opening by far."""
    found = []
    for row in rows:
        shape = _shape(row.shape)
        shares = memory.estimate(_layout(shape), _contract(shape, row.base), running)
        arriving = memory.FLOAT32 * (memory.linear_values(_layout(shape)) + memory.other_values(_layout(shape)))
        if row.opening >= row.running:
            found.append((row.opening - shares.process - shares.weights) / arriving)
    return float(np.median(found)) if found else 0.0


def _total(row: Row, declared: Memory) -> int:
    shape = _shape(row.shape)
    return memory.estimate(_layout(shape), _contract(shape, row.base), declared).total


def _shape(name: str) -> Shape:
    return next(shape for shape in SHAPES if shape.name == name)


def _contract(shape: Shape, base: str) -> FineTuneContract:
    run = {"batch_size": shape.B, "seq_len": shape.T}
    files_of = {"model": {"hf_repo": "a model"}, "data": {"train_file": "rows.jsonl"}}
    return FineTuneContract.model_validate({**files_of, "adapter": {"rank": shape.R}, "quant": {"base": base}, "exec": run})


if __name__ == "__main__":
    main()
