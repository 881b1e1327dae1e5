"""The file-level merge: a base checkpoint and an adapter become a checkpoint without one.

Tensor by tensor and tile by tile, so that neither model is ever in memory. The output depends on nothing but the tensors, config.json
and the adapter: twice the same bytes, and the same from a base that is sharded otherwise.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from contract.artifacts import merge_manifest
from contract.artifacts.adapter import Adapter
from contract.artifacts.companions import copy_companions, write_config
from contract.artifacts.delta import merged_tiles, rows_at_once
from contract.artifacts.kinds import Kind
from contract.artifacts.merge_manifest import MANIFEST, Changed, MergeManifest
from contract.artifacts.merge_plan import Change, Plan, open_base, plan
from contract.artifacts.output_folder import output_folder
from contract.artifacts.record import to_json, write_record
from contract.artifacts.safetensors_writer import Entry, HashedFile, header, in_order, little_endian
from contract.artifacts.tensors import decoded
from contract.errors import ContractError, EnvironmentUnfit
from contract.model.headers import Stored
from contract.model.shards import INDEX, WEIGHTS

SHARD_BYTES = 5 * 10**9
"""Tensors of one file at most, where no single one is larger; as transformers has it."""

_CHUNK = 2**22

Progress = Callable[[str, int, int], None]
"""Called with `merge`, bytes done and bytes in all."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What became of a merge."""

    folder: Path
    manifest: MergeManifest

    @property
    def values(self) -> int:
        """Values of the changed keys."""
        return sum(key.values for key in self.manifest.keys.values())

    @property
    def changed(self) -> int:
        """Those that differ from the base's."""
        return sum(key.changed for key in self.manifest.keys.values())


@dataclass
class _Work:
    """What a merge finds out as it goes."""

    tensors: dict[str, tuple[str, tuple[int, ...], str]] = field(default_factory=dict)
    keys: dict[str, Changed] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    done: int = 0


def merge(
    adapter: Adapter, base_folder: Path, target: Path, *, force: bool = False, sources: Sequence[Path] = (), shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda stage, done, total: None,
) -> Merged:  # fmt: skip
    """Writes the merged model into a folder of its own: weights, config.json, the tokenizer's files, merge_manifest.json.

    Args:
        force: replace a merged model that is there already; nothing else is ever replaced.
        sources: folders beside the base that the target must not replace: the adapter's.

    Raises:
        EnvironmentUnfit: too little space.
        ContractError, ContractErrors: the base is not sound or not the adapter's; the adapter is merged into it already; the target is
            not free; a merged value is not finite. Nothing is left of the target then.
    """
    with output_folder(target, force=force, replaces=(Kind.MERGED_MODEL,), sources=(base_folder, *sources)) as folder:
        earlier = _earlier(adapter, base_folder)
        planned = plan(adapter, open_base(base_folder))
        work = _Work()
        files = _files(planned.entries(), shard_bytes)
        total = sum(entry.nbytes for entries in files.values() for entry in entries)
        _require_space(folder, target, total)
        for name, entries in files.items():
            work.weights[name] = _write_file(folder / name, entries, planned, work, lambda done: progress("merge", done, total))
        assert work.keys.keys() == planned.changes.keys()
        if len(files) > 1:
            _write_index(folder / INDEX, files, total)
        write_config(folder, planned)
        copy_companions(base_folder, folder)
        manifest = MergeManifest(
            base_sha256=merge_manifest.tensors_sha256(work.tensors),
            adapter=merge_manifest.described(adapter),
            earlier=earlier,
            claims_full_attention_fidelity=adapter.claims_full_attention_fidelity,
            untied_head=planned.untied,
            keys=work.keys,
            weights=work.weights,
        )
        write_record(folder / MANIFEST, manifest)
    return Merged(folder=target, manifest=manifest)


