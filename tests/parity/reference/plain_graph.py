"""A decoder's graph in torch, plainly, with autograd for its gradients.

Every sum and product goes through an Arithmetic, so that tests of the judge can reorder sums and plant errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contract.model.layout import GPT2Layout
from contract.worker.plan import Lora
from contract.worker.taps import EMBEDDING, HEAD, prefix, sections
from parity.reference.graph import Batch
from tests.parity.reference.plain_cases import Case

TABLES = ("rope.cos", "rope.sin")


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

    def tables(self, tokens: int, positions: np.ndarray | None = None) -> tuple[Tensor, Tensor] | None:
        """cos and sin, in the dtype of `angles`, cast once; None where nothing is turned."""
        if isinstance(self.layout, GPT2Layout):
            return None
        half = torch.arange(0, self.layout.head_dim, 2, dtype=self.how.angles) / self.layout.head_dim
        at = torch.arange(tokens) if positions is None else torch.tensor(positions)
        angles = at.to(self.how.angles)[..., None] * self.scaled(1 / self.layout.rope_theta**half)
        twice = torch.cat([angles, angles], -1)
        return twice.cos().to(self.dtype), twice.sin().to(self.dtype)

    def scaled(self, frequencies: Tensor) -> Tensor:
        """As transformers' _compute_linear_scaling_rope_parameters and _compute_llama3_parameters."""
        assert not isinstance(self.layout, GPT2Layout)
        scaling = self.layout.rope_scaling
        if scaling is None:
            return frequencies
        if scaling.rope_type == "linear":
            return frequencies / scaling.factor
        low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
        assert low is not None
        assert high is not None
        assert length is not None
        wavelengths = 2 * math.pi / frequencies
        smooth = (length / wavelengths - low) / (high - low)
        between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
        slow = torch.where(wavelengths > length / low, frequencies / scaling.factor, frequencies)
        return torch.where((wavelengths >= length / high) & (wavelengths <= length / low), between, slow)

    def embed(self, ids: np.ndarray, positions: np.ndarray | None, tap: Callable[[str, Tensor], Tensor]) -> Tensor:
        """The residual stream that enters the first block."""
        x = tap("embedding", self.weights["embedding"][torch.tensor(ids)])
        if not isinstance(self.layout, GPT2Layout):
            return x
        rows = self.weights["position_embedding"][torch.arange(ids.shape[1]) if positions is None else torch.tensor(positions)]
        return tap("embedded", x + tap("position_embedding", rows))

    def block(
        self,
        section: str,
        x: Tensor,
        tables: tuple[Tensor, Tensor] | None,
        segments: np.ndarray | None,
        tap: Callable[[str, Tensor], Tensor],
    ) -> Tensor:
        """One block."""
        layout, how = self.layout, self.how

        def heads(x: Tensor, count: int) -> Tensor:
            return x.view(*x.shape[:2], count, layout.head_dim).transpose(1, 2)

        def prepared(letter: str, x: Tensor) -> Tensor:
            if f"{letter}_norm" in layout.head_norms:
                x = tap(f"{letter}_norm", self.norm(x, f"{section}.{letter}_norm"))
            if tables is None:
                return x
            half = layout.head_dim // 2
            cos, sin = (table if table.ndim == 2 else table[:, None] for table in tables)
            return tap(f"{letter}_rope", x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin)

        n = tap("attention_norm", self.norm(x, f"{section}.attention_norm"))
        q, k, v = (self.linear(section, name, n, tap) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = prepared("q", heads(q, layout.num_attention_heads)), prepared("k", heads(k, layout.num_key_value_heads))
        group = layout.num_attention_heads // layout.num_key_value_heads
        k, v = k.repeat_interleave(group, 1), heads(v, layout.num_key_value_heads).repeat_interleave(group, 1)
        layer = int(section.removeprefix("layers."))
        scores = tap("scores", how.product(q, k.transpose(-1, -2)) * (how.scale * self.scale(layer)))
        weights = tap("weights", self.attended(scores, layer, segments))
        context = tap("context", how.product(weights, v).transpose(1, 2).flatten(2))
        h = tap("attention_residual", x + self.linear(section, "o_proj", context, tap))
        inner = self.inner(section, tap("mlp_norm", self.norm(h, f"{section}.mlp_norm")), tap)
        return tap("output", h + self.linear(section, "down_proj", inner, tap))

    def linear(self, section: str, name: str, x: Tensor, tap: Callable[[str, Tensor], Tensor]) -> Tensor:
        """A linear, with its LoRA where it has one."""
        own, how = f"{section}.{name}", self.how
        y = how.product(x, self.weights[own].T)
        if f"{own}.bias" in self.weights:
            y = y + self.weights[f"{own}.bias"]
        if f"{own}.lora_a" not in self.adapter:
            return tap(name, y)
        y = tap(f"{name}.base", y)
        ax = tap(f"{name}.lora_ax", how.product(x, self.adapter[f"{own}.lora_a"].T))
        bax = tap(f"{name}.lora_bax", how.product(ax, self.adapter[f"{own}.lora_b"].T))
        return tap(name, y + scaling(self.plan.lora, own) * how.scaling.get(own, 1.0) * bax)

    def inner(self, section: str, m: Tensor, tap: Callable[[str, Tensor], Tensor]) -> Tensor:
        """What down_proj takes."""
        if not isinstance(self.layout, GPT2Layout):
            gate, up = self.linear(section, "gate_proj", m, tap), self.linear(section, "up_proj", m, tap)
            return tap("gated", tap("activation", gate / (1 + torch.exp(-gate))) * up)
        x = self.linear(section, "up_proj", m, tap)
        if self.layout.activation_function == "gelu":
            return tap("activation", x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))
        return tap("activation", 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))))

    def scale(self, layer: int) -> float:
        """What scores are multiplied by."""
        layout = self.layout
        if not isinstance(layout, GPT2Layout):
            return layout.head_dim**-0.5
        scale = layout.head_dim**-0.5 if layout.scale_attn_weights else 1.0
        return scale / (layer + 1) if layout.scale_attn_by_inverse_layer_idx else scale

    def attended(self, scores: Tensor, layer: int, segments: np.ndarray | None) -> Tensor:
        """The weights: of the same segment, no later, within the window; padding sees nothing."""
        tokens, window = scores.shape[-1], self.layout.window(layer)
        hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        if window is not None:
            hidden |= torch.ones(tokens, tokens, dtype=torch.bool).tril(-window)
        if segments is None:
            return self.softmax(scores.masked_fill(hidden, -torch.inf))
        own = torch.tensor(segments)
        hidden = (hidden | (own[:, :, None] != own[:, None, :]))[:, None]
        blind = (own == -1)[:, None, :, None]
        weights = self.softmax(scores.masked_fill(hidden & ~blind, -torch.inf))
        return torch.where(blind, torch.zeros_like(weights), weights)

    def head(self, x: Tensor, labels: np.ndarray | None, tap: Callable[[str, Tensor], Tensor]) -> Tensor | None:
        """The head, and the loss where there are labels."""
        n = tap("final_norm", self.norm(x, "final_norm"))
        head = self.weights["embedding" if self.layout.tie_word_embeddings else "lm_head"]
        z = tap("logits", self.how.product(n, head.T))
        if labels is None:
            return None
        target = torch.tensor(labels[:, 1:])
        shifted = z[:, :-1] - z[:, :-1].amax(-1, keepdim=True).detach()
        log_p = shifted - self.how.total(shifted.exp()).log()
        losses = -log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        return tap("loss", losses[target != -100].mean())

    def norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm, or LayerNorm."""
        weight, layout = self.weights[name], self.layout
        if isinstance(layout, GPT2Layout):
            d = x - self.how.total(x) / x.shape[-1]
            return d * (self.how.total(d * d) / x.shape[-1] + layout.layer_norm_epsilon).rsqrt() * weight + self.weights[f"{name}.bias"]
        if self.how.norm is not None:
            return self.how.norm(x, weight, layout.rms_norm_eps)
        return x * (self.how.total(x * x) / x.shape[-1] + layout.rms_norm_eps).rsqrt() * weight

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

        wanted = {name: value for name, value in replaced.items() if name not in TABLES}
        if section == EMBEDDING:
            self.embed(tensors["ids"], tensors.get("positions"), tap)
            taps |= dict(zip(TABLES, self.tables(tensors["ids"].shape[1], tensors.get("positions")) or (), strict=False))
        else:
            wanted["input"] = given["input"].requires_grad_()
            wanted |= {name.removeprefix(f"{section}."): it for name, it in self.adapter.items() if name.startswith(f"{section}.")}
            if section == HEAD:
                self.head(given["input"], tensors.get("labels"), tap)
            else:
                tables = self.tables(given["input"].shape[1], tensors.get("positions"))
                if tables is not None:
                    tables = replaced.get(TABLES[0], tables[0]), replaced.get(TABLES[1], tables[1])
                self.block(section, given["input"], tables, tensors.get("segments"), tap)
        answer = {name: value.detach().numpy() for name, value in taps.items()}
        bars = [(taps[name[4:]] * value).sum() for name, value in given.items() if name.startswith("bar.")]
        if bars and wanted:
            total = torch.stack(bars).sum() + sum(0 * one.sum() for one in wanted.values())
            found = torch.autograd.grad(total, list(wanted.values()))
            answer |= {f"grad.{name}": it.numpy() for name, it in zip(wanted, found, strict=True)}
        return answer

    def graph(self, batch: Batch) -> dict[str, dict[str, Any]]:
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

        x = self.embed(batch.ids, batch.positions, taker(EMBEDDING))
        tables = self.tables(batch.ids.shape[1], batch.positions)
        for section in sections(self.layout.num_hidden_layers)[1:-1]:
            x = self.block(section, x, tables, batch.segments, taker(section))
        loss = self.head(x, batch.labels, taker(HEAD))
        assert loss is not None
        loss.backward()
        bars = {name: it.grad.numpy() for name, it in taps.items() if it.grad is not None}
        taps |= dict(zip(TABLES, tables or (), strict=False))
        grads = {name: it.grad.numpy() for name, it in self.adapter.items() if it.grad is not None}
        return {"taps": {name: it.detach().numpy() for name, it in taps.items()}, "bars": bars, "grads": grads}


def scaling(lora: Lora, path: str) -> float:
    """alpha / R, or alpha / sqrt(R) with rslora, of one linear."""
    name = path.rpartition(".")[2]
    rank = lora.rank_pattern.get(path, lora.rank_pattern.get(name, lora.rank))
    alpha = lora.alpha_pattern.get(path, lora.alpha_pattern.get(name, lora.alpha))
    return alpha / (rank**0.5 if lora.rslora else rank)
