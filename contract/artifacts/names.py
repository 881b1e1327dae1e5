"""What a linear is called: by our logical names, by a checkpoint's keys, and by the modules that PEFT goes by."""

from __future__ import annotations

import re
from collections.abc import Iterable

from contract.artifacts.adapter import Place
from contract.errors import ContractError, brief
from contract.model import keymap
from contract.model.layout import Layout
from contract.worker.taps import LINEARS

HEAD, HEAD_KEY = "lm_head", "lm_head.weight"
EMBEDDING_KEYS = ("model.embed_tokens.weight", "transformer.wte.weight", "wte.weight")

_GPT2_LAYER = re.compile(r"(?:transformer\.)?h\.([0-9]+)\.")
_WITHOUT_PREFIX = re.compile(r"h\.[0-9]+\..*")
_IN_PLACE = re.compile(r"lm_head|layers\.(0|[1-9][0-9]*)\.\w+_proj", re.ASCII)
_LAYER = re.compile(r"(.*?)([0-9]+)\.(.*)")


def module_of(logical: str, key: str, embed_key: str | None) -> str:
    """The module of transformers' model that holds a checkpoint's key.

    GPT-2's checkpoints lack the prefix `transformer.` that its modules have. A head that is tied lies under the embedding's key.

    Raises:
        ContractError: the key is of the embedding, and the linear is not the head; or it is no weight of a linear.
    """
    if key in EMBEDDING_KEYS or key == embed_key:
        if logical != HEAD:
            raise ContractError(
                f"base_key_map: {logical}", got=f"{key}, the embedding", allowed="a linear; the head alone may be tied to it",
                remedy="correct the adapter",
            )  # fmt: skip
        return HEAD
    if not key.endswith(".weight"):
        raise ContractError(f"base_key_map: {logical}", got=key, allowed="a key that ends in .weight", remedy="correct the adapter")
    module = key.removesuffix(".weight")
    return f"transformer.{module}" if _WITHOUT_PREFIX.fullmatch(module) else module


def logical_of(module: str) -> str:
    """The logical name of a module's linear: ours where it is known, layers.N.c_attn for GPT-2's fused one, else the module's own."""
    key = f"{module}.weight"
    gpt2 = _GPT2_LAYER.match(module)
    names = keymap.weight_names(key, model_type="gpt2" if gpt2 else "qwen3")  # the table that has all of Llama's, too
    if len(names) == 1:
        return names[0]
    return f"layers.{gpt2[1]}.c_attn" if gpt2 and names else module


def places(layout: Layout, logicals: Iterable[str]) -> dict[str, Place]:
    """Where the weights of a layout's linears lie; logical names are those of contract/model/weights.py.

    Raises:
        ContractError: the layout has no such linear.
    """
    found = {}
    for logical in logicals:
        own = logical.rpartition(".")[2]
        if own not in (*layout.linears, HEAD) or not _IN_PLACE.fullmatch(logical):
            raise ContractError(
                brief(logical), got="that name", allowed=f"layers.N. and one of {', '.join(layout.linears)}; or {HEAD}",
                remedy="correct the adapter",
            )  # fmt: skip
        spot = keymap.place(logical, model_type=layout.model_type)
        found[logical] = Place(key=spot.key, offset=spot.part[0] * layout.widths[own][0] if spot.part else None)
    return found


def order_of(logicals: Iterable[str]) -> tuple[str, ...]:
    """Logical names in the order of computation, as far as their names tell: by layer, then by place in the block."""
    places = {name: place for place, name in enumerate(LINEARS)}

    def key(logical: str) -> tuple[bool, str, int, int, str]:
        match = _LAYER.fullmatch(logical)
        if match is None:
            return logical == HEAD, logical, 0, 0, ""
        stem, layer, rest = match.groups()
        return False, stem, int(layer), places.get(rest, len(places)), rest

    return tuple(sorted(logicals, key=key))
