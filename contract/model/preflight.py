"""What can be said of a checkpoint before a byte of its weights is read: its files, its layout, its headers, and nothing else.

The time that it takes grows with the headers alone: a model of 140 GB takes a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from contract import reading
from contract.errors import ContractError, ContractErrors, brief
from contract.model import fit, folder, keymap, layout, shards, weights
from contract.model.fit import Fit
from contract.model.folder import CONFIG, TOKENIZER
from contract.model.headers import Stored
from contract.model.layout import Layout
from contract.run.spec import ModelSpec

_EMBEDDINGS = ("wte.weight", "transformer.wte.weight", "model.embed_tokens.weight")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of a model; `folder` is None where each file was named by itself."""

    folder: Path | None
    config_json: Path
    tokenizer_json: Path | None
    shards: tuple[Path, ...]
    index: Path | None


@dataclass(frozen=True, kw_only=True)
class ProxyStack:
    """What the proxy graph would find: the embedding, and one middle key a layer (attention's output projection).

    missing: the first ones that are not there, fit.LISTED at most; expected - matched is their number.
    """

    embed_key: str
    expected: int
    matched: int
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """A model as its headers show it.

    dtypes, parameters, nbytes: of the weights that are there, a tied head counted once; nbytes is their size in the files.
    missing: keys of the whole graph that no file has, fit.LISTED at most. strange: keys that config.json has no place for. The proxy
    graph needs none of the ones and minds none of the others; the whole graph is refused by checkpoint.open_checkpoint with either.
    """

    files: ModelFiles
    layout: Layout
    proxy: ProxyStack
    dtypes: tuple[str, ...]
    parameters: int
    nbytes: int
    missing: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()


def locate_files(spec: ModelSpec) -> ModelFiles:
    """The files that a contract's model means; nothing but names, sizes and the index is read.

    Raises:
        MissingError: a known name or hub id that was not fetched.
        ContractError: nothing of that name, or a file that is needed or named and is not there.
        ContractErrors: several of those.
    """
    home = None if spec.hf_repo is None else folder.locate(spec.hf_repo, place="model.hf_repo").resolve()
    faults: list[ContractError] = []
    config = _file("model.config_json", spec.config_json, home and home / CONFIG, faults)
    tokenizer = _file("model.tokenizer_json", spec.tokenizer_json, None, faults)
    if spec.tokenizer_json is None and home is not None and (home / TOKENIZER).is_file():
        tokenizer = home / TOKENIZER
    named = [_file("model.weight_shards", name, None, faults) for name in spec.weight_shards]
    found, index = tuple(sorted(path for path in named if path is not None)), None
    seen: dict[Path, Path] = {}
    for path in found:
        twin = seen.setdefault(path.resolve(), path)
        if twin is not path:
            got = f"{path} twice" if path == twin else f"{path} and {twin}, which are one file"
            faults.append(ContractError("model.weight_shards", got=got, allowed="each file once", remedy="leave one of the two out"))
    if not spec.weight_shards:
        try:
            found, index = _shards_of(home)
        except ContractError as fault:
            faults.append(fault)
    if faults:
        raise faults[0] if len(faults) == 1 else ContractErrors(faults)
    assert config is not None
    return ModelFiles(folder=home, config_json=config, tokenizer_json=tokenizer, shards=found, index=index)


def _file(field: str, named: str | None, usual: Path | None, faults: list[ContractError]) -> Path | None:
    """The file that a field names, or the folder's own."""
    try:
        path = usual if named is None else Path(named).expanduser().absolute()
        if path is None:
            if field == "model.config_json":
                faults.append(
                    ContractError(field, got="nothing", allowed="a file, or a folder in model.hf_repo", remedy="give one of them")
                )
            return None
        if path.is_file():
            return path
        got = f"{path}, which is {'a folder' if path.is_dir() else 'no file' if path.exists() else 'not there'}"
    except (OSError, RuntimeError, ValueError) as error:  # a name that no file can have, a user who is not there
        got = f"{brief(named)} ({error})"
    faults.append(ContractError(field, got=got, allowed="a file", remedy="correct the path"))
    return None


def _shards_of(home: Path | None) -> tuple[tuple[Path, ...], Path | None]:
    if home is None:
        raise ContractError(
            "model.weight_shards", got="nothing", allowed="safetensors files, or a folder in model.hf_repo", remedy="give one of them"
        )
    return shards.find(home)


def inspect(files: ModelFiles) -> Inspected:
    """Holds a model's files against each other: config.json, the index, and the header of every shard.

    Raises:
        ContractError: a file is not there or not sound; a key is there twice; the index and the shards differ; a weight's dtype is
            not one of fit.DTYPES, or its shape not config.json's; there is no embedding.
        ContractErrors: config.json has several fields that are not honoured.
    """
    where = str(files.config_json)
    model = layout.read(reading.json_file(files.config_json), where=where)
    if files.tokenizer_json is not None and not files.tokenizer_json.is_file():
        raise ContractError(str(files.tokenizer_json), got="no file", allowed="the tokenizer's file", remedy="correct the path")
    stored = shards.read(files.shards, files.index)
    embed_key = _embedding(model, stored, where)
    found = fit.fit(model, stored)
    tensors = {placed.key: placed.stored for placed in found.placed.values()}  # one may hold three weights
    return Inspected(
        files=files,
        layout=model,
        proxy=_proxy_stack(model, embed_key, found),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()})),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        nbytes=sum(tensor.nbytes for tensor in tensors.values()),
        missing=tuple(weight.key for weight in found.missing),
        strange=found.strange,
    )


def _embedding(model: Layout, stored: Mapping[str, Stored], where: str) -> str:
    """The embedding's key; GPT-2's name first, whatever config.json says, as the proxy graph looks for it."""
    key = next((key for key in _EMBEDDINGS if key in stored), None)
    if key is None:
        raise ContractError(
            where, got="shards without an embedding", allowed=f"one of {', '.join(_EMBEDDINGS)}", remedy="take a whole checkpoint"
        )
    if not weights.at(model, key):
        raise ContractError(
            f"{where}: model_type",
            got=f"{model.model_type}, and weights with {key}",
            allowed="the architecture whose names the weights have",
            remedy="take the config.json that belongs to the weights",
        )
    if stored[key].shape != (model.vocab_size, model.hidden_size):
        raise ContractError(
            f"{stored[key].file}: {key}",
            got=f"shape {brief(list(stored[key].shape))}",
            allowed=f"[{model.vocab_size}, {model.hidden_size}], vocab_size and hidden_size of {where}",
            remedy="take the config.json that belongs to the weights",
        )
    return key


def _proxy_stack(model: Layout, embed_key: str, found: Fit) -> ProxyStack:
    prefix = embed_key.removesuffix("wte.weight") if model.model_type == "gpt2" else ""
    matched = sum(1 for name in found.placed if name.endswith(".o_proj"))
    names = (f"layers.{layer}.o_proj" for layer in range(model.num_hidden_layers))
    missing = islice((name for name in names if name not in found.placed), fit.LISTED)
    return ProxyStack(
        embed_key=embed_key,
        expected=model.num_hidden_layers,
        matched=matched,
        missing=tuple(prefix + keymap.hugging_face_key(name, model_type=model.model_type) for name in missing),
    )
