"""A plan's graph out of its architecture's file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from contract.model.layout import GPT2Layout, RopeLayout
from contract.worker import taps
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD
from stacks.tinygrad_lora.models import gpt2, llama, mistral, proxy, qwen2, qwen3
from stacks.tinygrad_lora.models.section import Model

_BLOCKS = {"llama": llama.block, "mistral": mistral.block, "qwen2": qwen2.block, "qwen3": qwen3.block}
_SCALARS = {"llama": llama.scalars, "mistral": llama.scalars, "qwen2": llama.scalars, "qwen3": qwen3.scalars}


def build(plan: GraphPlan) -> Model:
    """The graph's sections as functions."""
    if plan.graph == "qlora_proxy_v1":
        return Model(
            embed=proxy.embed, block=proxy.block, finish=proxy.finish, project=proxy.project,
            scalars=partial(_proxy_scalars, plan), places=lambda positions: {}, out_features=proxy.out_features(plan),
        )  # fmt: skip
    layout = plan.layout
    out_features = {name: out for name, (out, _) in layout.widths.items()}
    if isinstance(layout, GPT2Layout):
        return Model(
            embed=gpt2.embed, block=gpt2.block(layout), finish=gpt2.finish, project=llama.project,
            scalars=partial(_scalars, plan, partial(gpt2.scalars, layout)), places=lambda positions: {}, out_features=out_features,
        )  # fmt: skip
    assert isinstance(layout, RopeLayout)
    return Model(
        embed=llama.embed, block=_BLOCKS[layout.model_type](layout), finish=llama.finish, project=llama.project,
        scalars=partial(_scalars, plan, partial(_SCALARS[layout.model_type], layout)),
        places=llama.places(layout, plan.dtype), out_features=out_features,
    )  # fmt: skip


def _scalars(plan: GraphPlan, of: Callable[[int | None], dict[str, float]], section: str) -> dict[str, float]:
    if section == EMBEDDING:
        return {}
    layer = None if section == HEAD else int(section.removeprefix("layers."))
    return of(layer) | _scalings(plan, section)


def _proxy_scalars(plan: GraphPlan, section: str) -> dict[str, float]:
    return {} if section == EMBEDDING else proxy.scalars(plan) | _scalings(plan, section)


def _scalings(plan: GraphPlan, section: str) -> dict[str, float]:
    """LoRA's s of each linear of a section that has an adapter."""
    if plan.graph == "qlora_proxy_v1":
        own = {taps.LM_HEAD if section == HEAD else taps.MIDDLE}
    else:
        own = set() if section == HEAD else set(plan.layout.linears)
    return {f"{name}.scaling": plan.lora.scaling_of(taps.prefix(section) + name) for name in sorted(own & plan.targets)}
