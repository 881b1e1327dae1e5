"""What a fine-tune run is.

Fields are checked one by one here; what goes together with what is a gate's business (contract/run/gates), so that all that is
wrong with a run is said at once. Each description is what `finetune init` writes beside the field and what the JSON Schema says.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

Lane = Literal["production", "research"]
Graph = Literal["full_causal", "qlora_proxy_v1"]
Objective = Literal["chatml_supervised", "last_k"]
Method = Literal["lora", "qlora"]
Base = Literal["none", "nf4"]
TokenizerMode = Literal["vox", "hf"]
ComputeDtype = Literal["float32", "bfloat16"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]

_MANY = 2**31 - 1


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("names that each come once")
    return names


def _whole_number(value: object) -> object:
    if type(value) is not int:  # a Literal takes what equals it: True is 1, and 64.0 is 64
        raise ValueError("a whole number")
    return value


Whole = BeforeValidator(_whole_number)
"""Beside a Literal of numbers."""

ONE_LINE = r"^[^\x00-\x1f\x7f]+$"
Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=ONE_LINE)]
Count = Annotated[int, Field(ge=1, le=_MANY)]
Module = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,128}$")]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelSpec(_Spec):
    """The base model: a name or folder, or its files one by one; a file that is named takes the place of the folder's own."""

    hf_repo: Text | None = Field(default=None, description="a known model's name, a hub id (OWNER/NAME), or a folder")
    weight_shards: Annotated[tuple[Text, ...], Field(strict=False, max_length=4096), AfterValidator(_each_once)] = Field(
        default=(), description="safetensors files; their order means nothing"
    )
    config_json: Text | None = Field(default=None, description="the model's config.json")
    tokenizer_json: Text | None = Field(default=None, description="the tokenizer's tokenizer.json")


class DataSpec(_Spec):
    """The rows to learn from, and how they become text."""

    train_file: Text = Field(description="JSONL: prompt and response (or instruction and output), or messages")
    tokenizer_mode: TokenizerMode = Field(default="hf", description="hf: the model's tokenizer.json; vox: a fixed table of 131 ids")
    template: Literal["chatml", "tokenizer"] = Field(default="chatml", description="tokenizer: the model's own chat template")
    system_prompt: Annotated[str, Field(max_length=2**20)] | None = Field(default=None, description="for rows that have no system text")
    truncation: Literal["left", "right"] = Field(default="left", description="the side on which a row longer than seq_len loses tokens")
    min_rating: int = Field(default=3, ge=1, le=5, description="rows rated lower are left out; rows without a rating stay")
    context_filter: Text | None = Field(default=None, description="keeps rows whose category contains it, whatever its case")
    validation_split: float = Field(default=0.05, ge=0, lt=1, description="share of the rows that are held back")
    curriculum: Literal["none", "difficulty"] = Field(default="none", description="difficulty: easier rows first, in every epoch")
    skip_bad_rows: bool = Field(default=False, description="count and list malformed rows instead of refusing the file")
    parse_special_tokens: bool = Field(default=False, description="special tokens written inside a row's text act as markup")


class AdapterSpec(_Spec):
    """LoRA: W x + s B (A dropout(x)), s = alpha / rank, or alpha / sqrt(rank) with rslora (arXiv:2106.09685, 2312.03732)."""

    method: Method = Field(default="qlora", description="qlora: LoRA on a quantised base")
    rank: Annotated[int, Field(ge=1, le=65536)] = Field(default=16, description="rows of A, columns of B")
    alpha: float = Field(default=32.0, gt=0, le=1e9, description="numerator of the scale s")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="probability that an input of A is zeroed")
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
    targets: Literal["full_graph", "lm_head_proxy"] = Field(default="full_graph", description="lm_head_proxy: the proxy graph's linears")
    target_modules: Annotated[tuple[Module, ...], Field(strict=False, max_length=4096), AfterValidator(_each_once)] = Field(
        default=(), description="linears that get LoRA, such as q_proj; none named: all of a block"
    )
    rank_pattern: dict[Module, Annotated[int, Field(ge=1, le=65536)]] = Field(
        default_factory=dict, description="another rank for a linear (q_proj) or for one of them (layers.3.q_proj)"
    )
    alpha_pattern: dict[Module, Annotated[float, Field(gt=0, le=1e9)]] = Field(default_factory=dict, description="another alpha, likewise")


