"""The process of one asking, `python -m parity.mutants.asked REQUEST`: runs the gate with the mutants it is told, and writes the record.

It ends, with its workers, when its standard input closes: a campaign that was killed leaves nothing behind.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from parity.mutants import child

REFUSED = 2
"""Its exit code where there is no record to write, and one line on standard error says why."""


class Request(BaseModel):
    """What is asked: of `parity run` the flags of the same names. record: where the run's record goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checks: tuple[str, ...]
    stacks: tuple[str, ...]
    profile: str
    seed: int
    mutants: tuple[str, ...]
    record: Path


def main() -> int:
    """Runs what the file says; 0 once the record is written, whatever that says."""
    request = Request.model_validate_json(Path(sys.argv[1]).read_bytes())
    child.end_with_the_campaign()
    from contract.errors import UserError
    from parity.mutants import planting

    try:
        planting.plant(request.mutants)
    except UserError as error:
        print(error, file=sys.stderr)
        return REFUSED
    importlib.import_module("parity.mutants.planting").PLANTED.extend(request.mutants)
    return _run(request)


def _run(request: Request) -> int:
    # not before all is planted: what was imported by then has the unchanged contract
    from contract.errors import UserError
    from contract.worker.answers import HarnessError
    from parity.options import Options, Progress
    from parity.report import record
    from parity.session import run

    options = Options(checks=request.checks, stacks=request.stacks, profile=request.profile, seed=request.seed, mutants=request.mutants)
    try:
        record.write(run(options, Progress()), request.record)
    except (UserError, HarnessError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
