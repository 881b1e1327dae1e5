"""Another virtual environment: its Python, its versions, its packages; and this project's code in it."""

from __future__ import annotations

import json
import os
import site
import subprocess
import venv
from pathlib import Path

import pytest

from contract.errors import MissingError, UserError
from contract.worker import elsewhere as starter
from contract.worker.discover import discover, elsewhere
from contract.worker.environment import command, interpreter, versions


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the packages of this one, another tinygrad, and no torch (by their metadata)."""
    folder = tmp_path_factory.mktemp("environments") / "other"
    venv.create(folder, with_pip=False)
    packages = next((folder / "lib").glob("python3.*")) / "site-packages"
    for name, version in (("tinygrad", "99.1"), ("frobnicate", "1.2")):
        (packages / f"{name}-{version}.dist-info").mkdir()
        (packages / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (packages / "layer.pth").write_text("\n".join(site.getsitepackages()))
    return folder


def test_an_environment_is_named_by_its_folder_or_its_python(other: Path) -> None:
    assert interpreter(other) == interpreter(other / "bin" / "python") == other / "bin" / "python"


@pytest.mark.parametrize("name", ["absent", "."])
def test_an_environment_that_is_not_there_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingError, match=r"environment .*python is not there|environment .*absent is not there"):
        interpreter(tmp_path / name)


def test_versions_are_those_of_the_environment(other: Path) -> None:
    found = versions(interpreter(other), ("tinygrad", "frobnicate", "not-there"))
    assert found == {"tinygrad": "99.1", "frobnicate": "1.2", "not-there": None}


def test_an_environment_without_what_a_worker_needs_is_missing(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    with pytest.raises(MissingError, match=r"environment .*bare.*a worker can't start there \(ModuleNotFoundError: .*pip install twostack"):
        versions(interpreter(tmp_path / "bare"), ("numpy",))


def test_a_python_that_is_none_is_missing(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("echo")
    with pytest.raises(MissingError, match=r"environment .*: it does not start"):
        versions(tmp_path / "python", ("numpy",))


def test_a_worker_there_has_this_code_and_those_packages(other: Path, tmp_path: Path) -> None:
    """Beside the stack's package lies a NumPy of another kind, as this project's would where it is installed among others."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "numpy.py").write_text("raise ImportError('the wrong one')")
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "worker.py").write_text(
        "import json, sys, contract, numpy\n"
        "if __name__ == '__main__':\n"
        "    print(json.dumps([contract.__file__, numpy.__file__, __file__, sys.prefix, sys.argv[1:]]))\n"
    )
    asked = [*command(interpreter(other), "mine.worker", tmp_path), "--device", "CPU"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=tmp_path)
    contract, numpy, module, prefix, words = json.loads(done.stdout)
    assert Path(contract).parents[1] == starter.HERE
    assert Path(numpy).is_relative_to(site.getsitepackages()[0])
    assert Path(module) == tmp_path / "mine" / "worker.py"
    assert prefix == str(other)
    assert words == ["--device", "CPU"]


def configure(folder: Path, python: object, stack: object = "tinygrad_lora") -> Path:
    path = folder / "parity.toml"
    path.write_text(f"[stacks.newer]\npython = {json.dumps(python)}\nstack = {json.dumps(stack)}\n")
    return path


def test_a_table_puts_an_installed_stack_into_another_environment(other: Path, tmp_path: Path) -> None:
    known = discover(configure(tmp_path, os.path.relpath(other, tmp_path)))
    stack = known["newer"]
    assert stack.capabilities == known["tinygrad_lora"].capabilities
    assert (stack.stack, known["tinygrad_lora"].stack) == ("tinygrad_lora", "")
    assert Path(stack.command[0]).samefile(other / "bin" / "python")
    assert stack.versions() == stack.told_versions() == {"tinygrad": "99.1"}
    assert known["tinygrad_lora"].versions() != stack.versions()
    stack.require_installed()


def test_a_package_that_the_environment_lacks_is_missing_there(other: Path) -> None:
    stack = elsewhere("tinygrad_lora", other)
    lacking = type(stack)(
        name="mine", command=stack.command, python=other, stack="tinygrad_lora",
        capabilities=stack.capabilities.model_copy(update={"packages": ("tinygrad", "not-there")}),
    )  # fmt: skip
    assert lacking.told_versions() == {"tinygrad": "99.1", "not-there": "not installed"}
    with pytest.raises(MissingError, match=rf"mine needs not-there, not installed in the environment {other}; run: {other}/bin/python"):
        lacking.require_installed()


def test_an_environment_that_is_gone_is_told_when_the_stack_is_needed(tmp_path: Path) -> None:
    """Not before: the other stacks of the file can still be asked."""
    stack = discover(configure(tmp_path, "gone"))["newer"]
    with pytest.raises(MissingError, match=r"environment .*gone.* is not there; give a virtual environment's folder"):
        stack.require_installed()


@pytest.mark.parametrize(
    ("python", "stack", "why"),
    [
        (3, "tinygrad_lora", r"\[stacks.newer\] needs python = 'a virtual environment'"),
        ("there", ["tinygrad_lora"], r"\[stacks.newer\] needs python"),
        ("there", "abacus", r"there is no installed stack 'abacus'; allowed: .*tinygrad_lora"),
    ],
)
def test_an_unsound_table_is_refused_in_one_line(tmp_path: Path, python: object, stack: object, why: str) -> None:
    with pytest.raises(UserError, match=why):
        discover(configure(tmp_path, python, stack))
