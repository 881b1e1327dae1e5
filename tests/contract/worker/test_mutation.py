"""Planting a bug: what is changed, what is not, and that nothing but the changed stack answers afterwards."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contract.data import sampling
from contract.worker import mutation
from contract.worker.process import Mutation, RequestFailed, StackProcess

PACKAGE = "victims.small_stack"
SOURCES = {
    "__init__.py": "",
    "arithmetic.py": "SIGN = 1\nSCALE = 1\n\ndef product(a, b):\n    return SIGN * SCALE * (a @ b)\n",
    "kernels/__init__.py": "FACTOR = 2\n",
    "kernels/fast.py": "from victims.small_stack.kernels import FACTOR\nDOUBLE = FACTOR\n",
    "ops.py": (
        "from contract.worker.stack import Reply\n"
        "from victims.small_stack.arithmetic import product\n\n"
        "class Stack:\n"
        "    def __init__(self, device, channel):\n        pass\n\n"
        "    def compute(self, op, attrs, tensors):\n        return Reply(tensors={'y': product(tensors['a'], tensors['b'])})\n"
    ),
    "worker.py": "from contract.worker.serve import serve\n\nserve('victims.small_stack.ops:Stack')\n",
}
A, B = np.eye(2, dtype=np.float32), np.array([[1, 2], [3, 4]], np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stack's package on the path; the interpreter is put back as it was."""
    for name, source in SOURCES.items():
        path = tmp_path / "victims" / "small_stack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    (tmp_path / "victims" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders, modules = list(sys.meta_path), set(sys.modules)
    yield tmp_path
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        if name.startswith("victims"):
            del sys.modules[name]


def attribute(module: str, name: str) -> object:
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)


def test_the_changed_source_is_imported(folder: Path) -> None:
    assert attribute("arithmetic", "SIGN") == 1
    mutation.plant(PACKAGE, f"{PACKAGE}.arithmetic", "SIGN = 1", "SIGN = -1")
    assert attribute("arithmetic", "SIGN") == -1
    assert attribute("ops", "product")(A, B)[0, 0] == -1  # type: ignore[operator]


def test_the_file_is_not_touched(folder: Path) -> None:
    mutation.plant(PACKAGE, f"{PACKAGE}.arithmetic", "SIGN = 1", "SIGN = -1")
    attribute("arithmetic", "SIGN")
    assert (folder / "victims/small_stack/arithmetic.py").read_text() == SOURCES["arithmetic.py"]


def test_a_changed_module_still_knows_its_file(folder: Path) -> None:
    """Code that reads data files beside it must not break."""
    mutation.plant(PACKAGE, f"{PACKAGE}.arithmetic", "SIGN = 1", "SIGN = -1")
    assert attribute("arithmetic", "__file__") == str(folder / "victims/small_stack/arithmetic.py")


def test_a_second_change_of_a_module_adds_to_the_first(folder: Path) -> None:
    mutation.plant(PACKAGE, f"{PACKAGE}.arithmetic", "SIGN = 1", "SIGN = -1")
    mutation.plant(PACKAGE, f"{PACKAGE}.arithmetic", "SCALE = 1", "SCALE = 3")
    assert (attribute("arithmetic", "SIGN"), attribute("arithmetic", "SCALE")) == (-1, 3)


def test_changes_of_two_modules_both_hold(folder: Path) -> None:
    mutation.plant(PACKAGE, f"{PACKAGE}.arithmetic", "SIGN = 1", "SIGN = -1")
    mutation.plant(PACKAGE, f"{PACKAGE}.kernels.fast", "DOUBLE = FACTOR", "DOUBLE = 0")
    assert (attribute("arithmetic", "SIGN"), attribute("kernels.fast", "DOUBLE")) == (-1, 0)


def test_a_package_can_be_changed_and_keeps_its_modules(folder: Path) -> None:
    mutation.plant(PACKAGE, f"{PACKAGE}.kernels", "FACTOR = 2", "FACTOR = 5")
    assert attribute("kernels.fast", "DOUBLE") == 5


def test_no_way_of_importing_finds_the_old_package(folder: Path) -> None:
    old = importlib.import_module(PACKAGE)
    mutation.plant(PACKAGE, f"{PACKAGE}.arithmetic", "SIGN = 1", "SIGN = -1")
    found: dict[str, object] = {}
    exec("from victims import small_stack", found)
    assert found["small_stack"] is not old


