"""What lies at a path: commands go by the files' format, not by the program that wrote them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from contract.errors import ContractError, brief
from contract.model.folder import CONFIG
from contract.model.shards import INDEX, WEIGHTS


class Kind(StrEnum):
    """A format, named as messages name it."""

    V2 = "a v2 adapter"
    V3 = "a v3 adapter"
    PEFT = "a PEFT adapter"
    TRAINING_CHECKPOINT = "a training checkpoint"
    MERGED_MODEL = "a merged model"
    STATIC_ATTENTION = "a static attention"
    BASE_MODEL = "a base model"


ADAPTERS = (Kind.V2, Kind.V3, Kind.PEFT)

MARKS = {
    "training_checkpoint.json": Kind.TRAINING_CHECKPOINT,
    "populi_adapter_manifest_v3.json": Kind.V3,
    "candle_qlora_adapter_meta.json": Kind.V2,
    "adapter_config.json": Kind.PEFT,
    "merge_manifest.json": Kind.MERGED_MODEL,
    "static_attention.json": Kind.STATIC_ATTENTION,
}
"""The file that makes a folder one of a kind; each is read by the module that owns the format."""


def what_is(path: Path) -> tuple[Kind, Path]:
    """The kind of what lies at a path, and its folder; the path may be the folder, or the file that marks it.

    A v3 adapter may have a v2 description beside its own; any other two formats in one folder are refused.

    Raises:
        ContractError: nothing is there, nothing known, or several formats.
    """
    try:
        if path.is_file():
            return _of_file(path), path.parent
        if not path.is_dir():
            raise ContractError(brief(str(path)), got="no such file or folder", allowed=_ALLOWED, remedy="correct the path")
        found = {kind for name, kind in MARKS.items() if (path / name).is_file()}
        model = (path / CONFIG).is_file() and any((path / name).is_file() for name in (WEIGHTS, INDEX))
    except ContractError:
        raise
    except (OSError, ValueError) as error:
        raise ContractError(brief(str(path)), got=str(error), allowed=_ALLOWED, remedy="correct the path, or see to its rights") from None
    if Kind.V3 in found:
        found.discard(Kind.V2)
    if model and Kind.MERGED_MODEL not in found:
        found.add(Kind.BASE_MODEL)
    if len(found) != 1:
        got = " and ".join(sorted(found)) or "neither an adapter nor a model"
        raise ContractError(str(path), got=got, allowed=_ALLOWED, remedy=f"name the file that is meant: {', '.join(MARKS)}")
    return found.pop(), path


def _of_file(path: Path) -> Kind:
    if path.name not in MARKS:
        raise ContractError(str(path), got="that file", allowed=_ALLOWED, remedy=f"give the folder, or one of {', '.join(MARKS)}")
    return MARKS[path.name]


_ALLOWED = "the folder of an adapter (v2, v3, PEFT), a training checkpoint or a model"
