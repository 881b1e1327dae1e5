"""The `parity` command."""

from __future__ import annotations

import signal
import sys
import traceback
from types import FrameType

import typer

from contract.errors import EnvironmentUnfit, Interrupted, MissingError, UserError
from parity.commands.bisect import bisect
from parity.commands.capture import capture
from parity.commands.compare import compare
from parity.commands.compare_env import compare_env
from parity.commands.coverage import coverage
from parity.commands.doctor import doctor
from parity.commands.explain import explain
from parity.commands.mutants import mutants
from parity.commands.mutate import mutate
from parity.commands.promote import promote
from parity.commands.replay import replay
from parity.commands.run import run
from parity.commands.scorecard import app as scorecard

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Do two stacks compute the same thing?")
app.command()(run)
app.command()(bisect)
app.command()(replay)
app.command()(explain)
app.command()(capture)
app.command()(compare)
app.command("compare-env")(compare_env)
app.command()(doctor)
app.command()(mutants)
app.command()(mutate)
app.command()(coverage)
app.command()(promote)
app.add_typer(scorecard, name="scorecard")

USAGE, HARNESS, MISSING, UNFIT, INTERRUPTED = 2, 3, 4, 5, 130


def main() -> None:
    """Entry point: one line for what a user can get wrong, and the right exit code."""
    from contract.worker.answers import HarnessError

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        app()
    except Interrupted as error:
        _fail(str(error), INTERRUPTED)
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
