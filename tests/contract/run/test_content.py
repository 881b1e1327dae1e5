"""Content hashes: right, remembered while nothing changes, and never worse off for a damaged cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ContractError
from contract.run import content
from contract.run.content import CHUNK_BYTES, inputs_of, sha256_of_inputs
from contract.run.spec import FineTuneContract

ROLE = "data.train_file"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which trusts a file's times at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "RACY_NS", 0)
    return tmp_path / "cache" / "twostack" / "hashes"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n" * 1000)
    return tmp_path / "rows.jsonl"


def hashed(path: Path) -> tuple[str, bool]:
    """A file's hash, and whether the file was read for it."""
    calls: list[str] = []
    sha256 = sha256_of_inputs({ROLE: path}, progress=lambda role, done, total: calls.append(role))[ROLE]
    return sha256, bool(calls)


def expected(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_it_is_the_files_sha256(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    assert hashed(path)[0] == expected(path)
    assert hashed(path) == (expected(path), False)


def test_progress_tells_role_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(CHUNK_BYTES + 5))
    calls: list[tuple[str, int, int]] = []
    sha256_of_inputs({"a": path}, progress=lambda *call: calls.append(call))
    assert calls == [("a", CHUNK_BYTES, CHUNK_BYTES + 5), ("a", CHUNK_BYTES + 5, CHUNK_BYTES + 5)]


def test_a_change_is_seen(path: Path) -> None:
    before = hashed(path)[0]
    path.write_bytes(b"other")
    assert hashed(path) == (expected(path), True)
    assert hashed(path)[0] != before


def test_a_change_that_keeps_size_and_time_is_seen(path: Path) -> None:
    hashed(path)
    status = path.stat()
    path.write_bytes(b"[]\n" * 1000)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hashed(path) == (expected(path), True)


def test_another_file_in_its_place_is_seen(path: Path) -> None:
    hashed(path)
    other = path.with_name("other")
    other.write_bytes(b"[]\n" * 1000)
    os.replace(other, path)
    assert hashed(path) == (expected(path), True)


def test_what_changed_just_now_is_not_remembered(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change in the same tick of the file system's clock could not be told from none."""
    monkeypatch.setattr(content, "RACY_NS", 3600 * 10**9)
    assert hashed(path) == hashed(path) == (expected(path), True)
    assert not cache.exists()


def test_a_file_has_one_entry_whatever_becomes_of_it(path: Path, cache: Path) -> None:
    for text in ("a", "bb", "ccc"):
        path.write_text(text)
        hashed(path)
    link = path.with_name("link")
    link.symlink_to(path)
    assert hashed(link) == (expected(path), False)
    assert len(list(cache.iterdir())) == 1


def test_an_entry_is_what_is_read(path: Path, cache: Path) -> None:
    hashed(path)
    [entry] = cache.iterdir()
    entry.write_text(entry.read_text().replace(expected(path), "0" * 64))
    assert hashed(path) == ("0" * 64, False)


DAMAGE: dict[str, Callable[[dict[str, Any]], str]] = {
    "empty": lambda entry: "",
    "cut off": lambda entry: json.dumps(entry)[:50],
    "another size": lambda entry: json.dumps(entry | {"state": entry["state"] | {"size": 1}}),
    "a size as text": lambda entry: json.dumps(entry | {"state": entry["state"] | {"size": str(entry["state"]["size"])}}),
    "another path": lambda entry: json.dumps(entry | {"state": entry["state"] | {"path": "/elsewhere"}}),
    "no hash": lambda entry: json.dumps({"state": entry["state"]}),
    "a short hash": lambda entry: json.dumps(entry | {"sha256": "0" * 63}),
    "a hash in capitals": lambda entry: json.dumps(entry | {"sha256": "A" * 64}),
    "a field more": lambda entry: json.dumps(entry | {"colour": "red"}),
    "a list": lambda entry: "[]",
    "deep": lambda entry: "[" * 10_000,
    "NaN": lambda entry: "NaN",
    "long": lambda entry: json.dumps(entry) + " " * 2**17,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_written_anew(path: Path, cache: Path, damage: str) -> None:
    hashed(path)
    [entry] = cache.iterdir()
    entry.write_text(DAMAGE[damage](json.loads(entry.read_text())))
    assert hashed(path) == (expected(path), True)
    assert hashed(path) == (expected(path), False)


@given(junk=st.binary(max_size=200))
def test_any_bytes_for_an_entry(junk: bytes) -> None:
    path = Path(__file__)
    sha256 = hashed(path)[0]
    content._entry_path(str(path.resolve())).write_bytes(junk)
    assert hashed(path)[0] == sha256 == expected(path)


def test_an_entry_that_is_a_folder_or_no_utf_8(path: Path, cache: Path) -> None:
    hashed(path)
    [entry] = cache.iterdir()
    entry.write_bytes(b"\xff")
    assert hashed(path) == (expected(path), True)
    entry.unlink()
    entry.mkdir()
    assert hashed(path) == hashed(path) == (expected(path), True)


def test_a_cache_that_can_not_be_written_costs_the_hashing_only(path: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    assert hashed(path) == hashed(path) == (expected(path), True)


@pytest.mark.parametrize("change", ["append", "replace", "rewrite", "cut", "remove"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, cache: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * CHUNK_BYTES))

    def meddle(role: str, done: int, total: int) -> None:
        if done == CHUNK_BYTES:
            CHANGES[change](path)

    with pytest.raises(ContractError, match=r"changed while it was read|No such file"):
        sha256_of_inputs({ROLE: path}, progress=meddle)
    assert not cache.exists()


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


def rewrite(path: Path) -> None:
    status = path.stat()
    with open(path, "r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], None]] = {
    "append": append,
    "replace": replace,
    "rewrite": rewrite,
    "cut": lambda path: os.truncate(path, CHUNK_BYTES),
    "remove": lambda path: path.unlink(),
}


def test_several_processes_share_a_cache(tmp_path: Path, cache: Path) -> None:
    files = {f"file {number}": tmp_path / f"file {number}" for number in range(8)}
    for name, path in files.items():
        path.write_text(name)
    code = f"""
from pathlib import Path
from contract.run import content
content.RACY_NS = 0
files = {{name: Path(path) for name, path in { ({name: str(path) for name, path in files.items()})!r}.items()}}
for _ in range(10):
    for entry in content.cache_folder().glob("hashes/*.json"):
        entry.unlink(missing_ok=True)
    print(sorted(content.sha256_of_inputs(files).items()))
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {line for process in running for line in process.communicate(timeout=60)[0].splitlines()}
    assert [process.returncode for process in running] == [0, 0]
    assert outputs == {str(sorted((name, expected(path)) for name, path in files.items()))}
    assert all(entry.suffix == ".json" for entry in cache.iterdir())


def test_no_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", ".", "pipe"):
        with pytest.raises(ContractError, match=f"{ROLE}: .*got no file"):
            sha256_of_inputs({ROLE: tmp_path / name})


# ---- which files


def contract(**fields: Any) -> FineTuneContract:
    return FineTuneContract.model_validate({"model": {}, "data": {"train_file": "t.jsonl"}} | fields)


def test_the_files_of_a_contract_by_role(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors", "t.jsonl"):
        (tmp_path / name).write_text("{}")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_text(folder)
    train = {"train_file": str(tmp_path / "t.jsonl")}
    assert {role: path.name for role, path in inputs_of(contract(model={"hf_repo": str(tmp_path)}, data=train)).files.items()} == {
        "model.config_json": "config.json",
        "model.tokenizer_json": "tokenizer.json",
        "model.weight_shards/model.safetensors": "model.safetensors",
        "data.train_file": "t.jsonl",
    }
    shards = [str(tmp_path / folder / "model.safetensors") for folder in ("a", "b")]
    config = str(tmp_path / "config.json")
    both = [inputs_of(contract(model={"config_json": config, "weight_shards": some}, data=train)) for some in (shards, shards[::-1])]
    assert both[0] == both[1]
    assert [role for role in both[0].files if "shards" in role] == [f"model.weight_shards/{shard}" for shard in shards]


@pytest.mark.parametrize("train_file", ["absent.jsonl", ".", "~nobody_of_this_name/t.jsonl", "x" * 300])
def test_what_is_not_here_is_said(tmp_path: Path, train_file: str) -> None:
    found = inputs_of(
        contract(model={"config_json": "absent.json", "weight_shards": ["absent.safetensors"]}, data={"train_file": train_file})
    )
    assert found.files == {}
    assert sorted({str(fault).split(":")[0] for fault in found.faults}) == ["data.train_file", "model.config_json", "model.weight_shards"]


def test_a_model_that_was_not_fetched_is_said() -> None:
    [fault, _] = inputs_of(contract(model={"hf_repo": "smollm2-135m"})).faults
    assert "finetune fetch smollm2-135m" in str(fault)
