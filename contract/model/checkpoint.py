"""A checkpoint on disk: config.json and safetensors files as transformers writes them.

Opening reads headers and sizes, and holds every key against what config.json says; no weight is taken on trust, and none is left
out or made up in silence. A file is hashed only when one of its weights is to go to a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors' NumPy reader needs)
import numpy as np
from safetensors import safe_open

from contract import reading
from contract.errors import ContractError, brief
from contract.model import fit, folder, layout, shards, zoo
from contract.model.fit import Fit, Placed
from contract.model.folder import CONFIG
from contract.model.headers import Stored
from contract.model.layout import Layout
from contract.model.preflight import ModelFiles
from contract.worker import files
from contract.worker.files import FileReference

_BLOCK_ELEMENTS = 2**22
_DOWNLOAD = "download the checkpoint again"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found sound.

    placed: by a weight's name (contract/model/weights.py), where it lies. identities: each file as it was when it was opened.
    """

    name: str
    path: Path
    layout: Layout
    placed: Mapping[str, Placed]
    identities: Mapping[Path, tuple[int, ...]]

    @property
    def tensors(self) -> Mapping[str, FileReference]:
        """Each weight as the wire names it; a file is hashed when the first of its weights is asked for.

        Raises, when asked:
            ContractError: the file has changed since it was opened.
        """
        return _References(self)


class _References(Mapping[str, FileReference]):
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getitem__(self, name: str) -> FileReference:
        placed = self._checkpoint.placed[name]
        path, weight = placed.stored.file, placed.weight
        sha256 = files.sha256_of(path) if path.is_file() else ""
        _require_same(self._checkpoint, path)
        return FileReference(
            sha256=sha256, tensor=placed.key, path=str(path), start=weight.start, stop=weight.stop, transposed=weight.transposed
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.placed)

    def __len__(self) -> int:
        return len(self._checkpoint.placed)


def locate(name_or_folder: str) -> Checkpoint:
    """A checkpoint by a known model's name, by a folder that exists, or by a hub id (OWNER/NAME) that was fetched.

    Raises:
        MissingError: a known name or hub id that was not fetched.
        ContractError, ContractErrors: nothing of that name; a checkpoint that is not sound; a known model of other bits.
    """
    path = folder.locate(name_or_folder)
    known = zoo.KNOWN.get(name_or_folder)
    if known is None:
        return open_checkpoint(path, name="" if path == Path(name_or_folder).expanduser() else name_or_folder)
    checkpoint = open_checkpoint(path, name=name_or_folder)
    for shard in sorted(checkpoint.identities):
        if files.sha256_of(shard) != known.weights_sha256:
            raise ContractError(
                str(shard), got=f"SHA-256 {files.sha256_of(shard)}", allowed=f"{known.weights_sha256}, as it was published",
                remedy=f"run: finetune fetch {name_or_folder} --force",
            )  # fmt: skip
    return checkpoint


def open_checkpoint(path: Path, *, name: str = "") -> Checkpoint:
    """A checkpoint that lies in one folder.

    Args:
        name: what reports call it; the folder's name where none is given.

    Raises: as open_files; ContractError if there are no weights, or an index that is not sound.
    """
    path = path.resolve()
    config = path / CONFIG
    reading.bytes_of(config, remedy="give a checkpoint's folder")  # a folder without is none, whatever weights it has
    paths, index = shards.find(path)
    return open_files(ModelFiles(folder=path, config_json=config, tokenizer_json=None, shards=paths, index=index), name=name or path.name)


def open_files(model: ModelFiles, *, name: str) -> Checkpoint:
    """Holds a model's files against each other; a weight is read only where a tied head comes as a copy.

    Raises:
        ContractError: a file is missing, damaged or outside of the folder; config.json is not honoured; a key is missing, there twice,
            unknown, or of the wrong shape or dtype.
        ContractErrors: several fields of config.json are not honoured.
    """
    described = layout.read(reading.json_file(model.config_json), where=str(model.config_json))
    identities = {shard: _identity(shard) for shard in model.shards}  # before they are read
    stored = shards.read(model.shards, model.index)
    found = fit.fit(described, stored)
    home = model.folder or model.config_json.parent
    if found.missing:
        first = found.missing[0]
        raise ContractError(
            str(home), got=f"no {first.key}", allowed=f"all that {CONFIG} needs, this one of shape {list(first.stored)}",
            remedy=f"take a whole checkpoint, or the right {CONFIG}",
        )  # fmt: skip
    if found.strange:
        raise _out_of_place(described, found.strange[0], stored[found.strange[0]])
    _require_copy(found)
    return Checkpoint(name=name, path=home, layout=described, placed=found.placed, identities=identities)


