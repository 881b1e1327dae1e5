"""Mistral (arXiv:2310.06825): Llama's block; its window is in what a token sees (`Pass.seen`)."""

from __future__ import annotations

from stacks.tinygrad_lora.models import llama

block = llama.block
