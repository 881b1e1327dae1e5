"""`finetune train`."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contract.commands.options import ContractFile, Overrides, Preset, SkipBadRows

if TYPE_CHECKING:
    from contract.run.planner import ExecutionPlan
    from contract.run.survey import Options
    from contract.training.launch import Order
    from contract.worker.discover import StackInfo
    from contract.worker.process import StackProcess


def train(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The run's folder, new or empty.")],
    contract: ContractFile = None,
    preset: Preset = None,
    overrides: Overrides = None,
    skip_bad_rows: SkipBadRows = False,
    stack: Annotated[str | None, typer.Option(metavar="NAME", help="As --set stack=NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR, from its newest checkpoint.")] = False,
) -> None:
    """Trains an adapter. CONTRACT may be another run's training_manifest.json: that run is then reproduced.

    Ctrl-C finishes the step and saves (exit 130); a second one ends the run at once.
    """
    from contract.commands.plan import bars_where_it_takes_long, refusal_text
    from contract.run.source import settings
    from contract.run.survey import Options
    from contract.training import launch
    from contract.worker.discover import discover

    flags = (*settings(overrides, skip_bad_rows=skip_bad_rows), *([] if stack is None else [f"stack={stack}"]))
    try:
        with bars_where_it_takes_long() as report:
            options = Options(progress=lambda done, total: report("rows", done, total))
            order = launch.order(contract, preset=preset, overrides=flags, folder=out, resume=resume, progress=report)
            stacks = discover()
            planned = launch.settle(order, stacks, options)
        order = replace(order, notes=planned.notes)
        _require_writable(order.folder)
        process, order, planned = _started(order, stacks[planned.stack], planned, options)
    except launch.Declined as declined:
        typer.echo(refusal_text(declined.refused.refusals), err=True)
        raise typer.Exit(2) from None
    _run(process, order, stacks[planned.stack], planned)


def _started(
    order: Order, info: StackInfo, planned: ExecutionPlan, options: Options
) -> tuple[StackProcess, Order, ExecutionPlan]:  # fmt: skip
    """A worker on the contract's device, or on the CPU where that is allowed and the device is not here."""
    from contract.training import launch

    process = _start(order, info, planned)
    if not isinstance(process, str):
        return process, order, planned
    note = f"exec.device {planned.device} is not here ({process}); exec.allow_cpu_fallback: the run went on the CPU"
    print(f"finetune: {note}", file=sys.stderr)
    on_cpu = order.contract.model_copy(update={"exec": order.contract.exec.model_copy(update={"device": "CPU"})})
    planned = launch.settle(replace(order, contract=on_cpu, resume=None), {info.name: info}, options)
    process = _start(order, info, planned)
    assert not isinstance(process, str)  # there is no device to fall back to from the CPU
    return process, replace(order, notes=(note, *planned.notes)), planned


def _start(order: Order, info: StackInfo, planned: ExecutionPlan) -> StackProcess | str:
    """See contract.training.launch.start; a worker that does not come up is told of as one that ends later."""
    from contract.commands.train_end import tell_failure
    from contract.training import launch
    from contract.worker.answers import HarnessError, RequestFailed

    try:
        return launch.start(order, info, planned)
    except (HarnessError, RequestFailed) as error:
        tell_failure(error, order.folder, planned)


def _run(process: StackProcess, order: Order, info: StackInfo, planned: ExecutionPlan) -> None:
    """Asks the worker to train, shows how it goes, and says how it went."""
    from contract.commands.train_end import again, tell_end, tell_failure
    from contract.commands.train_view import view
    from contract.commands.two_interrupts import TwoInterrupts, Watch
    from contract.errors import Interrupted
    from contract.training import launch
    from contract.worker.answers import HarnessError, RequestFailed

    try:
        with view() as shown, TwoInterrupts() as interrupts:
            asked = partial(shown.say, "stopping after this step; Ctrl-C again ends at once")
            watch = Watch(process, interrupts, show=shown.show, asked=asked)
            answer = launch.submit(process, order, info).result(watch)
    except KeyboardInterrupt:
        process.kill()
        raise Interrupted(f"ended at once; what was saved is whole, and goes on with: {again(order.folder)}") from None
    except (HarnessError, RequestFailed) as error:
        tell_failure(error, order.folder, planned)
    else:
        tell_end(answer.values, shown, order.folder, planned)
    finally:
        process.close()


def _require_writable(folder: Path) -> None:
    """A folder that can't be written is told of before a model is loaded. Raises: OSError."""
    import tempfile

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        error.filename = str(folder)  # not that of a file which nobody asked for
        raise
