"""Qwen2 (arXiv:2407.10671): Llama's block with biases on q, k and v, which are among its tensors; windows are in what a token sees."""

from __future__ import annotations

from stacks.tinygrad_lora.models import llama

block = llama.block
