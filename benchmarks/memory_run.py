"""The peaks of a worker's memory in a run: while the model is loaded, and in its steps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import save_file

from contract.model.keymap import hugging_face_key
from contract.model.layout import LlamaLayout
from contract.run.spec import FineTuneContract
from contract.worker import graph
from contract.worker.discover import StackInfo
from contract.worker.plan import GraphPlan, Lora
from contract.worker.process import StackProcess

STEPS = 4
"""The first two of a captured function compile."""

InUse = Callable[[int], int]
"""Bytes that the worker of a process id has held at most since `anew`."""


def peaks(
    stack: StackInfo, layout: LlamaLayout, fields: dict[str, Any], *, device: str, seconds: float, in_use: InUse, anew: InUse
) -> tuple[int, int]:  # fmt: skip
    """Bytes at the peak of loading, and at that of four steps whose every token but the first few carries loss.

    Args:
        fields: of the contract, without its files.
    """
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        contract = FineTuneContract.model_validate({**fields, **_files(home, layout, fields["exec"])})
        found = []
        with StackProcess(stack.name, stack.command, device, request_seconds=seconds) as process:
            [worker] = psutil.Process().children()

            def watch(values: dict[str, Any] | None) -> None:
                if values is not None and values["stage"] == "begin":
                    found.append(in_use(worker.pid))
                    anew(worker.pid)

            about = {"stack": stack.name, "packages": list(stack.capabilities.packages), "device": device}
            asked = {"contract": contract.model_dump(mode="json"), "folder": str(home / "run"), "about": about}
            ended = process.submit("train", asked, seconds=seconds).result(watch).values
            if ended["end"] != "done":
                raise SystemExit(f"{stack.name}: {ended}")
            return found[0], in_use(worker.pid)


def _files(home: Path, layout: LlamaLayout, run: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with random weights, and rows that fill every sequence: a contract's fields for them."""
    rng = np.random.default_rng(0)
    shapes = graph.weights(GraphPlan(layout=layout, dtype="float32", lora=Lora(rank=1, alpha=1)))
    weights = {hugging_face_key(name): 0.02 * rng.standard_normal(size, dtype=np.float32) for name, (size, _) in shapes.items()}
    save_file(weights, home / "model.safetensors")
    config = layout.model_dump(mode="json", exclude={"rope_scaling"})
    (home / "config.json").write_text(json.dumps({**config, "hidden_act": "silu"}))
    line = json.dumps({"prompt": "x", "response": "x" * run["seq_len"]})
    (home / "rows.jsonl").write_text(f"{line}\n" * (STEPS * run["batch_size"]))
    data = {"train_file": str(home / "rows.jsonl"), "tokenizer_mode": "vox", "validation_split": 0.0, "truncation": "right"}
    return {"model": {"hf_repo": str(home)}, "data": data}