@pytest.mark.parametrize(
    ("module", "find", "why"),
    [
        (f"{PACKAGE}.arithmetic", "= 1", "occurs 2 times, must occur once: '= 1'"),
        (f"{PACKAGE}.arithmetic", "cosine", "occurs 0 times"),
        (f"{PACKAGE}.arithmetic", "", "times, must occur once"),
        (f"{PACKAGE}.nothing", "a", "there is no module victims.small_stack.nothing"),
        (f"{PACKAGE}.nothing.inside", "a", "there is no module"),
        ("contract.worker.wire", "a", "changes the stack's own modules only"),
        (f"{PACKAGE}_of_another", "a", "changes the stack's own modules only"),
    ],
)
def test_what_cant_be_changed_is_refused(folder: Path, module: str, find: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        mutation.plant(PACKAGE, module, find, "b")


def test_a_change_that_does_not_compile_changes_nothing(folder: Path) -> None:
    before = importlib.import_module(f"{PACKAGE}.arithmetic")
    with pytest.raises(SyntaxError):
        mutation.plant(PACKAGE, f"{PACKAGE}.arithmetic", "SIGN = 1", "SIGN = = 1")
    assert importlib.import_module(f"{PACKAGE}.arithmetic") is before


def launch(folder: Path, *mutations: Mutation) -> StackProcess:
    script = f"import runpy, sys; sys.path.insert(0, {str(folder)!r}); runpy.run_module('{PACKAGE}.worker', run_name='__main__')"
    return StackProcess("small_stack", (sys.executable, "-c", script), "CPU", request_seconds=20, start_seconds=20, mutations=mutations)


def product(process: StackProcess) -> np.ndarray:
    return process.compute("matmul", {}, {"a": A, "b": B}).tensors["y"]


NEGATED = Mutation(f"{PACKAGE}.arithmetic", "SIGN = 1", "SIGN = -1")


def test_a_worker_computes_with_the_bug_and_after_a_restart_too(folder: Path) -> None:
    with launch(folder, NEGATED, Mutation(f"{PACKAGE}.arithmetic", "SCALE = 1", "SCALE = 3")) as process:
        np.testing.assert_array_equal(product(process), -3 * B)
        process.kill()
        np.testing.assert_array_equal(product(process), -3 * B)


def test_the_next_worker_is_sound_again(folder: Path) -> None:
    with launch(folder, NEGATED) as process:
        np.testing.assert_array_equal(product(process), -B)
    with launch(folder) as process:
        np.testing.assert_array_equal(product(process), B)


OTHER_DRAW = Mutation("contract.data.sampling", "2.0**_BITS", "2.0**_BITS / 2")
OTHER_KEY = Mutation("contract.data.philox", "digest[4:8]", "digest[8:12]")


def drawn(process: StackProcess) -> float:
    """A number that every process takes from the contract."""
    zero = np.zeros((), np.int64)
    return float(process.request("policy", {"of": "draws", "seed": 3}, {"sequences": zero, "positions": zero}).tensors["u"])


def test_the_contract_is_changed_in_a_worker_and_its_stack_beside_it(folder: Path) -> None:
    with launch(folder) as process:
        right = drawn(process)
    with launch(folder, OTHER_DRAW, NEGATED) as process:
        assert drawn(process) == right / 2
        np.testing.assert_array_equal(product(process), -B)
    with launch(folder, NEGATED, OTHER_KEY) as process:
        assert drawn(process) != right
        np.testing.assert_array_equal(product(process), -B)
    assert importlib.import_module("contract.data.sampling")._BITS == 53
    assert right == sampling.uniform(seed=3, sequences=np.array(0), positions=np.array(0))


@pytest.mark.parametrize("name", ["files", "mutation", "serve", "stack", "wire"])
def test_what_a_worker_is_at_work_with_is_not_changed(name: str) -> None:
    with pytest.raises(ValueError, match="answers the requests of this very process"):
        mutation.plant("contract", f"contract.worker.{name}", "import", "import")


@pytest.mark.parametrize(
    ("find", "replace", "error"),
    [("cosine", "sine", "ValueError"), ("SIGN = 1", "SIGN = = 1", "SyntaxError"), ("SIGN = 1", "SIGN = 1 / 0", "ZeroDivisionError")],
)
def test_a_worker_whose_mutation_fails_never_answers(folder: Path, find: str, replace: str, error: str) -> None:
    """Else a sound stack would be taken for a mutated one that nobody caught."""
    process = launch(folder, Mutation(f"{PACKAGE}.arithmetic", find, replace))
    for _ in range(2):
        with pytest.raises(RequestFailed) as caught:
            product(process)
        assert caught.value.error_class == error
    process.close()


def test_after_a_failed_change_the_unchanged_stack_is_gone(folder: Path) -> None:
    with launch(folder) as process:
        np.testing.assert_array_equal(product(process), B)
        with pytest.raises(RequestFailed):
            process.request("mutate", {"module": f"{PACKAGE}.arithmetic", "find": "SIGN = 1", "replace": "SIGN = 1 / 0"})
        with pytest.raises(RequestFailed, match="start a fresh worker"):
            product(process)


def test_the_launchers_own_process_is_not_changed(folder: Path) -> None:
    with launch(folder, NEGATED) as process:
        product(process)
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); import {PACKAGE}.arithmetic as m; print(m.SIGN)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == "1\n"
