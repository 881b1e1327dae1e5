"""A checkpoint on disk: config.json and safetensors files as transformers writes them.

Opening reads headers, sizes and hashes, and holds every key against what config.json says; no weight is taken on trust, and
none is left out or made up in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors' NumPy reader needs)
import numpy as np
from safetensors import SafetensorError, safe_open

from contract.errors import UserError
from contract.model import hub, keymap, layout, zoo
from contract.model.layout import LlamaLayout
from contract.worker import files, graph
from contract.worker.files import FileReference
from contract.worker.plan import GraphPlan, Lora

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

DTYPES = ("F32", "BF16", "F16")
"""Dtypes of weights, as safetensors spells them; each widens to float32 exactly."""

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_BUFFER = re.compile(r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq")
"""RoPE's frequencies, which old versions of transformers saved and every version computes from rope_theta."""

_BLOCK_ELEMENTS = 2**22
_DOWNLOAD = "download the checkpoint again"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found sound; `tensors` has the place of each weight by its name in contract/worker/graph.py."""

    name: str
    path: Path
    layout: LlamaLayout
    tensors: Mapping[str, FileReference]


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """One tensor as a header describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def locate(name_or_folder: str) -> Checkpoint:
    """A checkpoint by a known model's name, by a folder that exists, or by a hub id (OWNER/NAME) that was fetched.

    Raises:
        MissingError: a known name or hub id that was not fetched.
        UserError: nothing of that name; a checkpoint that is not sound.
    """
    if name_or_folder in zoo.KNOWN:
        model = zoo.locate(name_or_folder)
        checkpoint = open_checkpoint(model.path, name=name_or_folder)
        for reference in checkpoint.tensors.values():
            if reference.sha256 != model.sha256:
                raise UserError(
                    f"{reference.path} is damaged: SHA-256 {reference.sha256}, must be {model.sha256}; "
                    f"run: finetune fetch {name_or_folder} --force"
                )
        return checkpoint
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return open_checkpoint(folder)
    if zoo.is_hub_id(name_or_folder) and not name_or_folder.startswith((".", "/", "~")):
        return open_checkpoint(hub.locate(name_or_folder), name=name_or_folder)
    raise UserError(
        f"there is no model and no folder {name_or_folder!r}; give one of {', '.join(zoo.KNOWN)}, a folder with {CONFIG}, or a hub id"
    )


def open_checkpoint(folder: Path, *, name: str = "") -> Checkpoint:
    """Holds a folder's files against each other and against config.json; a weight is read only where a tied head comes as a copy.

    Args:
        name: what reports call it; the folder's name where none is given.

    Raises:
        UserError: a file is missing, damaged or outside of the folder; config.json is not honoured; a key is missing, there twice,
            unknown, or of the wrong shape or dtype.
    """
    folder = folder.resolve()
    model, index = _layout(folder), _index(folder)
    stored: dict[str, _Stored] = {}
    for shard in sorted(set(index.values())) if index else [WEIGHTS]:
        for key, tensor in _header(folder / shard).items():
            if key in stored:
                raise UserError(f"{key!r} is in {stored[key].file} and in {shard}, allowed once; {_DOWNLOAD}")
            stored[key] = tensor
    _require_as_indexed(folder, index, stored)
    if model.num_hidden_layers > len(stored):  # before a list of a billion keys is made
        raise UserError(
            f"{folder / CONFIG}: num_hidden_layers is {model.num_hidden_layers}, "
            f"and the weights are {len(stored)} tensors in all; correct it"
        )
    needed = _needed(model)
    for key in needed:
        _require_weight(folder, key, needed[key][1], stored.get(key))
    for key in sorted(stored.keys() - needed.keys()):
        _require_harmless(model, key, stored)
    tensors = {
        weight: FileReference(sha256=files.sha256_of(stored[key].file), tensor=key, path=str(stored[key].file))
        for key, (weight, _) in needed.items()
    }
    return Checkpoint(name=name or folder.name, path=folder, layout=model, tensors=MappingProxyType(tensors))


