"""The request train_paths: which production paths a run takes on a stack and device, without taking a step.

A gate that holds a user's fast paths against the plain one must know which those are, and what decides on them is the stack's own: the
base, the dtype, the memory that is free. A stack answers with the function that its trainer chooses by.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from contract.run.spec import FineTuneContract
from contract.training.inputs import Run, prepare
from contract.worker.stack import Reply


def respond(contract: Mapping[str, Any], choose: Callable[[Run], Sequence[str]]) -> Reply:
    """Answers `paths`, names of contract/worker/plan.py's Path.

    Args:
        contract: all fields of a contract.
        choose: what a run of it would take here and now.

    Raises:
        ContractError, ContractErrors, MissingError: as contract.training.inputs.prepare.
    """
    # An index in the user's cache would stay there for good.
    with tempfile.TemporaryDirectory(prefix="twostack-paths-") as cache:
        run = prepare(FineTuneContract.model_validate(dict(contract)), cache=Path(cache))
        return Reply(values={"paths": list(choose(run))})
