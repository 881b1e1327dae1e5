"""The `finetune` command.

Exit codes: 0 done, 1 failed, 2 usage or refused, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from contract.commands.convert import convert
from contract.commands.digest import digest
from contract.commands.fetch import fetch
from contract.commands.init import init
from contract.commands.merge_qlora import merge_qlora
from contract.commands.merge_weights import merge_weights
from contract.commands.plan import plan
from contract.commands.preflight import preflight
from contract.errors import ContractError, ContractErrors, UserError

app = typer.Typer(name="finetune", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(fetch)
app.command()(init)
app.command()(plan)
app.command()(preflight)
app.command()(digest)
app.command()(merge_qlora)
app.command()(merge_weights)
app.command()(convert)


@app.callback()
def _finetune() -> None:
    """Fine-tunes language models, on either of two stacks that are held against each other."""


def main() -> None:
    """The console script: a UserError is one line on standard error."""
    try:
        app()
    except (ContractError, ContractErrors) as error:
        _say(error)
        sys.exit(2)
    except UserError as error:
        _say(error)
        sys.exit(1)
    except OSError as error:
        print(f"finetune: {error.filename or 'output'}: {error.strerror or error}; check its folder, rights and space", file=sys.stderr)
        sys.exit(1)
    except SystemExit as exit_:
        if exit_.code == 130:
            print("finetune: interrupted; the same command starts it again", file=sys.stderr)
        raise


def _say(error: UserError) -> None:
    for line in str(error).splitlines():
        print(f"finetune: {line}", file=sys.stderr)
