"""The `parity` command."""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from contract.errors import EnvironmentUnfit, MissingError, UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Do two stacks compute the same thing?")

USAGE, HARNESS, MISSING, UNFIT, INTERRUPTED = 2, 3, 4, 5, 130


@app.command()
def run(
    tier: Annotated[str, typer.Option(help="Tiers, comma-separated (A,B); all unless given.")] = "",
    only: Annotated[list[str] | None, typer.Option(help="A check's id; repeatable.", metavar="CHECK")] = None,
    stacks: Annotated[str, typer.Option(help="Stacks, comma-separated; all that are known unless given.")] = "",
    device: Annotated[list[str] | None, typer.Option(help="STACK=DEVICE; repeatable.", metavar="STACK=DEVICE")] = None,
    profile: Annotated[str, typer.Option(help="How much to draw: quick, ci or nightly.")] = "ci",
    seed: Annotated[int | None, typer.Option(help="Draws the same inputs again.", min=0)] = None,
    time_budget: Annotated[float | None, typer.Option(help="Seconds; what was not covered then is said, and is exit 4.", min=0)] = None,
    mutant: Annotated[list[str] | None, typer.Option(help="Plants a known bug first, to see the gate go red; repeatable.")] = None,
    model: Annotated[str, typer.Option(help="Tier C's checkpoint: a known name, a hub id, or a folder.")] = "smollm2-135m",
    json: Annotated[Path | None, typer.Option(help="Writes the record as JSON (docs/run.schema.json).")] = None,
    junit: Annotated[Path | None, typer.Option(help="Writes JUnit XML.")] = None,
) -> None:
    """Runs the gate.

    Exit codes: 0 pass; 1 divergence; 2 usage; 3 a worker died, hung or broke the protocol, or a check reached no
    verdict; 4 something asked for is missing, skipped or not covered; 5 environment unfit. Of several, the first in
    the order 2, 5, 1, 3, 4.
    """
    from parity import profiles, session
    from parity.report import junit as junit_report
    from parity.report import record, table, terminal

    if profile not in profiles.PROFILES:
        raise UserError(f"there is no profile {profile!r}; allowed: {', '.join(profiles.PROFILES)}")
    options = session.Options(
        tiers=_words(tier), checks=tuple(only or ()), stacks=_words(stacks), devices=_devices(device or []), profile=profile, seed=seed,
        time_budget=time_budget, mutants=tuple(mutant or ()), model=model,
    )  # fmt: skip
    _require_writable(json, junit)
    with terminal.progress() as progress:
        result = session.run(options, progress)
    if json is not None:
        record.write(result, json)
    if junit is not None:
        junit_report.write(result, junit)
    with terminal.despite_a_closed_pipe():
        table.show(result, terminal.console())
    raise typer.Exit(result.exit_code)


@app.command()
def bisect(
    check: Annotated[str, typer.Argument(help="A check of tier C, as c.model or c.llama.")],
    question: Annotated[str, typer.Option(help="same_function, precision or fast_path.")] = "same_function",
    stacks: Annotated[str, typer.Option(help="Stacks, comma-separated; all that are known unless given.")] = "",
    device: Annotated[list[str] | None, typer.Option(help="STACK=DEVICE; repeatable.", metavar="STACK=DEVICE")] = None,
    profile: Annotated[str, typer.Option(help="How much to draw: quick, ci or nightly.")] = "quick",
    seed: Annotated[int | None, typer.Option(help="Draws the inputs of that run.", min=0)] = None,
    mutant: Annotated[list[str] | None, typer.Option(help="Plants a known bug first; repeatable.")] = None,
    model: Annotated[str, typer.Option(help="c.model's checkpoint: a known name, a hub id, or a folder.")] = "smollm2-135m",
) -> None:
    """Names every operation that is wrong on the reference's inputs, section by section; memory for one section at a time.

    Exit codes: 0 none is; 1 some are; others as of `parity run`.
    """
    from parity import bisection, profiles, session
    from parity.report import graphs, terminal

    if profile not in profiles.PROFILES:
        raise UserError(f"there is no profile {profile!r}; allowed: {', '.join(profiles.PROFILES)}")
    options = session.Options(
        checks=(check,), stacks=_words(stacks), devices=_devices(device or []), profile=profile, seed=seed,
        mutants=tuple(mutant or ()), model=model,
    )  # fmt: skip
    with terminal.progress() as progress:
        found = bisection.run(options, question, progress)
    with terminal.despite_a_closed_pipe():
        graphs.show_faults(found, terminal.console())
    raise typer.Exit(int(any(faults for _, _, faults in found)))


@app.command()
def doctor() -> None:
    """Says what is installed, which devices and compilers work, which known defects apply here, and what to do."""
    from parity import doctor as examination
    from parity.report import terminal

    raise typer.Exit(examination.show(examination.examine(), terminal.console()))


@app.command()
def coverage(
    write: Annotated[bool, typer.Option("--write", help="Records the matrix in parity/coverage.json.")] = False,
) -> None:
    """Prints the matrix of check x stack x question x device, each cell run or not applicable with the reason."""
    from parity import cells, session
    from parity.report import terminal

    found = session.coverage_of_all()
    terminal.matrix(found)
    if write:
        cells.write_coverage(found)
    elif found != cells.read_coverage():
        raise MissingError("the matrix differs from parity/coverage.json; record it: parity coverage --write")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _devices(pairs: list[str]) -> dict[str, str]:
    devices = {}
    for pair in pairs:
        stack, equals, name = pair.partition("=")
        if not (stack and equals and name):
            raise UserError(f"--device is {pair!r}, must be STACK=DEVICE, as in tinygrad_lora=WEBGPU")
        devices[stack] = name
    return devices


def _require_writable(*paths: Path | None) -> None:
    """Tries to make a file beside each path, so that a run of minutes does not end in an error."""
    given = [path for path in paths if path is not None]
    if len({path.resolve() for path in given}) < len(given):
        raise UserError(f"{given[0]} is named for two reports; give each a file of its own")
    for path in given:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is a folder or a device; give the name of a file")
        try:
            with tempfile.NamedTemporaryFile(dir=path.resolve().parent):
                pass
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror}); make its folder, or give another") from None


def main() -> None:
    """Entry point: one line for what a user can get wrong, and the right exit code."""
    from contract.worker.answers import HarnessError

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        app()
    except MissingError as error:
        _fail(str(error), MISSING)
    except EnvironmentUnfit as error:
        _fail(str(error), UNFIT)
    except UserError as error:
        _fail(str(error), USAGE)
    except HarnessError as error:
        _fail(str(error), HARNESS)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}; check its folder, rights and space", UNFIT)
    except SystemExit as exit_:
        if exit_.code == INTERRUPTED:  # typer has turned Ctrl-C into this
            _fail("interrupted; no report was written", INTERRUPTED)
        raise
    except Exception:
        traceback.print_exc()
        _fail("this is a bug in parity, and says nothing of the stacks; please report it with the lines above", HARNESS)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends as Ctrl-C does, so that workers and their folders go too."""
    raise SystemExit(128 + number)


def _fail(message: str, code: int) -> None:
    print(f"parity: {message}", file=sys.stderr)
    raise SystemExit(code)
