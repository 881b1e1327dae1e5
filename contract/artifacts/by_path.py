"""An adapter by the paths of a graph's linears (layers.3.q_proj, lm_head), whatever its file calls them.

Older files have mid0, mid1, ...; PEFT's have one LoRA on the whole of GPT-2's fused c_attn. Where a linear's weight lies says which one
it is.
"""

from __future__ import annotations

from contract.artifacts.adapter import Adapter
from contract.artifacts.names import EMBEDDING_KEYS, HEAD, HEAD_KEY, order_of, places
from contract.errors import ContractError, brief
from contract.model import weights
from contract.model.layout import Layout
from contract.model.weights import Weight


def by_path(adapter: Adapter, layout: Layout) -> Adapter:
    """The same adapter with each linear under its path.

    LoRA on the whole of a fused weight becomes one on each part, with A shared and B's rows divided: term by term the same products.

    Raises:
        ContractError: a key that holds no linear of the layout; a linear that comes twice; a part that begins elsewhere than one does.
    """
    matrices, alphas = {}, {}
    for logical in adapter.layer_order:
        a_RI, b_OR = adapter.matrices[logical]
        for path, start, stop in _linears(logical, adapter, layout):
            if path in matrices:
                raise _refused(logical, f"a second LoRA on {path}", "one on each linear")
            matrices[path], alphas[path] = (a_RI, b_OR[start:stop]), adapter.alpha_of(logical)
    changed = {"matrices": matrices, "places": places(layout, matrices), "layer_order": order_of(matrices), "alpha_pattern": alphas}
    return Adapter(**(vars(adapter) | changed))


def require_causal(adapter: Adapter, place: str) -> Adapter:
    """The same adapter, if a full causal graph can hold it as LoRA: it was not trained on the proxy graph, and the head has none.

    Raises:
        ContractError: it can't; a merge into the weights can.
    """
    if adapter.graph == "qlora_proxy_v1":
        raise ContractError(
            place, got="an adapter of the proxy graph qlora_proxy_v1", allowed="one that was trained on full_causal",
            remedy="merge it with finetune merge-qlora, and give the merged model",
        )  # fmt: skip
    if HEAD in adapter.matrices:
        raise ContractError(
            place, got=f"LoRA on {HEAD}", allowed="LoRA on linears of blocks",
            remedy="merge it with finetune merge-qlora, and give the merged model",
        )  # fmt: skip
    return adapter


def _linears(logical: str, adapter: Adapter, layout: Layout) -> list[tuple[str, int, int]]:
    """The paths that a LoRA lies on, each with its rows of B."""
    place, rows = adapter.places[logical], adapter.matrices[logical][1].shape[0]
    tied = logical == HEAD and (place.key in EMBEDDING_KEYS or place.key == adapter.embed_key)
    if tied or place.key == HEAD_KEY:
        return [(HEAD, 0, rows)]
    found = [weight for weight in weights.at(layout, place.key) if weight.name.rpartition(".")[2] in layout.linears]
    if not found:
        raise _refused(logical, brief(place.key), f"the key of a linear of a {layout.model_type}")
    if place.offset is not None:
        found = [weight for weight in found if weight.start == place.offset]
        if not found or rows != _width(found[0]):
            raise _refused(logical, f"{rows} outputs from {place.offset} on in {place.key}", "one part of it, as q_proj")
        return [(found[0].name, 0, rows)]
    if rows != sum(_width(weight) for weight in found):
        raise _refused(logical, f"{rows} outputs", f"{sum(_width(weight) for weight in found)}, as {place.key} has")
    return [(weight.name, weight.start or 0, rows if weight.stop is None else weight.stop) for weight in found]


def _width(weight: Weight) -> int:
    return weight.shape[0]


def _refused(logical: str, got: str, allowed: str) -> ContractError:
    return ContractError(f"base_key_map: {logical}", got=got, allowed=allowed, remedy="take the base that the adapter was trained on")
