"""A Llama-type graph in torch, plainly, with autograd for its gradients; and random cases of it.

Every sum and product goes through an Arithmetic, so that tests of the judge can reorder sums and plant errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contract.model.layout import LlamaLayout
from contract.worker.graph import adapter, weights
from contract.worker.plan import GraphPlan, Lora
from contract.worker.taps import EMBEDDING, HEAD, prefix, sections


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plan with its weights, its adapter and a batch."""

    plan: GraphPlan
    weights: dict[str, np.ndarray]
    adapter: dict[str, np.ndarray]
    ids: np.ndarray
    labels: np.ndarray


def case(
    seed: int = 0, *, batch: int = 2, tokens: int = 7, layers: int = 2, bias: bool = True, tied: bool = False,
    lora: Lora | None = None, dtype: str = "float64", **sizes: int,
) -> Case:  # fmt: skip
    """A small random Llama: grouped queries, heads x head_dim != hidden_size, norms' weights not one, eps large enough to see."""
    rng = np.random.default_rng(seed)
    shape = {
        "vocab_size": 37,
        "hidden_size": 20,
        "intermediate_size": 28,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 6,
    }
    layout = LlamaLayout(
        **(shape | sizes), num_hidden_layers=layers, max_position_embeddings=64, rms_norm_eps=3e-3, rope_theta=1234.5,
        attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied,
    )  # fmt: skip
    plan = GraphPlan(layout=layout, dtype=dtype, lora=lora or Lora(rank=3, alpha=7.0))  # type: ignore[arg-type]
    base = {}
    for name, (dims, _) in weights(plan).items():
        drawn = rng.standard_normal(dims) * (1.0 if name == "embedding" else dims[-1] ** -0.5)
        base[name] = (1 + 0.2 * drawn if name.endswith("norm") else drawn).astype(np.float32)
    lora_ab = {name: (0.3 * rng.standard_normal(dims)).astype(np.float32) for name, (dims, _) in adapter(plan).items()}
    ids = rng.integers(0, layout.vocab_size, (batch, tokens))
    labels = rng.integers(0, layout.vocab_size, (batch, tokens))
    labels[0, :3] = -100
    labels[-1, -2:] = -100
    return Case(plan=plan, weights=base, adapter=lora_ab, ids=ids, labels=labels)


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How sums and products are taken, and what may be spoilt."""

    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul
    total: Callable[[Tensor], Tensor] = lambda x: x.sum(-1, keepdim=True)
    softmax: Callable[[Tensor], Tensor] | None = None
    angles: torch.dtype = torch.float64
    norm: Callable[[Tensor, Tensor, float], Tensor] | None = None
    scale: float = 1.0
    scaling: Mapping[str, float] = field(default_factory=dict)


class Plain:
    """One case in one dtype, by sections."""

    def __init__(self, it: Case, dtype: torch.dtype = torch.float64, arithmetic: Arithmetic | None = None) -> None:
        self.plan, self.layout, self.dtype = it.plan, it.plan.layout, dtype
        self.how = arithmetic or Arithmetic()
        self.weights = {name: torch.tensor(value).to(dtype) for name, value in it.weights.items()}
        self.adapter = {name: torch.tensor(value).to(dtype).requires_grad_() for name, value in it.adapter.items()}

    def tables(self, tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin, in the dtype of `angles`, cast once."""
        half = torch.arange(0, self.layout.head_dim, 2, dtype=self.how.angles) / self.layout.head_dim
        angles = torch.outer(torch.arange(tokens, dtype=self.how.angles), 1 / self.layout.rope_theta**half)
        twice = torch.cat([angles, angles], -1)
        return twice.cos().to(self.dtype), twice.sin().to(self.dtype)

    def block(self, section: str, x: Tensor, tables: tuple[Tensor, Tensor], tap: Callable[[str, Tensor], Tensor]) -> Tensor:
        """One block."""
        layout, how = self.layout, self.how

        def linear(name: str, x: Tensor) -> Tensor:
            own = f"{section}.{name}"
            y = how.product(x, self.weights[own].T)
            if f"{own}.bias" in self.weights:
                y = y + self.weights[f"{own}.bias"]
            if f"{own}.lora_a" not in self.adapter:
                return tap(name, y)
            y = tap(f"{name}.base", y)
            ax = tap(f"{name}.lora_ax", how.product(x, self.adapter[f"{own}.lora_a"].T))
            bax = tap(f"{name}.lora_bax", how.product(ax, self.adapter[f"{own}.lora_b"].T))
            return tap(name, y + scaling(self.plan.lora) * how.scaling.get(own, 1.0) * bax)

        def heads(x: Tensor, count: int) -> Tensor:
            return x.view(*x.shape[:2], count, layout.head_dim).transpose(1, 2)

        def rope(x: Tensor) -> Tensor:
            half = layout.head_dim // 2
            return x * tables[0] + torch.cat([-x[..., half:], x[..., :half]], -1) * tables[1]

        n = tap("attention_norm", self.norm(x, self.weights[f"{section}.attention_norm"]))
        q, k, v = linear("q_proj", n), linear("k_proj", n), linear("v_proj", n)
        q, k = tap("q_rope", rope(heads(q, layout.num_attention_heads))), tap("k_rope", rope(heads(k, layout.num_key_value_heads)))
        group = layout.num_attention_heads // layout.num_key_value_heads
        k, v = k.repeat_interleave(group, 1), heads(v, layout.num_key_value_heads).repeat_interleave(group, 1)
        scores = tap("scores", how.product(q, k.transpose(-1, -2)) * (how.scale / layout.head_dim**0.5))
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = tap("weights", self.softmax(scores.masked_fill(unseen, -torch.inf)))
        context = tap("context", how.product(weights, v).transpose(1, 2).flatten(2))
        h = tap("attention_residual", x + linear("o_proj", context))
        m = tap("mlp_norm", self.norm(h, self.weights[f"{section}.mlp_norm"]))
        gate, up = linear("gate_proj", m), linear("up_proj", m)
        gated = tap("gated", tap("activation", gate / (1 + torch.exp(-gate))) * up)
        return tap("output", h + linear("down_proj", gated))

    def head(self, x: Tensor, labels: np.ndarray | None, tap: Callable[[str, Tensor], Tensor]) -> Tensor | None:
        """The head, and the loss where there are labels."""
        n = tap("final_norm", self.norm(x, self.weights["final_norm"]))
        head = self.weights["embedding" if self.layout.tie_word_embeddings else "lm_head"]
        z = tap("logits", self.how.product(n, head.T))
        if labels is None:
            return None
        target = torch.tensor(labels[:, 1:])
        shifted = z[:, :-1] - z[:, :-1].amax(-1, keepdim=True).detach()
        log_p = shifted - self.how.total(shifted.exp()).log()
        losses = -log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        return tap("loss", losses[target != -100].mean())

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm."""
        if self.how.norm is not None:
            return self.how.norm(x, weight, self.layout.rms_norm_eps)
        return x * (self.how.total(x * x) / x.shape[-1] + self.layout.rms_norm_eps).rsqrt() * weight

    def softmax(self, scores: Tensor) -> Tensor:
        """Over the last axis."""
        if self.how.softmax is not None:
            return self.how.softmax(scores)
        e = (scores - scores.amax(-1, keepdim=True).detach()).exp()
        return e / self.how.total(e)

    def section(self, section: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The `block` request of contract/worker/graph.py."""
        given = {name: torch.tensor(value) for name, value in tensors.items()}
        replaced = {name[9:]: value.requires_grad_() for name, value in given.items() if name.startswith("override.")}
        taps: dict[str, Tensor] = {}

        def tap(name: str, value: Tensor) -> Tensor:
            taps[name] = value
            return replaced.get(name, value)

        wanted = dict(replaced)
        if section == EMBEDDING:
            tap("embedding", self.weights["embedding"][given["ids"]])
            taps["rope.cos"], taps["rope.sin"] = self.tables(given["ids"].shape[1])
        else:
            wanted["input"] = given["input"].requires_grad_()
            wanted |= {name.removeprefix(f"{section}."): it for name, it in self.adapter.items() if name.startswith(f"{section}.")}
            cos, sin = self.tables(given["input"].shape[1])
            if section == HEAD:
                self.head(given["input"], tensors.get("labels"), tap)
            else:
                self.block(section, given["input"], (replaced.pop("rope.cos", cos), replaced.pop("rope.sin", sin)), tap)
        answer = {name: value.detach().numpy() for name, value in taps.items()}
        bars = [(taps[name[4:]] * value).sum() for name, value in given.items() if name.startswith("bar.")]
        if bars and wanted:
            names = [name for name in wanted if name not in ("rope.cos", "rope.sin")]
            total = torch.stack(bars).sum() + sum(0 * wanted[name].sum() for name in names)
            found = torch.autograd.grad(total, [wanted[name] for name in names])
            answer |= {f"grad.{name}": it.numpy() for name, it in zip(names, found, strict=True)}
        return answer

    def graph(self, ids: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, Any]]:
        """Taps, their cotangents and the adapter's gradients of the whole graph, by full names."""
        taps: dict[str, Tensor] = {}

        def taker(section: str) -> Callable[[str, Tensor], Tensor]:
            def tap(name: str, value: Tensor) -> Tensor:
                taps[prefix(section) + name] = value
                if not value.requires_grad:
                    value.requires_grad_()
                value.retain_grad()
                return value

            return tap

        x = taker(EMBEDDING)("embedding", self.weights["embedding"][torch.tensor(ids)])
        tables = self.tables(ids.shape[1])
        for section in sections(self.layout.num_hidden_layers)[1:-1]:
            x = self.block(section, x, tables, taker(section))
        loss = self.head(x, labels, taker(HEAD))
        assert loss is not None
        loss.backward()
        bars = {name: it.grad.numpy() for name, it in taps.items() if it.grad is not None}
        taps |= {"rope.cos": tables[0], "rope.sin": tables[1]}
        grads = {name: it.grad.numpy() for name, it in self.adapter.items() if it.grad is not None}
        return {"taps": {name: it.detach().numpy() for name, it in taps.items()}, "bars": bars, "grads": grads}


def scaling(lora: Lora) -> float:
    """s = alpha / r, with rslora alpha / sqrt(r)."""
    return lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
