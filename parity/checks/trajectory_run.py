"""The runs of tier D: small models, each odd in several ways at once, so that few of them cover what a contract can ask for.

Each shape of a micro-batch is a captured function of a stack that compiles, so that a run costs seconds before its first step: a new field
of the contract goes into one of these runs if it can. Everything is drawn from a seed, so it is the same in every run of the gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from contract.model.layout import GPT2Layout, Layout, LlamaLayout, Qwen3Layout
from contract.run.spec import Graph, Objective

SEED = 11

Fields = Mapping[str, Mapping[str, Any]]
"""Of a contract, section by section."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRun:
    """A run: its model, its rows and its contract.

    rows: of the train file. words: fewest and most of a prompt, and of a response. difficulty: rows have one.
    fields: of the contract, but for what names files.
    steps: how many optimiser steps that makes; asked: those that are compared. decays_at: after this one, two more show what decays.
    """

    name: str
    title: str
    layout: Layout
    rows: int
    words: tuple[tuple[int, int], tuple[int, int]] = ((2, 7), (1, 7))
    difficulty: bool = False
    graph: Graph = "full_causal"
    objective: Objective = "chatml_supervised"
    fields: Fields = field(default_factory=dict)
    steps: int
    asked: tuple[int, ...] = ()
    decays_at: int | None = None

    @property
    def count(self) -> int:
        """Cases that are asked."""
        return len(self.asked) + 2 * (self.decays_at is not None)

    def changed(self, name: str, steps: int, **exec_: Any) -> TrainingRun:
        """The same with other fields of exec."""
        return replace(self, name=name, steps=steps, fields={**self.fields, "exec": {**self.fields["exec"], **exec_}})


def _rope(**fields: Any) -> dict[str, Any]:
    return {
        "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 32, "rms_norm_eps": 0.02, "rope_theta": 70.0, **fields,
    }  # fmt: skip


LLAMA = TrainingRun(
    name="llama", title="a Llama with LoRA on every linear; ragged micro-batches, short last steps of epochs, warm-up, clipping",
    layout=LlamaLayout(**_rope(), attention_bias=False, mlp_bias=False, tie_word_embeddings=True),
    rows=23, steps=20, asked=tuple(range(20)), decays_at=3,
    fields={
        "adapter": {"method": "lora", "rank": 3, "alpha": 7.0}, "quant": {"base": "none"},
        "exec": {
            "seq_len": 16, "batch_size": 3, "grad_accum": 2, "epochs": 5, "learning_rate": 0.005, "warmup_steps": 4, "weight_decay": 0.1,
            "max_grad_norm": 7.5,
        },
    },
)  # fmt: skip
"""5 epochs of 23 rows: 3 steps of 2 x 3 rows, and one of 3 + 2. One row in five is longer than seq_len and loses tokens."""

PACKED = TrainingRun(
    name="packed", title="a packed Qwen3 with a window in one layer: dropout, patterns, rslora, curriculum, large learning rate and decay",
    layout=Qwen3Layout(**_rope(), attention_bias=False, tie_word_embeddings=False, sliding_window=12, max_window_layers=1),
    rows=11, words=((1, 19), (1, 5)), difficulty=True, steps=5, asked=(0, 1, 2, 3, 4),
    fields={
        "data": {"curriculum": "difficulty", "truncation": "right"},
        "adapter": {
            "method": "lora", "rank": 3, "alpha": 5.0, "dropout": 0.3, "rslora": True, "rank_pattern": {"v_proj": 2, "layers.0.up_proj": 5},
            "alpha_pattern": {"o_proj": 1.5, "layers.0.q_proj": 11.0},
        },
        "quant": {"base": "none"},
        "exec": {
            "seq_len": 28, "batch_size": 2, "grad_accum": 4, "epochs": 5, "learning_rate": 0.3, "warmup_steps": 1, "weight_decay": 2.5,
            "max_grad_norm": 0.01, "packing": True,
        },
    },
)  # fmt: skip
"""A step is an epoch, so that the same rows unpacked and in one batch are the same step. The window is shorter than the longest rows, and
so long that a short row would see the one before it."""

WHOLE = PACKED.changed("whole", 5, packing=False, batch_size=11, grad_accum=1)
"""What PACKED learns from, every row in a sequence of its own, in one batch."""

