"""What an import loads, seen in a fresh interpreter: import-linter reads the source, and misses what importlib does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FRAMEWORKS = {"bitsandbytes", "mlx", "mlx_lm", "peft", "tinygrad", "torch", "transformers"}
OWN = {
    "stacks.torch_qlora": {"bitsandbytes", "peft", "torch", "transformers"},
    "stacks.tinygrad_lora": {"tinygrad"},
    "stacks.peft_witness": {"bitsandbytes", "peft", "torch", "transformers"},  # PEFT loads bitsandbytes where it finds it
}
SLOW = {"gguf", "huggingface_hub", "hypothesis", "ml_dtypes", "mpmath", "numpy", "safetensors", "scipy", "tokenizers"}

WALK = """
import importlib, json, pkgutil, sys
package, foreign = sys.argv[1], set(json.loads(sys.argv[2]))
top = importlib.import_module(package)
modules = [package, *(found.name for found in pkgutil.walk_packages(top.__path__, package + "."))]
blame = {}
for module in modules:
    importlib.import_module(module)
    for name in sorted(foreign & set(sys.modules) - set(blame)):
        blame[name] = module
print(json.dumps({"modules": modules, "blame": blame}))
"""


def walk(package: str, foreign: set[str]) -> tuple[list[str], dict[str, str]]:
    """Imports every module of a package in a fresh interpreter: their names, and which module loaded which foreigner."""
    command = [sys.executable, "-c", WALK, package, json.dumps(sorted(foreign))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["modules"], answer["blame"]


@pytest.mark.parametrize("package", ["contract", "parity"])
def test_no_framework_is_loaded(package: str) -> None:
    modules, blame = walk(package, FRAMEWORKS | {"stacks"})
    assert len(modules) > 10
    assert blame == {}


def test_contract_does_not_load_parity() -> None:
    assert walk("contract", {"parity"})[1] == {}


@pytest.mark.parametrize("package", sorted(OWN))
def test_a_stack_loads_only_its_own_framework(package: str) -> None:
    others = set(OWN) - {package}
    modules, blame = walk(package, FRAMEWORKS - OWN[package] | others | {"parity"})
    assert f"{package}.worker" in modules
    assert blame == {}


@pytest.mark.parametrize("module", ["contract.cli", "parity.cli"])
def test_a_command_line_starts_without_what_only_its_subcommands_need(module: str) -> None:
    """So that --help answers at once (start-up under 0.3 s)."""
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) & (FRAMEWORKS | SLOW | {"stacks"}) == set()


def test_the_walk_sees_an_import() -> None:
    """The check itself can fail: the engine's own arrays are found, and blamed on the module that asked for them."""
    assert walk("contract.worker", {"numpy"})[1]["numpy"].startswith("contract.worker.")
