"""Which stacks are there: found by metadata, never imported; a broken declaration is told in one line."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from contract.errors import MissingError, UserError
from contract.worker.discover import discover, version
from contract.worker.stack import REQUESTS

SOUND = {
    "protocol": 1, "lane": "research", "extra": "mine", "packages": ["numpy"], "devices": ["CPU"], "requests": ["probe"],
    "operations": {"matmul": ["float32"]},
}  # fmt: skip


def configure(folder: Path, text: str, capabilities: object = SOUND) -> Path:
    (folder / "capabilities.json").write_text(json.dumps(capabilities))
    (folder / "parity.toml").write_text(text)
    return folder / "parity.toml"


MINE = '[stacks.mine]\ncommand = ["ssh", "mac", "worker"]\ncapabilities = "capabilities.json"\n'


def test_finds_the_installed_stacks() -> None:
    stacks = discover()
    assert {"tinygrad_lora", "torch_qlora"} <= set(stacks)
    assert list(stacks) == sorted(stacks)
    assert stacks["torch_qlora"].command == (sys.executable, "-m", "stacks.torch_qlora.worker")
    assert stacks["torch_qlora"].capabilities.lane == "production"
    assert stacks["tinygrad_lora"].capabilities.lane == "research"


def test_finding_imports_no_stack() -> None:
    script = (
        "import sys; from contract.worker.discover import discover; discover(); print([m for m in sys.modules if m.startswith('stacks')])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize("name", ["tinygrad_lora", "torch_qlora"])
def test_installed_stacks_declare_requests_that_exist(name: str) -> None:
    assert set(discover()[name].capabilities.requests) <= set(REQUESTS)


def test_a_table_adds_a_stack(tmp_path: Path) -> None:
    stack = discover(configure(tmp_path, MINE))["mine"]
    assert stack.command == ("ssh", "mac", "worker")
    assert stack.capabilities.devices == ("CPU",)
    stack.require_installed()


def test_a_table_replaces_an_installed_stack(tmp_path: Path) -> None:
    stacks = discover(configure(tmp_path, MINE.replace("stacks.mine", "stacks.torch_qlora")))
    assert stacks["torch_qlora"].command == ("ssh", "mac", "worker")


def test_the_file_in_the_current_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path, MINE)
    assert "mine" not in discover()
    monkeypatch.chdir(tmp_path)
    assert "mine" in discover()


def test_a_table_of_another_name_is_refused(tmp_path: Path) -> None:
    """[stack.mine] for [stacks.mine], say, would leave a stack out without a word."""
    with pytest.raises(UserError, match=r"unknown \['stack'\]; allowed: tables \[stacks\.NAME\]"):
        discover(configure(tmp_path, MINE.replace("stacks.mine", "stack.mine")))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[stacks", "can't be read"),
        ("stacks = 3", "give tables"),
        ("[stacks]\nmine = 3", r"\[stacks.mine\] has 3; give command"),
        ('[stacks.mine]\ncommand = ["a"]', r"\[stacks.mine\] has \['command'\]; give command"),
        (MINE + "devices = []\n", "nothing else"),
        (MINE.replace('["ssh", "mac", "worker"]', "[]"), r"needs command = \[words\]"),
        (MINE.replace('["ssh", "mac", "worker"]', '"ssh mac"'), r"needs command = \[words\]"),
        (MINE.replace('"mac"', "1"), r"needs command = \[words\]"),
        (MINE.replace("capabilities.json", "absent.json"), "stack mine: .*absent.json can't be read"),
    ],
)
def test_an_unsound_table_is_refused_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        discover(configure(tmp_path, text))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = configure(tmp_path, MINE)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="can't be read"):
        discover(path)


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        discover(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"protocol": 2}, "protocol"),
        ({"lane": "fast"}, "lane"),
        ({"devices": "CPU"}, "devices"),
        ({"speed": 3}, "speed"),
        ({"elementary": [{"function": "exp", "dtype": "float32", "low": 0, "high": 1, "ulp": -1, "absolute": 0}]}, "elementary.0.ulp"),
    ],
)
def test_unsound_capabilities_are_refused_by_field(tmp_path: Path, change: dict[str, object], where: str) -> None:
    with pytest.raises(UserError, match=rf"stack mine: capabilities.json: {where}: "):
        discover(configure(tmp_path, MINE, {**SOUND, **change}))


def test_capabilities_that_are_no_json_are_refused(tmp_path: Path) -> None:
    path = configure(tmp_path, MINE)
    (tmp_path / "capabilities.json").write_text("{")
    with pytest.raises(UserError, match=r"stack mine: capabilities\.json"):
        discover(path)


def test_a_missing_package_says_what_to_install(tmp_path: Path) -> None:
    stack = discover(configure(tmp_path, MINE, {**SOUND, "packages": ["numpy", "frobnicate-not-there"]}))["mine"]
    assert stack.missing_packages() == ("frobnicate-not-there",)
    with pytest.raises(MissingError, match=r"needs frobnicate-not-there, .*pip install 'twostack\[mine\]'"):
        stack.require_installed()


def test_versions() -> None:
    assert version("numpy") == importlib.metadata.version("numpy")
    assert version("frobnicate-not-there") is None