def load(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """A weight by its name in contract/worker/graph.py: float32, widened exactly where it lies in bfloat16 or float16.

    Raises:
        UserError: the checkpoint has no such weight, or its file has changed since it was opened.
    """
    if name not in checkpoint.tensors:
        raise UserError(f"{checkpoint.name} has no weight {name!r}; it has {len(checkpoint.tensors)}: {', '.join(checkpoint.tensors)}")
    reference = checkpoint.tensors[name]
    try:
        return files.load(reference).astype(np.float32, copy=False)
    except files.FileNeeded:
        raise _changed(reference) from None


def require_finite(checkpoint: Checkpoint, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Reads every weight.

    Args:
        progress: called with the weights read, and all of them.

    Raises:
        UserError: a weight holds NaN or infinity; names file, key, and how many. Or a file has changed since it was opened.
    """
    for done, reference in enumerate(checkpoint.tensors.values(), start=1):
        path = Path(reference.path)
        if not path.is_file() or files.sha256_of(path) != reference.sha256:
            raise _changed(reference)
        bad = sum(int(np.count_nonzero(~np.isfinite(block.astype(np.float32)))) for block in _blocks(path, reference.tensor))
        if bad:
            raise UserError(f"{path}: {reference.tensor} holds {bad} NaN or infinite values, allowed: none; {_DOWNLOAD}")
        progress(done, len(checkpoint.tensors))


def _changed(reference: FileReference) -> UserError:
    return UserError(f"{reference.path} is gone or no longer the file with SHA-256 {reference.sha256}; let nothing write to it, try again")


# What the folder holds


def _layout(folder: Path) -> LlamaLayout:
    return layout.read(_read_json(folder / CONFIG), where=str(folder / CONFIG))


def _index(folder: Path) -> dict[str, str]:
    """The index's key -> shard; empty where the weights are in one file and there is no index."""
    path = folder / INDEX
    if not path.is_file():
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}; give a checkpoint whose weights are in safetensors files")
        return {}
    shards = _read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{path} is damaged: it has no weight_map of key to file; {_DOWNLOAD}")
    for key, shard in shards.items():
        # An index comes from who made the checkpoint, and must not make us open any other file. A link inside the folder may point
        # out of it: the hub's cache is made of them, and a download can't bring one.
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", shard):
            raise UserError(f"{path}: {key!r} lies in {shard!r}, allowed: a safetensors file in the same folder; {_DOWNLOAD}")
    if (folder / WEIGHTS).is_file() and WEIGHTS not in shards.values():
        raise UserError(f"{folder} has {WEIGHTS}, and {INDEX} that does not name it; remove the one that is not meant")
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; give a checkpoint's folder, as transformers' save_pretrained writes it")
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; {_DOWNLOAD}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds a {type(value).__name__}, must hold an object; {_DOWNLOAD}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a key come twice, and readers differ in which one they take."""
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} comes twice")
    return value


def _header(path: Path) -> dict[str, _Stored]:
    """The tensors of a safetensors file: 8 bytes of length, JSON, and then exactly the bytes that it speaks of."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}, which {INDEX} names; {_DOWNLOAD}")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or size - 8 < length:
                raise UserError(f"{path} is damaged: {size} bytes, its header alone must have {8 + length}; {_DOWNLOAD}")
            header = json.loads(file.read(length), object_pairs_hook=_distinct)
        header.pop("__metadata__", None)
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if size != expected:
            raise UserError(f"{path} is damaged: {size} bytes, by its header it must have {expected}; {_DOWNLOAD}")
        with safe_open(path, framework="numpy"):  # holds each tensor's dtype, shape and offsets against each other
            return {key: _Stored(file=path, dtype=tensor["dtype"], shape=tuple(tensor["shape"])) for key, tensor in header.items()}
    except UserError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from None
    except (SafetensorError, ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path} is damaged: its header is not one of safetensors ({' '.join(str(error).split())}); {_DOWNLOAD}") from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} can't be read ({error.strerror or error}); see to its permissions")


# What it should hold


def _needed(model: LlamaLayout) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Each key that the layout needs -> the weight's name and shape."""
    plan = GraphPlan(layout=model, dtype="float32", lora=Lora(rank=1, alpha=1))
    return {keymap.hugging_face_key(weight): (weight, shape) for weight, (shape, _) in graph.weights(plan).items()}


def _require_as_indexed(folder: Path, index: Mapping[str, str], stored: Mapping[str, _Stored]) -> None:
    for key in sorted(index.keys() | stored.keys()) if index else ():
        shard = stored[key].file.name if key in stored else None
        if index.get(key) != shard:
            raise UserError(
                f"{folder}: {key!r} lies in {shard or 'no file'}, by {INDEX} it must lie in {index.get(key) or 'no file'}; {_DOWNLOAD}"
            )


def _require_weight(folder: Path, key: str, shape: tuple[int, ...], stored: _Stored | None) -> None:
    if stored is None:
        raise UserError(f"{folder} has no {key}, which {CONFIG} needs ({list(shape)}); take a whole checkpoint, or the right {CONFIG}")
    if stored.dtype not in DTYPES or stored.shape != shape:
        raise UserError(
            f"{stored.file}: {key} is {stored.dtype}{list(stored.shape)}, must be {', '.join(DTYPES)} of shape {list(shape)}; "
            f"convert it, or take the {CONFIG} that belongs to it"
        )


def _require_harmless(model: LlamaLayout, key: str, stored: Mapping[str, _Stored]) -> None:
    """Refuses a key that config.json has no place for, but for those that are known to change nothing."""
    if _BUFFER.fullmatch(key):
        return
    if key == _HEAD and model.tie_word_embeddings:
        if not _same(stored[_HEAD], stored[_EMBEDDING]):
            raise UserError(
                f"{stored[key].file}: {_HEAD} is no copy of {_EMBEDDING}, though {CONFIG} has tie_word_embeddings true; "
                "set it to false if the model has a head of its own"
            )
        return
    why = ""
    if key.endswith(".bias") and keymap.weight_name(key):
        why = f", since {CONFIG} has {'attention_bias' if 'self_attn' in key else 'mlp_bias'} false"
    raise UserError(f"{stored[key].file}: there is no place for {key!r}{why}; allowed: what {CONFIG} describes; take one that fits")


def _same(one: _Stored, other: _Stored) -> bool:
    """Bit by bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs = zip(_blocks(one.file, _HEAD), _blocks(other.file, _EMBEDDING), strict=True)
    return all(block.tobytes() == twin.tobytes() for block, twin in pairs)


def _blocks(path: Path, key: str) -> Iterator[np.ndarray]:
    """A tensor in parts, so that a checkpoint may be larger than memory."""
    with safe_open(path, framework="numpy") as file:
        part = file.get_slice(key)
        rows, *rest = part.get_shape()
        step = max(1, _BLOCK_ELEMENTS // max(1, int(np.prod(rest))))
        for start in range(0, rows, step):
            yield part[start : min(start + step, rows)]  # safetensors refuses a slice past the end
