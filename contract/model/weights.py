"""Every weight that a layout has: its name and shape here, and where it lies in a Hugging Face checkpoint.

    embedding [V, D]    position_embedding [P, D] (GPT-2)    final_norm [D]    lm_head [V, D] (untied)
    layers.0.attention_norm [D]    layers.0.q_norm [E] (Qwen3)    layers.0.mlp_norm [D]
    layers.0.q_proj [out, in]    layers.0.q_proj.bias [out]    ...

LayerNorms have a `.bias` too (GPT-2). A linear is [out, in] here, y = x W^T + b, whatever the checkpoint has.

Legend: V vocab_size, D hidden_size, P max_position_embeddings, E head_dim.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from contract.model import keymap
from contract.model.layout import GPT2Layout, Layout

_IN_A_LAYER = re.compile(r"layers\.([0-9]+)\.(.+)")


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A weight: its name and shape, the checkpoint's key, and the shape of what lies there.

    transposed: what lies there is [in, out]. start, stop: it is that part of the last dimension there; None: all of it.
    """

    name: str
    shape: tuple[int, ...]
    key: str
    stored: tuple[int, ...]
    transposed: bool = False
    start: int | None = None
    stop: int | None = None


def weights(layout: Layout) -> Iterator[Weight]:
    """The weights of a layout, layer by layer; lazily, since a hostile layout may have billions."""
    for name, shape in _whole(layout).items():
        yield _weight(layout, name, shape)
    for layer in range(layout.num_hidden_layers):
        for name, shape in _block(layout).items():
            yield _weight(layout, f"layers.{layer}.{name}", shape)


def at(layout: Layout, key: str) -> tuple[Weight, ...]:
    """The weights that a checkpoint's key holds: none for a key that the layout has no place for."""
    found = []
    for name in keymap.weight_names(key, model_type=layout.model_type):
        match = _IN_A_LAYER.fullmatch(name)
        shapes = _block(layout) if match else _whole(layout)
        own = match[2] if match else name
        if own in shapes and not (match and int(match[1]) >= layout.num_hidden_layers):
            found.append(_weight(layout, name, shapes[own]))
    return tuple(found)


def _weight(layout: Layout, name: str, shape: tuple[int, ...]) -> Weight:
    place = keymap.place(name, model_type=layout.model_type)
    stored = shape[::-1] if place.transposed else shape
    if place.part is None:
        return Weight(name=name, shape=shape, key=place.key, stored=stored, transposed=place.transposed)
    # What lies fused in one tensor has equal widths: GPT-2's q, k and v.
    (part, parts), width = place.part, stored[-1]
    return Weight(
        name=name, shape=shape, key=place.key, stored=(*stored[:-1], parts * width), transposed=place.transposed,
        start=part * width, stop=(part + 1) * width,
    )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _whole(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The weights outside of the layers."""
    vocabulary, width = layout.vocab_size, layout.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocabulary, width)}
    if isinstance(layout, GPT2Layout):
        shapes["position_embedding"] = (layout.max_position_embeddings, width)
    shapes |= _norm("final_norm", width, layout)
    if not layout.tie_word_embeddings:
        shapes["lm_head"] = (vocabulary, width)
    return shapes


@functools.lru_cache(maxsize=16)
def _block(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The weights of one layer."""
    shapes = _norm("attention_norm", layout.hidden_size, layout) | _norm("mlp_norm", layout.hidden_size, layout)
    shapes |= dict.fromkeys(layout.head_norms, (layout.head_dim,))
    for name, shape in layout.widths.items():
        shapes[name] = shape
        if name in layout.biased:
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _norm(name: str, width: int, layout: Layout) -> dict[str, tuple[int, ...]]:
    """RMSNorm has a weight, LayerNorm a bias too."""
    return dict.fromkeys((name, f"{name}.bias") if isinstance(layout, GPT2Layout) else (name,), (width,))
