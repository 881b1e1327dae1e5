"""The `finetune` command.

Exit codes: 0 done, 1 failed, 2 usage or refused, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from contract.commands.convert import convert
from contract.commands.digest import digest
from contract.commands.fetch import fetch
from contract.commands.generate import generate
from contract.commands.init import init
from contract.commands.merge_qlora import merge_qlora
from contract.commands.merge_weights import merge_weights
from contract.commands.plan import plan
from contract.commands.preflight import preflight
from contract.commands.train import train
from contract.errors import ContractError, ContractErrors, Interrupted, UserError, printable

app = typer.Typer(name="finetune", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(fetch)
app.command()(init)
app.command()(plan)
app.command()(preflight)
app.command()(digest)
app.command()(train)
app.command()(merge_qlora)
app.command()(merge_weights)
app.command()(convert)
app.command()(generate)


@app.callback()
def _finetune() -> None:
    """Fine-tunes language models, on either of two stacks that are held against each other."""


def main() -> None:
    """The console script: a UserError is one line on standard error, and so is Ctrl-C."""
    interrupts = _Interrupts()
    try:
        app()
    except (ContractError, ContractErrors) as error:
        _say(error)
        sys.exit(2)
    except UserError as error:
        _say(error)
        sys.exit(1)
    except OSError as error:
        place = printable(str(error.filename or "output"))
        print(f"finetune: {place}: {error.strerror or error}; check its folder, rights and space", file=sys.stderr)
        sys.exit(1)
    except Interrupted as interrupted:
        print(f"finetune: {printable(str(interrupted))}", file=sys.stderr)
        sys.exit(130)
    except SystemExit as exit_:
        if exit_.code == 130:
            _say_interrupted()
        raise
    except (Exception, KeyboardInterrupt):  # KeyboardInterrupt: before typer itself looks out for it
        if not interrupts.seen:
            raise
        _say_interrupted()
        sys.exit(130)
    finally:
        interrupts.close()


class _Interrupts:
    """Notes Ctrl-C: a library in C that is interrupted while it loads raises an ImportError in its place."""

    def __init__(self) -> None:
        self.seen = False
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is signal.default_int_handler:  # else it's ignored (nohup), or somebody else's
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def close(self) -> None:
        """Puts back what was there."""
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._before)


def _say_interrupted() -> None:
    print("finetune: interrupted; the same command starts it again", file=sys.stderr)


def _say(error: UserError) -> None:
    if isinstance(error, ContractError | ContractErrors):  # a place may hold a path with a line feed in it
        lines = [str(fault) for fault in (error.faults if isinstance(error, ContractErrors) else (error,))]
    else:
        lines = str(error).splitlines()
    for line in lines:
        print(f"finetune: {printable(line)}", file=sys.stderr)
