"""The fields that every JSON description of an adapter here shares: of v2, of v3, of a training checkpoint.

Those with a default are later than the seed's formats. A file has such a field only where its value is another than the default, so
that programs which know the seed's fields alone read everything that those can say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from contract.artifacts.adapter import KEY, LOGICAL, MAX_ALPHA, MAX_LINEARS, MAX_RANK, Adapter, Place
from contract.artifacts.record import Line, Lines, Record, to_json
from contract.artifacts.tensors import read_matrices
from contract.errors import ContractError, brief
from contract.run.spec import Graph
from contract.worker.files import replacing

TENSORS = "candle_qlora_adapter.safetensors"
"""v2's and v3's: `{logical}.lora_a` [rank, in], `{logical}.lora_b` [out, rank], float32."""


def whole(value: float) -> int | float:
    """Programs that read a whole alpha as an integer stumble over 32.0."""
    return int(value) if value == int(value) else value


Logical = Annotated[str, Field(pattern=LOGICAL)]
Key = Annotated[str, Field(pattern=KEY)]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Alpha = Annotated[float, Field(gt=0, le=MAX_ALPHA), AfterValidator(float)]
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]


class AdapterFields(Record):
    """What JSON says of an adapter, but for its format, method and base; see Adapter for what each field means."""

    vocab: Size
    d_model: Size
    rank: Rank
    alpha: Alpha
    layer_order: Annotated[tuple[Logical, ...], Field(strict=False, min_length=1, max_length=MAX_LINEARS)]
    base_key_map: Annotated[dict[Logical, Key], Field(min_length=1, max_length=MAX_LINEARS)]
    base_offset: dict[Logical, Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(default_factory=dict)
    rank_pattern: dict[Logical, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[Logical, Alpha] = Field(default_factory=dict)
    rslora: bool = False
    graph: Graph | None = None
    allow_placeholder_attention_merge: bool = False
    adapter_tag: Line | None = None
    notes: Lines = ()


def fields_of(adapter: Adapter, place: str) -> dict[str, Any]:
    """The shared fields of an adapter, as AdapterFields takes them.

    Raises:
        ContractError: the adapter does not know its base's vocabulary or width, which these formats must say.
    """
    for name, known in (("vocab", adapter.vocab), ("d_model", adapter.d_model)):
        if known is None:
            raise unknown(f"{place}: {name}")
    return {
        "vocab": adapter.vocab,
        "d_model": adapter.d_model,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "layer_order": adapter.layer_order,
        "base_key_map": {logical: place.key for logical, place in adapter.places.items()},
        "base_offset": {logical: place.offset for logical, place in adapter.places.items() if place.offset is not None},
        "rank_pattern": adapter.rank_pattern(),
        "alpha_pattern": dict(adapter.alpha_pattern),
        "rslora": adapter.rslora,
        "graph": adapter.graph,
        "allow_placeholder_attention_merge": adapter.allow_placeholder_attention_merge,
        "adapter_tag": adapter.adapter_tag,
        "notes": adapter.notes,
    }


def unknown(place: str) -> ContractError:
    """A field that the format must have, and the adapter does not know."""
    return ContractError(place, got="nothing", allowed="a value; the format must have it", remedy="name the base model with --base")


def adapter_from(fields: AdapterFields, matrices: Mapping[str, np.ndarray], *, place: Path, tensors: Path, **more: Any) -> Adapter:
    """An adapter from its fields and its file's tensors.

    Raises:
        ContractError: a tensor is missing, unknown, or of another rank than the fields say; fields that don't go together.
    """
    wanted = {f"{logical}.{half}" for logical in fields.base_key_map for half in ("lora_a", "lora_b")}
    require_names(wanted, matrices, tensors)
    for logical in fields.base_key_map:
        rank = fields.rank_pattern.get(logical, fields.rank)
        got = matrices[f"{logical}.lora_a"].shape
        if got[0] != rank:
            raise ContractError(
                f"{tensors}: {logical}.lora_a", got=f"shape {list(got)}", allowed=f"{rank} rows, the rank in {place.name}",
                remedy="take the two files of one adapter",
            )  # fmt: skip
    with at(place):
        for name in ("base_offset", "rank_pattern"):
            strange = sorted(set(getattr(fields, name)) - set(fields.base_key_map))
            if strange:
                raise ContractError(name, got=brief(strange[0]), allowed="a linear that base_key_map has", remedy="correct the adapter")
        return Adapter(
            matrices={logical: (matrices[f"{logical}.lora_a"], matrices[f"{logical}.lora_b"]) for logical in fields.base_key_map},
            places={logical: Place(key=key, offset=fields.base_offset.get(logical)) for logical, key in fields.base_key_map.items()},
            vocab=fields.vocab, d_model=fields.d_model, rank=fields.rank, alpha=fields.alpha, layer_order=fields.layer_order,
            alpha_pattern=fields.alpha_pattern, rslora=fields.rslora, graph=fields.graph,
            allow_placeholder_attention_merge=fields.allow_placeholder_attention_merge, adapter_tag=fields.adapter_tag,
            notes=fields.notes, **more,
        )  # fmt: skip


def require_names(wanted: set[str], got: Mapping[str, object], path: Path) -> None:
    """Every tensor that must be there, and no other.

    Raises:
        ContractError: names the first that is missing or unknown.
    """
    for name in sorted(wanted ^ set(got)):
        what = f"no tensor {name}" if name in wanted else f"an unknown tensor {brief(name)}"
        raise ContractError(
            str(path),
            got=what,
            allowed=f"the {len(wanted)} tensors of the adapter's description",
            remedy="take the two files of one adapter",
        )


@contextmanager
def at(place: Path) -> Iterator[None]:
    """Puts the file before the place of what is refused inside."""
    try:
        yield
    except ContractError as error:
        raise ContractError(f"{place}: {error.place}", got=error.got, allowed=error.allowed, remedy=error.remedy) from None


def read_tensors(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The tensors of a v2 or v3 adapter, and their file."""
    path = folder / TENSORS
    return path, read_matrices(path)


def write_fields(path: Path, fields: Record) -> None:
    """Writes a description: what is at its default is left out, a whole alpha stands as an integer."""
    value = fields.model_dump(mode="json", exclude_defaults=True)
    value["alpha"] = whole(value["alpha"])
    if "alpha_pattern" in value:
        value["alpha_pattern"] = {logical: whole(alpha) for logical, alpha in value["alpha_pattern"].items()}
    content = to_json(value)
    with replacing(path) as file:
        file.write(content)


def tensors_of(adapter: Adapter) -> dict[str, np.ndarray]:
    """The matrices by their names in a file."""
    return {
        f"{logical}.{half}": matrix
        for logical, pair in adapter.matrices.items()
        for half, matrix in zip(("lora_a", "lora_b"), pair, strict=True)
    }
