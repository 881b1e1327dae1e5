"""The hub is asked for the right files, and each of its failures is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors

from contract.errors import EnvironmentUnfit, MissingError, UserError
from contract.model import hub, zoo

NAME = "someone/model"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that has everything; what it is asked for."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda self, name, **options: calls.append({"name": name, **options}))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: calls.append({"name": name, **options}) or tmp_path)
    return calls


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def raising(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", raising)


def answer(kind: type[Exception], status: int) -> Exception:
    return kind("no", response=httpx2.Response(status, request=httpx2.Request("GET", "http://hub.invalid")))


def test_fetch_asks_for_weights_and_tokenizer_at_the_revision(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert hub.fetch(NAME, revision="v2", folder=tmp_path / "there", force=True) == tmp_path
    probe, download = asked
    assert probe == {"name": NAME, "revision": "v2", "timeout": hub.REACH_SECONDS}
    assert download == {
        "name": NAME, "revision": "v2", "local_dir": tmp_path / "there", "local_files_only": False, "force_download": True,
        "allow_patterns": list(hub.PATTERNS),
    }  # fmt: skip
    assert not any(Path("pytorch_model.bin").match(pattern) for pattern in hub.PATTERNS)


@pytest.mark.parametrize("error", [httpx2.ConnectError("no route"), httpx2.ReadTimeout("slow"), errors.OfflineModeIsEnabled("offline")])
def test_without_a_network_the_cache_serves(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail(monkeypatch, error)
    hub.fetch(NAME)
    assert [call["local_files_only"] for call in asked] == [True]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (errors.HFValidationError("bad"), UserError, "is no hub id; give OWNER/NAME"),
        (answer(errors.GatedRepoError, 403), UserError, "licence to be accepted"),
        (answer(errors.RevisionNotFoundError, 404), UserError, "has no revision 'v2'"),
        (answer(errors.RepositoryNotFoundError, 404), UserError, "the hub has no someone/model"),
        (answer(errors.HfHubHTTPError, 500), UserError, r"the hub did not give someone/model at revision v2 \(no\); try again"),
        (httpx2.ReadError("cut off"), UserError, r"\(cut off\); try again: finetune fetch someone/model --revision v2"),
        (PermissionError(13, "Permission denied"), EnvironmentUnfit, "can't write .*--folder DIR"),
    ],
)
def test_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[UserError], message: str) -> None:
    fail(monkeypatch, error)
    with pytest.raises(UserError, match=message) as caught:
        hub.fetch(NAME, revision="v2")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_offline_and_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    fail(monkeypatch, httpx2.ConnectError("no route"))
    with pytest.raises(MissingError, match=r"not in the hub's cache, and the hub can't be reached; run `finetune fetch someone/model`"):
        zoo.fetch(NAME)
    with pytest.raises(MissingError, match=r"someone/model is not here; run: finetune fetch someone/model$"):
        zoo.locate(NAME)


def test_locate_opens_a_checkpoint_with_one_file_of_weights(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match=r"has no model\.safetensors; .* one safetensors file"):
        zoo.locate(NAME)
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    model = zoo.locate(NAME)
    assert model.config == {"model_type": "gpt2"}
    assert model.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert all(call["local_files_only"] for call in asked)