def load(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """A weight by its name in contract/model/weights.py: float32, widened exactly where it lies in bfloat16 or float16.

    Raises:
        ContractError: the checkpoint has no such weight, or its file has changed since it was opened.
    """
    placed = checkpoint.placed.get(name)
    if placed is None:
        raise ContractError(
            checkpoint.name, got=f"no weight {brief(name)}", allowed=f"one of {len(checkpoint.placed)}: {', '.join(checkpoint.placed)}",
            remedy="ask for one of them",
        )  # fmt: skip
    _require_same(checkpoint, placed.stored.file)
    weight = placed.weight
    tensor = files.read(placed.stored.file, placed.key, start=weight.start, stop=weight.stop, transposed=weight.transposed)
    return tensor.astype(np.float32, copy=False)


def mapped(checkpoint: Checkpoint, name: str) -> np.ndarray | None:
    """A weight mapped into memory where it lies, so that what nobody looks at is never read: float32, and None where it lies otherwise.

    What is written to it stays in this process.

    Raises: as load.
    """
    placed = checkpoint.placed.get(name)
    whole = placed is not None and placed.weight.start is None and not placed.weight.transposed
    # a value's address must be a multiple of its size, which safetensors does not promise
    if placed is None or not whole or placed.stored.dtype != "F32" or placed.stored.start % 4:
        return None
    _require_same(checkpoint, placed.stored.file)
    return np.memmap(placed.stored.file, dtype="<f4", mode="c", offset=placed.stored.start, shape=placed.stored.shape)


def require_finite(checkpoint: Checkpoint, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Reads every weight, block by block, in the memory of one block; nothing is hashed.

    Args:
        progress: called with the tensors read, and all of them.

    Raises:
        ContractError: a weight holds NaN or infinity; names file, key, and how many. Or a file has changed since it was opened.
    """
    tensors = {placed.key: placed.stored for placed in checkpoint.placed.values()}  # one may hold three weights
    for done, (key, stored) in enumerate(tensors.items(), start=1):
        _require_same(checkpoint, stored.file)
        bad = sum(int(np.count_nonzero(~np.isfinite(block.astype(np.float32)))) for block in _blocks(stored, key))
        if bad:
            raise ContractError(f"{stored.file}: {key}", got=f"{bad} NaN or infinite values", allowed="none", remedy=_DOWNLOAD)
        progress(done, len(tensors))


def _require_same(checkpoint: Checkpoint, path: Path) -> None:
    if not checkpoint.identities[path] or _identity(path) != checkpoint.identities[path]:
        raise ContractError(
            str(path), got="a file that is gone or was changed", allowed="the file that was opened",
            remedy="let nothing write to it, and try again",
        )  # fmt: skip


def _identity(path: Path) -> tuple[int, ...]:
    """As files.identity; empty where there is no such file, which its reader then says."""
    try:
        return files.identity(path)
    except OSError:
        return ()


def _out_of_place(model: Layout, key: str, stored: Stored) -> ContractError:
    """A key that config.json has no place for, though it may hold a weight of such a model."""
    flag = "attention_bias" if "self_attn" in key else "mlp_bias"
    why = f", {flag} false" if key.endswith("_proj.bias") and getattr(model, flag, None) is False else ""
    return ContractError(
        f"{stored.file}: {brief(key)}", got="a tensor that has no place", allowed=f"what {CONFIG} describes ({model.model_type}{why})",
        remedy="take one that fits the other",
    )  # fmt: skip


def _require_copy(found: Fit) -> None:
    """A tied head may lie beside the embedding, bit by bit the same; transformers 5 does not tie the two where they differ."""
    embedding, head = found.placed["embedding"], found.tied
    if head is None:
        return
    same = (head.dtype, head.shape) == (embedding.stored.dtype, embedding.stored.shape)
    if same:
        pairs = zip(_blocks(head, fit.HEAD), _blocks(embedding.stored, embedding.key), strict=True)
        same = all(block.tobytes() == twin.tobytes() for block, twin in pairs)
    if not same:
        raise ContractError(
            f"{head.file}: {fit.HEAD}", got=f"a tensor that is no copy of {embedding.key}",
            allowed=f"a copy, since {CONFIG} has tie_word_embeddings true", remedy="set it to false if the model has a head of its own",
        )  # fmt: skip


def _blocks(stored: Stored, key: str) -> Iterator[np.ndarray]:
    """A tensor in parts, so that a checkpoint may be larger than memory."""
    with safe_open(stored.file, framework="numpy") as file:
        part = file.get_slice(key)
        rows, *rest = part.get_shape()
        step = max(1, _BLOCK_ELEMENTS // max(1, int(np.prod(rest))))
        for start in range(0, rows, step):
            yield part[start : min(start + step, rows)]  # safetensors refuses a slice past the end
