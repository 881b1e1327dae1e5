"""An adapter under the paths of a graph, whatever its file calls its linears."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from contract.artifacts.adapter import Adapter, Place
from contract.artifacts.by_path import by_path
from contract.errors import ContractError
from contract.model import layout
from tests.contract.artifacts.adapter_cases import GPT2, LLAMA, adapter_on, refused


def renamed(adapter: Adapter, names: dict[str, str]) -> Adapter:
    return replace(
        adapter,
        matrices={names[name]: pair for name, pair in adapter.matrices.items()},
        places={names[name]: place for name, place in adapter.places.items()},
        layer_order=tuple(names[name] for name in adapter.layer_order),
        alpha_pattern={names[name]: alpha for name, alpha in adapter.alpha_pattern.items()},
    )


def test_the_place_says_which_linear_it_is() -> None:
    linears = ("layers.0.q_proj", "layers.1.down_proj", "lm_head")
    own = adapter_on(LLAMA, linears, ranks={"layers.1.down_proj": 5}, alphas={"layers.0.q_proj": 2.0})
    other = renamed(own, {"layers.0.q_proj": "mid1", "layers.1.down_proj": "mid0", "lm_head": "head"})
    other = replace(other, layer_order=("head", "mid0", "mid1"))
    assert by_path(other, layout.read(dict(LLAMA))) == own
    assert by_path(own, layout.read(dict(LLAMA))) == own


@pytest.mark.parametrize("key", ["model.embed_tokens.weight", "lm_head.weight", "an.embedding"])
def test_a_tied_head_may_lie_under_the_embedding_s_key(key: str) -> None:
    own = adapter_on(LLAMA, ("lm_head",), embed_key="an.embedding")
    other = replace(own, places={"lm_head": Place(key=key)})
    assert by_path(other, layout.read(dict(LLAMA))).layer_order == ("lm_head",)


def whole(rows: int = 18, key: str = "transformer.h.1.attn.c_attn.weight", **more: Any) -> Adapter:
    rng = np.random.default_rng(2)
    pair = rng.standard_normal((3, 6)).astype(np.float32), rng.standard_normal((rows, 3)).astype(np.float32)
    return Adapter(matrices={"x": pair}, places={"x": Place(key=key)}, layer_order=("x",), rank=8, alpha=8.0, **more)


def test_one_on_the_whole_of_a_fused_weight_is_one_on_each_part() -> None:
    adapter = whole(alpha_pattern={"x": 5.0}, rslora=True)
    apart = by_path(adapter, layout.read(dict(GPT2)))
    assert apart.layer_order == ("layers.1.q_proj", "layers.1.k_proj", "layers.1.v_proj")
    assert [apart.places[path].offset for path in apart.layer_order] == [0, 6, 12]
    a, b = adapter.matrices["x"]
    assert np.array_equal(np.concatenate([apart.matrices[path][1] for path in apart.layer_order]), b)
    for path in apart.layer_order:
        assert np.array_equal(apart.matrices[path][0], a)
        assert apart.scale(path) == adapter.scale("x") == 5.0 / 3**0.5


FAULTS: dict[str, tuple[Adapter, str]] = {
    "rows": (whole(12), "12 outputs; allowed: 18, as transformer.h.1.attn.c_attn.weight has"),
    "no such layer": (whole(key="h.2.attn.c_attn.weight"), "got 'h.2.attn.c_attn.weight'; allowed: the key of a linear of a gpt2"),
    "no linear": (whole(key="h.1.ln_1.weight"), "got 'h.1.ln_1.weight'; allowed: the key of a linear"),
    "the embedding": (whole(key="wte.weight"), "got 'wte.weight'; allowed: the key of a linear"),
    "between two parts": (replace(whole(6), places={"x": Place(key="h.1.attn.c_attn.weight", offset=3)}), "6 outputs from 3 on"),
    "half a part": (replace(whole(3), places={"x": Place(key="h.1.attn.c_attn.weight", offset=6)}), "3 outputs from 6 on"),
    "twice": (
        replace(
            whole(), matrices={"x": whole().matrices["x"], "y": whole().matrices["x"]}, layer_order=("x", "y"),
            places={"x": Place(key="h.1.attn.c_attn.weight"), "y": Place(key="transformer.h.1.attn.c_attn.weight")},
        ),
        "a second LoRA on layers.1.q_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_has_no_place_is_refused(name: str) -> None:
    adapter, message = FAULTS[name]
    with pytest.raises(ContractError) as caught:
        by_path(adapter, layout.read(dict(GPT2)))
    assert message in refused(caught)
