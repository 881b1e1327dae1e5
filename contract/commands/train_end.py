"""How a run ended: words, and the exit code."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from contract.artifacts import saved
from contract.commands.train_view import View
from contract.errors import Interrupted, UserError, printable
from contract.run.device_memory import format_size
from contract.run.gates.device import REMEDIES
from contract.training import checkpoints
from contract.worker.answers import HarnessError, RequestFailed

if TYPE_CHECKING:
    from contract.run.planner import ExecutionPlan

_REFUSED = ("ContractError", "ContractErrors", "NotSupported")
_CAN_BE_PUT_RIGHT = ("UserError", "MissingError", "EnvironmentUnfit")


def again(folder: Path) -> str:
    """The command that goes on with a run."""
    return shlex.join(["finetune", "train", "--out", str(folder), "--resume"])


def tell_end(values: dict[str, Any], shown: View, folder: Path, planned: ExecutionPlan) -> None:
    """Of a run that the worker brought to an end.

    Raises:
        Interrupted: it was asked to stop.
        UserError: it failed.
    """
    end, step, total = values["end"], int(values["step"]), int(values["total"])
    for note in values["notes"]:
        print(f"finetune: note: {printable(note)}", file=sys.stderr)
    if end == "done":
        typer.echo(_done(shown, folder, total))
        return
    kept = _kept(values["checkpoint"])
    if end == "paused":
        raise Interrupted(f"paused after step {step:,} of {total:,}; {kept}; go on with: {again(folder)}")
    message = values["message"]
    if end == "out_of_memory":
        message = f"{message}; {_too_little(planned)}"
    raise UserError(f"{message}; {kept}; {_ADVICE[end]}{again(folder)}")


_ADVICE = {
    "not_finite": "lower exec.learning_rate or mend those rows, in a run of its own; this one would end so again: ",
    "out_of_memory": "with other fields it's a run of its own; with more memory this one goes on with: ",
    "skip_rate": "mend the rows, raise exec.seq_len, or raise exec.max_skip_rate, in a run of its own; this one would end so again: ",
    "output": "see to its rights and space; then go on with: ",
}


def tell_failure(error: HarnessError | RequestFailed, folder: Path, planned: ExecutionPlan) -> NoReturn:
    """Of a request that failed, or of a worker that ended.

    Raises:
        typer.Exit: an input was refused.
        UserError: it failed.
    """
    found = checkpoints.of_run(folder)
    newest = str(found[-1]) if found else None
    if isinstance(error, RequestFailed):
        if error.error_class in _REFUSED:
            for line in error.message.splitlines():
                print(f"finetune: {printable(line)}", file=sys.stderr)
            raise typer.Exit(2)
        if error.error_class in _CAN_BE_PUT_RIGHT or "[Errno" in error.message:
            raise UserError(f"{error.message}; {_kept(newest)}; go on with: {again(folder)}" if newest else error.message)
        print(error.trace, file=sys.stderr)  # a defect of the stack's: nothing that a user could put right
    killed = f"; perhaps for want of memory: {_too_little(planned)}" if "SIGKILL" in str(error) else ""
    kept = _kept(newest)
    first, *tail = str(error).splitlines()
    raise UserError("\n".join([f"{first}{killed}; {kept}; go on with: {again(folder)}", *tail]))


def _done(shown: View, folder: Path, total: int) -> str:
    lines = [("done", f"{total:,} steps")]
    if shown.values:
        loss = shown.values.get("loss")
        lines.append(("loss", "none" if loss is None else f"{loss:.4f} in the last step"))
    if shown.validation:
        lines.append(("validation", ", ".join(f"{loss:.4f} after step {step:,}" for step, loss in sorted(shown.validation.items()))))
    lines += [(name, str(folder / name)) for name in (saved.ADAPTER, saved.PEFT) if (folder / name).is_dir()]
    return "\n".join(f"{name:<14}{printable(text)}" for name, text in lines)


def _kept(checkpoint: str | None) -> str:
    return "there is no checkpoint yet" if checkpoint is None else f"the checkpoint {checkpoint} is kept"


def _too_little(planned: ExecutionPlan) -> str:
    """What was estimated, and which fields make it less."""
    memory = planned.memory
    if memory.shares is None or memory.total is None:
        return f"no estimate was made; {REMEDIES['activations']}, or adapter.rank"
    sizes = memory.shares.shares()
    lowered = max(REMEDIES, key=sizes.__getitem__)
    total = "" if memory.device_total is None else f" of {format_size(memory.device_total)}"
    words = f"the estimate was {format_size(memory.total)}{total}, {format_size(sizes[lowered])} of it {lowered}"
    return f"{words}; {REMEDIES[lowered]}"
