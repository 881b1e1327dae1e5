"""A training session that is opened once for all steps of a run."""

from __future__ import annotations

import hashlib

from contract.training.inputs import Run
from contract.worker.process import StackProcess


def opened(process: StackProcess, run: Run, *, anew: bool = False) -> dict[str, str]:
    """Has a stack hold a run's session; what its requests then carry.

    Args:
        anew: also where it is open, so that its state is the run's first.

    Raises:
        HarnessError, RequestFailed: as StackProcess.request.
    """
    session = hashlib.sha256(f"{run.contract.model_dump_json()} {run.dtype}".encode()).hexdigest()
    if process.training != session or anew:
        process.training = None
        process.request("train_open", {"session": session, "contract": run.contract.model_dump(mode="json"), "dtype": run.dtype})
        process.training = session
    return {"session": session}