RAGGED = PACKED.changed("ragged", 5, packing=False, batch_size=4, grad_accum=3)
"""The same in micro-batches of 4, 4 and 3 rows."""

GPT2 = TrainingRun(
    name="gpt2", title="a GPT-2 with LoRA on some linears, gradients as small as eps; rows and whole steps with nothing to learn",
    layout=GPT2Layout(
        vocab_size=61, hidden_size=30, intermediate_size=44, num_hidden_layers=1, num_attention_heads=3, head_dim=10,
        num_key_value_heads=3, max_position_embeddings=29, layer_norm_epsilon=0.02, attn_pdrop=0.1, embd_pdrop=0.2, resid_pdrop=0.3,
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, activation_function="gelu_new", tie_word_embeddings=True,
    ),
    rows=9, words=((3, 13), (1, 3)), steps=10, asked=tuple(range(10)),
    fields={
        "data": {"truncation": "right"},
        "adapter": {
            "method": "lora", "rank": 2, "alpha": 1e-5, "dropout": 0.1, "target_modules": ["q_proj", "v_proj", "down_proj"],
            "alpha_pattern": {"down_proj": 4.0},
        },
        "quant": {"base": "none"},
        "exec": {
            "seq_len": 16, "batch_size": 1, "grad_accum": 2, "epochs": 2, "learning_rate": 0.02, "warmup_steps": 0, "weight_decay": 0.3,
            "max_grad_norm": 3.0, "max_skip_rate": 0.9, "checkpoint_every": 7,
        },
    },
)  # fmt: skip
"""Two epochs of 9 rows: four steps of two rows, and one of one."""

PACKED_GPT2 = replace(GPT2.changed("packed_gpt2", 3, packing=True, epochs=3, batch_size=9, grad_accum=1, seq_len=29), asked=())
"""A step is an epoch. Its positions are learned: with RoPE a row that is packed may stand anywhere."""

WHOLE_GPT2 = PACKED_GPT2.changed("whole_gpt2", 3, packing=False)
"""The same rows, each in a sequence of its own."""

PROXY = TrainingRun(
    name="proxy", title="the proxy graph on an NF4 base, objective last_k",
    layout=LlamaLayout(
        **_rope(num_attention_heads=3, num_key_value_heads=1, head_dim=8), attention_bias=False, mlp_bias=False, tie_word_embeddings=True
    ),
    rows=7, graph="qlora_proxy_v1", objective="last_k", steps=4, asked=(0, 1, 2, 3),
    fields={
        "adapter": {"method": "qlora", "rank": 2, "alpha": 3.0, "dropout": 0.2, "targets": "lm_head_proxy", "rank_pattern": {"lm_head": 4}},
        "quant": {"base": "nf4", "double_quant": False, "block_size": 32},
        "exec": {
            "seq_len": 12, "batch_size": 2, "grad_accum": 2, "epochs": 2, "learning_rate": 0.01, "warmup_steps": 1, "weight_decay": 0.2,
            "max_grad_norm": 1.0, "ce_last_k": 3,
        },
    },
)  # fmt: skip
"""Absmax is not nested: about which offset is each stack's own sum, which tiers B and C hold to its bound."""

NARROW = TrainingRun(
    name="bfloat16", title="a Qwen3 in bfloat16 on an NF4 base: packed, windows in some layers, dropout",
    layout=Qwen3Layout(**_rope(), attention_bias=True, tie_word_embeddings=True, sliding_window=5, max_window_layers=1),
    rows=9, steps=4, asked=(0, 1, 2, 3),
    fields={
        "adapter": {"method": "qlora", "rank": 3, "alpha": 7.0, "dropout": 0.1},
        "quant": {"base": "nf4", "double_quant": False, "block_size": 64},
        "exec": {
            "seq_len": 28, "batch_size": 2, "grad_accum": 2, "epochs": 2, "learning_rate": 0.005, "warmup_steps": 1, "weight_decay": 0.1,
            "max_grad_norm": 1.0, "packing": True, "compute_dtype": "bfloat16",
        },
    },
)  # fmt: skip

RUNS = (LLAMA, PACKED, GPT2, PROXY, NARROW)
