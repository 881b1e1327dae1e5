"""Which statements a worker runs: its source with a call before each, in its own process alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from parity.mutants.generic.traced import RAN, instrumented

SOURCE = '''
TOP = 1


def f(x):
    """Says so."""
    global TOP
    if x > 0:
        y = [z for z in range(x)]
    elif x == 0:
        y = []
    else:
        raise ValueError
    for one in y:
        TOP += one
    else:
        TOP = TOP
    try:
        return g(y)
    except IndexError:
        return 0
    finally:
        TOP += 0


def g(y):
    def inner():
        return y[0]

    match len(y):
        case 0:
            return -1
        case _:
            return inner()


class C:
    def method(self):
        return f(2)
'''


def ran(call: str) -> list[int]:
    lines: list[int] = []
    names: dict[str, object] = {RAN: lines.append}
    exec(compile(instrumented(ast.parse(SOURCE)), "made", "exec"), names)
    exec(call, names)
    return lines


def test_every_statement_that_runs_is_noted_in_order() -> None:
    assert ran("assert f(2) == 0") == [8, 9, 14, 15, 15, 17, 18, 19, 27, 30, 34, 28, 23]


def test_branches_that_do_not_run_are_not_noted() -> None:
    assert ran("assert f(0) == -1") == [8, 10, 11, 14, 17, 18, 19, 27, 30, 32, 23]


def test_methods_are_noted_and_imports_are_not() -> None:
    assert ran("pass") == []
    assert ran("C().method()")[0] == 39


def test_docstrings_stay() -> None:
    names: dict[str, object] = {RAN: print}
    exec(compile(instrumented(ast.parse(SOURCE)), "made", "exec"), names)
    assert names["f"].__doc__ == "Says so."


def test_a_worker_notes_its_packages_statements_each_once(tmp_path: Path) -> None:
    package, traced = tmp_path / "made", tmp_path / "traced"
    package.mkdir()
    traced.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sums.py").write_text("def total(x):\n    y = sum(x)\n    return y\n\n\ndef other():\n    return 1\n")
    (package / "worker.py").write_text("import sys\nfrom made.sums import total\nprint(total([1, 2]), total([3]), sys.argv[1:])\n")
    answer = subprocess.run(
        [sys.executable, "-m", "parity.mutants.generic.traced", str(traced), "made.worker", "--device", "CPU"],
        cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[4]}"}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert answer.stdout == "3 3 ['--device', 'CPU']\n"
    (file,) = traced.iterdir()
    assert file.read_text().splitlines() == ["made.sums:2", "made.sums:3"]
    assert not list(package.rglob("*sums*.pyc")), "changed code must not be kept on disk"
