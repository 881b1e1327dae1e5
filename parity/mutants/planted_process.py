"""`parity` in a process that has planted what mutants change of the contract.

python -m parity.mutants.planted_process --plant=NAME ... ARGUMENTS
"""

from __future__ import annotations

import importlib
import sys

from contract.errors import UserError
from parity.mutants import planting

_PLANT = "--plant="


def main() -> None:
    """Plants, and goes on as `parity ARGUMENTS`."""
    names = [argument.removeprefix(_PLANT) for argument in sys.argv[1:] if argument.startswith(_PLANT)]
    try:
        planting.plant(names)
    except UserError as error:
        print(f"parity: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    importlib.import_module("parity.mutants.planting").PLANTED.extend(names)
    sys.argv = ["parity", *(argument for argument in sys.argv[1:] if not argument.startswith(_PLANT))]
    importlib.import_module("parity.cli").main()


if __name__ == "__main__":
    main()
