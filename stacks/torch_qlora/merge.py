"""The in-memory merge: the bits that a merge of the files gives onto the same base (contract/artifacts/delta.py has the definition).

    delta_ij = s * (B_i0 A_0j + B_i1 A_1j + ...)        the ranks in ascending order, from +0
    W'_ij    = float32(float64(W_ij) + delta_ij)

Each line's operations are rounded to float64 one by one: a product of two float32 numbers is exact there, and no matrix product, no
addcmul and no fused multiply-add takes the place of two of them.

Legend: O out_features, I in_features, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft.tuners import lora as peft_lora
from torch import nn

from contract.artifacts.saved import as_filed, of_plan, write_both
from contract.worker.stack import NotSupported, Reply
from stacks.torch_qlora import lora
from stacks.torch_qlora.attributes import DTYPES
from stacks.torch_qlora.graph import AnyGraph
from stacks.torch_qlora.linear import FrozenLinear
from stacks.torch_qlora.lora import ADAPTER

_TILE = 2**16
"""Elements of a tile on the CPU: its three float64 arrays stay in a core's cache."""


def merged(weight_OI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, *, scale: float) -> torch.Tensor:
    """W' [O, I] in float32 of a weight in float32, or narrower and widened exactly.

    Raises:
        ValueError: a value of W' that is NaN or infinite.
    """
    rows = weight_OI.shape[0] if weight_OI.device.type != "cpu" else max(1, _TILE // weight_OI.shape[1])
    out_OI = torch.empty_like(weight_OI, dtype=torch.float32)
    a_RI = a_RI.double()
    for start in range(0, weight_OI.shape[0], rows):
        part = slice(start, start + rows)
        out_OI[part] = _tile(weight_OI[part].double(), a_RI, b_OR[part].double(), scale)
    if not torch.isfinite(out_OI).all():
        raise ValueError(
            "merge: a value is NaN or infinite once it is merged; allowed are finite ones; look into the weight and the adapter for them"
        )
    return out_OI


def _tile(wide_OI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, scale: float) -> torch.Tensor:
    """float32 of W + s (B A), in place of the tile of W in float64."""
    total_OI, product_OI = torch.zeros_like(wide_OI), torch.empty_like(wide_OI)
    for b_O, a_I in zip(b_OR.unbind(1), a_RI, strict=True):
        torch.mul(b_O[:, None], a_I, out=product_OI)
        # torch's kernel adds 1 * product, at times in one operation: a product with 1 is exact, so nothing is rounded less often.
        total_OI.add_(product_OI)
    return wide_OI.add_(total_OI.mul_(scale)).float()


def merged_linear(module: peft_lora.Linear) -> torch.Tensor:
    """W' of a linear with LoRA onto the base that it holds: NF4's dequantised values, a narrower weight's widened ones.

    Raises:
        ValueError: as `merged`; or a base in float64 with a value that float32 does not hold.
    """
    base = module.base_layer
    dequantized = getattr(base, "dequantized", None)
    weight_OI = base.weight.detach() if dequantized is None else dequantized()
    if weight_OI.dtype == torch.float64:
        narrow_OI = weight_OI.float()
        if not torch.equal(narrow_OI.double(), weight_OI):
            raise ValueError("merge: the base has values that float32 does not hold; open the graph with weights in float32 or narrower")
        weight_OI = narrow_OI
    matrices = (half[ADAPTER].weight.detach().float() for half in (module.lora_A, module.lora_B))
    return merged(weight_OI, *matrices, scale=module.scaling[ADAPTER])


def merge_into(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Puts plain linears with W' into the places of those with LoRA; answers W' by the linears' paths, float32.

    All of them are computed before the first one is put in place, so that a refusal leaves the model as it was.

    Args:
        dtype: of the new weights in the model: float32, or float64, which holds the same values.

    Raises:
        ValueError: as `merged_linear`; names the linear.
    """
    found: dict[str, torch.Tensor] = {}
    linears = {path: module for path, module in model.named_modules() if isinstance(module, peft_lora.Linear)}
    for path, module in linears.items():
        try:
            found[path] = merged_linear(module)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    for path, module in linears.items():
        bias_O = module.base_layer.bias
        model.set_submodule(path, FrozenLinear(found[path].to(dtype), None if bias_O is None else bias_O.detach()))
    return found


# Requests


def merge_graph(graph: AnyGraph, linears: Sequence[str] | None = None) -> Reply:
    """The request `merge`: the open graph holds W' and no LoRA from then on. Answers W' of the named linears, of all unless named.

    Raises:
        ValueError: a linear without LoRA; or as `merge_into`. The graph is as it was then.
        NotSupported: a graph in bfloat16, which can't hold W': rounding it loses what is small beside the weight.
    """
    if graph.plan.dtype == "bfloat16":
        raise NotSupported(
            "torch_qlora merges into graphs in float32 and float64, not in bfloat16, to which a small delta is lost; open one"
        )
    have = dict.fromkeys(name.rpartition(".")[0] for name in lora.parameters(graph))
    strange = sorted(set(linears or ()) - have.keys())
    if strange:
        raise ValueError(f"merge: {strange[0]!r} has no LoRA; allowed: {', '.join(list(have)[:6])} ...; name those, or leave linears out")
    found = merge_into(graph, DTYPES[graph.plan.dtype])
    graph.plan = graph.plan.model_copy(update={"lora": graph.plan.lora.model_copy(update={"targets": ()})})
    return Reply(tensors={path: found[path].cpu().numpy() for path in (have if linears is None else linears)})


def save_graph(graph: AnyGraph, folder: str) -> Reply:
    """The request `save`: the open graph's adapter into FOLDER/adapter (v3, v2) and FOLDER/peft; values `notes`.

    Raises:
        ValueError: the graph has no adapter, being merged or opened without; or something else is there.
    """
    matrices = {path: parameter.detach().float().cpu().numpy() for path, parameter in lora.parameters(graph).items()}
    if not matrices:
        raise ValueError("save: the open graph has no LoRA, having been merged or opened without; open one with an adapter")
    return Reply(values={"notes": list(write_both(as_filed(of_plan(graph.plan, matrices)), Path(folder)))})
