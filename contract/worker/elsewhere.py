"""Starts a module of this project in another environment: `PYTHON -P elsewhere.py MODULE FOLDER ARGUMENTS`.

`contract` comes from beside this file and the module's own package from FOLDER; everything else (NumPy, torch, tinygrad) is that
environment's. Where this project is installed among other packages, a search path would bring those too.
"""

from __future__ import annotations

import importlib.machinery
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parents[2]


class Packages:
    """Finds some top-level packages in given folders, and nothing else."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = folders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As importlib.abc.MetaPathFinder.find_spec; what lies inside a package is found by its own path."""
        folder = self._folders.get(name) if path is None else None
        return None if folder is None else importlib.machinery.PathFinder.find_spec(name, [folder])


if __name__ == "__main__":
    module, folder = sys.argv[1:3]
    del sys.argv[1:3]
    sys.meta_path.insert(0, Packages({module.partition(".")[0]: folder, "contract": str(HERE)}))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
