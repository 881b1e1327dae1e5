"""Makes the answers of this example: what three models might have said, the same bytes every time.

Run: .venv/bin/python examples/scorecard/make.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from parity.scorecard.suites import text_to_sql
from parity.scorecard.suites.text_to_sql_schemas import drawn
from parity.scorecard.task import Task

TASKS = 54
SEEDS = (1, 2, 3)
LANES = {"baseline": "torch_qlora", "candidate": "tinygrad_lora", "control": "torch_qlora"}


def main() -> None:
    """Writes answers.jsonl and training.json for each condition beside this file, or into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    for lane, stack in LANES.items():
        (out / lane).mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(line) for task in text_to_sql.suite(TASKS) for line in answers(lane, task)]
        (out / lane / "answers.jsonl").write_text("".join(f"{line}\n" for line in lines))
        (out / lane / "training.json").write_text(json.dumps(training(lane, stack), indent=2, sort_keys=True) + "\n")


def answers(lane: str, task: Task) -> list[dict[str, str | int]]:
    """Most answers are right; some only when their errors were told, some never."""
    chance, right = drawn(lane, task.id) % 100, task.reference
    wrong = "SELEC 1" if chance % 2 else "SELECT 1"
    said = [right] if chance < 80 else [wrong, right] if chance < 90 else [wrong]
    return [
        {"task": task.id, "attempt": number, "text": text, "tokens_in": len(task.prompt) // 4, "tokens_out": len(text) // 4,
         "latency_ms": 20 * len(text)}
        for number, text in enumerate(said, start=1)
    ]  # fmt: skip


def training(lane: str, stack: str) -> dict[str, object]:
    """How the three adapters of a lane were trained: nobody trained them, so that the hashes are of names."""
    runs = [
        {"seed": seed, "initial_sha256": named("initial", seed), "order_sha256": named("order", seed), "adapter_sha256": named(lane, seed)}
        for seed in SEEDS
    ]
    return {
        "stack": stack, "packages": {"twostack": "0.1.0"}, "base_sha256": named("base"), "base": "none", "graph": "full_causal",
        "objective": "chatml_supervised", "parity_digest": named("contract"), "data_sha256": named("data"), "runs": runs,
    }  # fmt: skip


def named(*parts: object) -> str:
    """SHA-256 of a name."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


if __name__ == "__main__":
    main()
