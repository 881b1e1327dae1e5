"""One side of benchmarks/train.py, in a process of its own: asked for a number of steps on a line, it answers a line of JSON.

Run by train.py: python benchmarks/train_side.py peer|ours CONTRACT MODEL_FOLDER DATA
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from contract.run.spec import FineTuneContract

Step = Callable[[int, float], float]
"""A step's number from 0 and its learning rate -> the loss before the update."""


def main() -> None:
    """Loads, says so, and answers."""
    side, contract_path, model, data = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    contract = FineTuneContract.model_validate_json(Path(contract_path).read_bytes())
    step, notes = _peer(contract, Path(model), Path(data)) if side == "peer" else _ours(contract)
    done, on_gpu = 0, contract.exec.device == "CUDA"
    print(json.dumps({"notes": notes, "peak": _peak(on_gpu)}), file=answers)
    for line in sys.stdin:
        began = time.perf_counter()
        losses = [step(number, contract.exec.learning_rate) for number in range(done, done + int(line))]
        if on_gpu:
            _wait()
        seconds = time.perf_counter() - began
        done += int(line)
        print(json.dumps({"seconds": seconds, "losses": losses, "peak": _peak(on_gpu)}), file=answers)


def _peer(contract: FineTuneContract, model: Path, data: Path) -> tuple[Step, list[str]]:
    from train_peer import Peer

    return Peer(contract, model, data).step, []


def _ours(contract: FineTuneContract) -> tuple[Step, list[str]]:
    import torch

    from contract.training.inputs import prepare
    from stacks.torch_qlora import cuda
    from stacks.torch_qlora.train import TorchTrainer

    run, device = prepare(contract), torch.device(contract.exec.device.lower())
    cuda.start(device)  # as the worker does
    trainer = TorchTrainer(run, device)
    steps = list(run.steps.steps())

    def step(number: int, learning_rate: float) -> float:
        return trainer.step(steps[number % len(steps)], learning_rate).loss

    return step, list(trainer.notes)


def _wait() -> None:
    """Until the GPU has done what it was asked."""
    import torch

    torch.cuda.synchronize()


def _peak(on_gpu: bool) -> int:
    """The most memory that this process has had resident, in bytes (Linux); on a GPU the most that torch has had allocated there."""
    if on_gpu:
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