def _require_space(folder: Path, target: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentUnfit(f"{target} needs {needed / 1e6:,.0f} MB, its disk has {free / 1e6:,.0f} MB free; free some, or give another")


def _earlier(adapter: Adapter, base: Path) -> tuple[merge_manifest.MergedAdapter, ...]:
    """The adapters that the base holds already."""
    if not (base / MANIFEST).exists():
        return ()
    manifest = merge_manifest.read_manifest(base)
    before = (*manifest.earlier, manifest.adapter)
    if merge_manifest.content_sha256(adapter) in [one.sha256 for one in before]:
        raise ContractError(
            str(base / MANIFEST), got="a model that this adapter is merged into already", allowed="its base",
            remedy="a second merge would add the same again; give the base that it was trained on",
        )  # fmt: skip
    return before


def _files(entries: Sequence[Entry], limit: int) -> dict[str, list[Entry]]:
    """The files of the merged model: filled key by key, each up to the limit, whatever files the base has."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in sorted(entries, key=lambda entry: entry.name):
        if groups[-1] and size + entry.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    if len(groups) == 1:
        return {WEIGHTS: in_order(groups[0])}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": in_order(group) for number, group in enumerate(groups, start=1)}


def _write_index(path: Path, files: dict[str, list[Entry]], total: int) -> None:
    where = {entry.name: name for name, entries in files.items() for entry in entries}
    path.write_bytes(to_json({"metadata": {"total_size": total}, "weight_map": where}))


def _write_file(path: Path, entries: Sequence[Entry], planned: Plan, work: _Work, report: Callable[[int], None]) -> str:
    with open(path, "wb") as plain:
        file = HashedFile(plain)
        file.write(header(entries))
        for entry in entries:
            change = planned.changes.get(entry.name)
            if change is None:
                work.tensors[entry.name] = (entry.dtype, entry.shape, _copy(planned.base.stored[entry.name], file))
            else:
                _merge(change, planned, file, work)
            work.done += entry.nbytes
            report(work.done)
        plain.flush()
        os.fsync(plain.fileno())
    return file.sha256


def _copy(stored: Stored, file: HashedFile) -> str:
    """Bit for bit."""
    digest = hashlib.sha256()
    for chunk in _chunks(stored, _CHUNK):
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest()


def _merge(change: Change, planned: Plan, file: HashedFile, work: _Work) -> None:
    source, digest, changed = change.source, hashlib.sha256(), 0
    columns = source.shape[1]
    step = rows_at_once(columns)

    def tiles() -> Iterator[np.ndarray]:
        row = 0
        for chunk in _chunks(source, step * source.nbytes // source.shape[0]):
            digest.update(chunk)
            rows = min(step, source.shape[0] - row)
            yield decoded(chunk, source.dtype, (rows, columns))
            row += rows

    for before, after in merged_tiles(tiles(), change.deltas, place=f"{source.file}: {change.key}"):
        # By value: -0 and +0 are one.
        changed += int(np.count_nonzero(before != after))
        file.write(little_endian(after))
    linears = tuple(delta.logical for delta in change.deltas)
    work.keys[change.key] = Changed(linears=linears, values=source.elements, changed=changed)
    if change.key in planned.base.stored:
        own = planned.base.stored[change.key]
        work.tensors[change.key] = (own.dtype, own.shape, digest.hexdigest())
        if own is not source:
            _require_copy(own, source, digest.hexdigest(), change.key)


def _require_copy(own: Stored, source: Stored, wanted: str, key: str) -> None:
    """A head that is tied may come as a copy of the embedding, too."""
    digest = hashlib.sha256()
    for chunk in _chunks(own, _CHUNK):
        digest.update(chunk)
    if (own.dtype, own.shape, digest.hexdigest()) != (source.dtype, source.shape, wanted):
        raise ContractError(
            f"{own.file}: {key}", got="another weight than the embedding's, though config.json has tie_word_embeddings true",
            allowed="a copy of it, or none", remedy="set tie_word_embeddings to false if the model has a head of its own",
        )  # fmt: skip


def _chunks(stored: Stored, size: int) -> Iterator[bytes]:
    """A tensor's bytes, so many at a time.

    Raises:
        ContractError: the file became shorter since its header was read.
    """
    with open(stored.file, "rb") as file:
        file.seek(stored.start)
        left = stored.nbytes
        while left:
            chunk = file.read(min(size, left))
            if len(chunk) != min(size, left):
                raise ContractError(
                    str(stored.file), got="a file that became shorter", allowed="one that nothing writes to", remedy="try again"
                )
            left -= len(chunk)
            yield chunk
