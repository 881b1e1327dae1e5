"""What a preflight takes: a model of 141 GB in 100 shards (Llama 3.1 70B's sizes), headers real, weights holes in sparse files.

Beside it, what the safetensors library takes to open the same files and list their keys. Medians of several runs, one to warm up.

Run: python benchmarks/preflight.py [--shards N] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from contract.model import layout, preflight, weights
from contract.run.spec import ModelSpec

CONFIG = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


def sparse_model(folder: Path, *, shards: int) -> int:
    """Writes the model's files, in which every weight is a hole; returns their sizes' sum."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    found = list(weights.weights(layout.read(CONFIG)))
    names = [f"model-{shard + 1:05}-of-{shards:05}.safetensors" for shard in range(shards)]
    where, total = {}, 0
    for shard, name in enumerate(names):
        header, end = {}, 0
        for weight in found[shard * len(found) // shards : (shard + 1) * len(found) // shards]:
            start, end = end, end + 2 * weight.stored[0] * (weight.stored[1] if len(weight.stored) == 2 else 1)
            header[weight.key] = {"dtype": "BF16", "shape": list(weight.stored), "data_offsets": [start, end]}
            where[weight.key] = name
        text = json.dumps(header).encode()
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        total += 8 + len(text) + end
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    return total


def median(repeats: int, run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def open_all(paths: tuple[Path, ...]) -> int:
    """Opens each file as the safetensors library does, and counts keys."""
    count = 0
    for path in paths:
        with safe_open(path, framework="numpy") as file:
            count += len(list(file.keys()))
    return count


def main() -> None:
    """Prints both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        total = sparse_model(Path(temporary) / "model", shards=arguments.shards)
        spec = ModelSpec(hf_repo=str(Path(temporary) / "model"))
        files = preflight.locate_files(spec)
        ours = median(arguments.repeats, lambda: preflight.inspect(preflight.locate_files(spec)))
        library = median(arguments.repeats, lambda: open_all(files.shards))
        found = preflight.inspect(files)
        print(f"{arguments.shards} shards, {total / 1e9:.1f} GB, {found.parameters / 1e9:.2f} billion parameters")
        print(f"locate and inspect     {ours * 1e3:8.1f} ms    median of {arguments.repeats}")
        print(f"safetensors: open, keys {library * 1e3:7.1f} ms    ratio {ours / library:.2f}")


if __name__ == "__main__":
    main()
