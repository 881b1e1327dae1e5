"""Tier C: whole graphs, what is asked of them, and where the fault is when one is red."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from contract.worker.plan import Nf4, Path
from parity.checks import graph_draws, graph_law_checks, graph_one_token, graph_plans, proxy
from parity.checks.check import Check, Plan, Question
from parity.checks.graph_case import GraphCase
from parity.checks.graph_draws import Draw
from parity.checks.graph_layouts import BASES, OPTIONS, PLAIN
from parity.checks.graph_plans import (
    NARROW_PER_EXAMPLE,
    NO_FAST_PATH,
    ONLY_FAST_PATH,
    ONLY_PRECISION,
    asked_plan,
    bfloat16,
    drawn_check,
    fast_path,
    first_check,
    plain,
    quantized,
)

__all__ = ["MODEL", "OF_A_MODEL", "asked_plan", "checks"]

MODEL = graph_draws.MODEL
OF_A_MODEL = ("c.model", "c.model_nf4")
"""The checks of a real checkpoint."""

NF4 = Nf4(block_size=64, double_quant=True, offsets_given=True)

_PATHS: Mapping[Path, str] = {
    "checkpoint": "activations computed again in the backward pass",
    "chunked_loss": "the loss without the whole logits",
    "fused_attention": "attention as one kernel",
    "fused_lora": "a linear and its LoRA as one function",
    "fused_elementwise": "RMSNorm and SwiGLU as one function each",
}
TOGETHER: tuple[Path, ...] = (*_PATHS, "nf4_linear")
"""What a run takes at once, at most."""


def checks(model: str = MODEL) -> tuple[Check, ...]:
    """The checks of tier C; `model` is the checkpoint of c.model."""
    real = graph_draws.real_needs(model)
    return (
        *_architectures(),
        *_fast_paths(),
        *_nf4(),
        *_together(),
        *_proxies(),
        *_narrow(),
        *graph_one_token.checks(),
        *graph_law_checks.checks(),
        _real_check("c.model", "a real checkpoint with LoRA", plain(real), NO_FAST_PATH, lambda: graph_draws.real_cases(model), 2),
        _real_check(
            "c.model_nf4", "a real checkpoint with an NF4 base", quantized(dataclasses.replace(real, nf4=True)), {},
            lambda: graph_draws.real_cases(model, NF4, ("random B",)), 1,
        ),
    )  # fmt: skip


def _architectures() -> Iterator[Check]:
    """Each architecture plain, with every option, and on packed and padded batches."""
    for model_type, recipes in PLAIN.items():
        draw = Draw(recipes=recipes)
        yield drawn_check(f"c.{model_type}", f"a small {model_type} with LoRA", plain(draw.needs()), NO_FAST_PATH, draw)
    for model_type, recipes in OPTIONS.items():
        for packed, name, title in (
            (False, "options", "with every option of its layout"),
            (True, "packed", "on packed and padded batches"),
        ):
            draw = Draw(recipes=recipes, packed=packed)
            yield drawn_check(
                f"c.{model_type}_{name}", f"a small {model_type} {title}", plain(draw.needs()), NO_FAST_PATH, draw, each=True
            )  # fmt: skip


def _fast_paths() -> Iterator[Check]:
    """Each path against the plain one: on a Llama, and on packed batches of what differs most from it."""
    nf4 = Draw(recipes=PLAIN["llama"], base=NF4)
    yield drawn_check("c.llama_nf4", "a small Llama with an NF4 base", quantized(nf4.needs()), {}, nf4)
    for path, title in _PATHS.items():
        draw = Draw(recipes=PLAIN["llama"])
        yield drawn_check(f"c.llama_{path}", title, (_path_plan(draw, path),), ONLY_FAST_PATH, draw)
    several = (OPTIONS["mistral"][0], OPTIONS["qwen3"][1], OPTIONS["gpt2"][1])
    nf4 = Draw(recipes=several, base=NF4, packed=True)
    yield drawn_check(
        "c.packed_nf4_linear", "packed batches: an NF4 base", (_path_plan(nf4, "nf4_linear"),), ONLY_FAST_PATH, nf4, each=True
    )
    for path, title in _PATHS.items():
        draw = Draw(recipes=several, packed=True)
        yield drawn_check(f"c.packed_{path}", f"packed batches: {title}", (_path_plan(draw, path),), ONLY_FAST_PATH, draw, each=True)


def _nf4() -> Iterator[Check]:
    """NF4 bases of the other architectures, with their options, each with a block size and statistics of its own."""
    for model_type, base in BASES.items():
        draw = Draw(recipes=OPTIONS[model_type], base=base)
        title = f"a small {model_type} with an NF4 base in blocks of {base.block_size}{', nested' if base.double_quant else ''}"
        yield first_check(f"c.{model_type}_nf4", title, quantized(draw.needs()), {}, draw)


def _together() -> Iterator[Check]:
    """Every path at once, as runs take them, of each architecture."""
    for model_type, recipes in OPTIONS.items():
        draw = Draw(recipes=recipes, base=BASES.get(model_type, NF4), packed=True)
        title = f"a small {model_type}: an NF4 base, packed batches and every production path at once"
        yield first_check(f"c.{model_type}_production", title, (fast_path(draw.needs(), *TOGETHER),), ONLY_FAST_PATH, draw)


def _proxies() -> Iterator[Check]:
    """The proxy graph, and the paths that its runs take."""
    plain_draw, nf4 = proxy.Draw(), proxy.Draw(base=NF4)
    yield drawn_check("c.proxy", "the proxy graph with LoRA", plain(plain_draw.needs()), NO_FAST_PATH, plain_draw, each=True)
    yield drawn_check("c.proxy_nf4", "the proxy graph with an NF4 base", quantized(nf4.needs()), {}, nf4, each=True)
    for path in ("chunked_loss", "fused_lora"):
        title = f"the proxy graph: {_PATHS[path]}"
        yield drawn_check(f"c.proxy_{path}", title, (_path_plan(plain_draw, path),), ONLY_FAST_PATH, plain_draw, each=True)


def _narrow() -> Iterator[Check]:
    """Graphs in bfloat16: each architecture with everything at once, a plain one with an NF4 base, the proxy graph."""
    for model_type, recipes in OPTIONS.items():
        title = f"a small {model_type} in bfloat16: every option, packed and padded batches"
        yield _narrow_check(f"c.{model_type}_bfloat16", title, Draw(recipes=recipes, packed=True))
    yield _narrow_check("c.llama_bfloat16_nf4", "a small Llama in bfloat16 with an NF4 base", Draw(recipes=PLAIN["llama"], base=NF4))
    yield _narrow_check("c.proxy_bfloat16", "the proxy graph in bfloat16", proxy.Draw())
    yield _narrow_check("c.proxy_bfloat16_nf4", "the proxy graph in bfloat16 with an NF4 base", proxy.Draw(base=NF4))


def _narrow_check(name: str, title: str, draw: Draw | proxy.Draw) -> Check:
    paths: tuple[Path, ...] = () if draw.base is None else ("nf4_linear",)
    return first_check(name, title, (bfloat16(draw.needs(), *paths),), ONLY_PRECISION, draw, cost=NARROW_PER_EXAMPLE)


def _path_plan(draw: Draw | proxy.Draw, path: Path) -> Plan:
    return fast_path(draw.needs(), path)


def _real_check(
    name: str, title: str, plans: tuple[Plan, ...], not_applicable: Mapping[Question, str],
    cases: Callable[[], Iterator[GraphCase]], count: int,
) -> Check:  # fmt: skip
    return Check(
        id=name, tier="C", title=title, operations=(), plans=plans, not_applicable=not_applicable, cases=None, fixed_cases=cases,
        fixed_count=count, few=1, locate=graph_plans.locate,
    )  # fmt: skip
