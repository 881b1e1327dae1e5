"""Makes parity/goldens/schedule.json: learning rates as transformers and torch's LambdaLR give them, step by step.

    python tests/contract/run/golden/make_schedule.py > parity/goldens/schedule.json

The steps are an optimiser's: the learning rate is read before each `optimizer.step()`, and the schedule moves on after it. A run of many
steps is kept at some of them.
"""

from __future__ import annotations

import json

import torch
import transformers

CASES = (
    (2e-4, 0, 10),
    (2e-4, 4, 11),
    (1e-3, 5, 5),
    (0.5, 1, 2),
    (3e-4, 0, 1),
    (3e-4, 1, 1),
    (7e-5, 0, 2),
    (2e-4, 100, 3000),
    (1.0, 3, 1001),
)
KEPT = 40


def rates(base: float, warmup: int, total: int) -> list[float]:
    """The learning rate of every step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, total)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def main() -> None:
    """Prints the file."""
    cases = []
    for base, warmup, total in CASES:
        found = rates(base, warmup, total)
        steps = sorted({*range(0, total, max(1, total // KEPT)), max(warmup - 1, 0), min(warmup, total - 1), total - 1})
        cases.append({"base": base, "warmup": warmup, "total": total, "rates": {step: found[step] for step in steps}})
    made_by = f"make_schedule.py: transformers {transformers.__version__}, torch {torch.__version__}"
    print(json.dumps({"made_by": made_by, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