class QuantSpec(_Spec):
    """How the frozen base is held."""

    base: Base = Field(default="nf4", description="nf4: 4-bit NormalFloat (arXiv:2305.14314)")
    double_quant: bool = Field(default=True, description="absmax itself in 8 bits")
    block_size: Annotated[Literal[32, 64, 128, 256, 512, 1024, 2048, 4096], Whole] = Field(
        default=64, description="values that share one absmax"
    )


class ExecSpec(_Spec):
    """How the run goes."""

    epochs: Count = Field(default=3, description="passes over the rows")
    max_steps: Count | None = Field(default=None, description="optimiser steps at most; the schedule ends there")
    seq_len: Annotated[int, Field(ge=2, le=_MANY)] = Field(default=256, description="tokens of a row")
    batch_size: Count = Field(default=4, description="rows of a micro-batch")
    grad_accum: Count = Field(default=4, description="micro-batches of an optimiser step")
    learning_rate: float = Field(default=2e-4, gt=0, le=1e3, description="at the top of the schedule")
    warmup_steps: Annotated[int, Field(ge=0, le=_MANY)] = Field(default=100, description="optimiser steps of linear warm-up")
    weight_decay: float = Field(default=0.01, ge=0, le=1e3, description="AdamW's, decoupled")
    max_grad_norm: float = Field(default=1.0, gt=0, le=1e9, description="gradients are clipped to this norm")
    optimizer: Optimizer = Field(default="adamw", description="the 8-bit ones hold m and v in 8 bits")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = Field(default=42, description="of the adapter, the order of rows and dropout")
    resume_from: Text | None = Field(default=None, description="a training checkpoint's folder")
    max_vram_fraction: float = Field(default=0.9, gt=0, le=1, description="share of the device's memory that the run may take")
    adapter_tag: Text | None = Field(default=None, description="a name of one line that goes into the artifacts")
    require_full_proxy_stack: bool = Field(default=False, description="proxy graph: refuse a checkpoint that lacks a middle key")
    max_skip_rate: float = Field(default=0.05, ge=0, le=1, description="share of rows without a supervised token that ends the run")
    lm_head_only: bool = Field(default=False, description="proxy graph: no middle blocks")
    proxy_max_layers: Annotated[int, Field(ge=0, le=_MANY)] | None = Field(default=None, description="proxy graph: middle blocks at most")
    ce_last_k: Count = Field(default=16, description="objective last_k: positions that carry the loss")
    checkpoint_every: Count = Field(default=500, description="optimiser steps between checkpoints")
    compute_dtype: ComputeDtype = Field(default="float32", description="of activations and products")
    packing: bool = Field(default=False, description="several rows in one sequence, with boundaries; no padding")
    device: Annotated[str, Field(pattern=r"^[A-Z0-9_.:-]{1,64}$")] = Field(default="CPU", description="CPU, CUDA, WEBGPU, METAL, CL")
    allow_cpu_fallback: bool = Field(default=False, description="where the device is not here, run on the CPU, and say so in the manifest")

    @field_validator("device", mode="before")
    @classmethod
    def _upper(cls, device: object) -> object:
        return device.upper() if isinstance(device, str) else device


class ArtifactSpec(_Spec):
    """What the run leaves, and for whom."""

    adapter_schema_version: Annotated[Literal[2, 3], Whole] = Field(
        default=3, description="2: candle_qlora_adapter_meta.json; 3: the manifest too"
    )
    allow_placeholder_attention_merge: bool = Field(
        default=False, description="the artifacts then say that they do not claim the fidelity of a full attention merge"
    )
    deployment_target: Literal["workstation", "mobile_edge"] = Field(default="workstation", description="mobile_edge: tighter limits")


class FineTuneContract(_Spec):
    """A fine-tune run, whole: the one thing that both stacks, the planner and the gate take."""

    contract_version: Annotated[Literal[1], Whole] = Field(default=1, description="of this file's format")
    lane: Lane = Field(default="production", description="research: stacks that are not promoted may run")
    stack: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] | None = Field(
        default=None, description="forces one; left out, it follows from lane, method and base"
    )
    graph: Graph = Field(default="full_causal", description="qlora_proxy_v1: a bounded proxy, no whole transformer")
    objective: Objective = Field(default="chatml_supervised", description="last_k: the last ce_last_k positions of plain text")
    model: ModelSpec
    data: DataSpec
    adapter: AdapterSpec = Field(default_factory=AdapterSpec)
    quant: QuantSpec = Field(default_factory=QuantSpec)
    exec: ExecSpec = Field(default_factory=ExecSpec)
    artifact: ArtifactSpec = Field(default_factory=ArtifactSpec)
