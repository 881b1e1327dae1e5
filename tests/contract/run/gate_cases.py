"""Gate by gate: facts that it alone refuses, what it then says, and facts just inside of what it allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from contract.run.digest import run_digest
from contract.run.promotion import Promotion
from tests.contract.run.gate_facts import ABLE, capabilities, contract, estimate, inspected, model_layout, stacks

LORA = {"adapter__method": "lora", "quant__base": "none", "stack": "alpha"}
BETA = {"adapter__method": "lora", "quant__base": "none", "lane": "research"}
PROXY = {"graph": "qlora_proxy_v1", "adapter__targets": "lm_head_proxy"}
EDGE = {"artifact__deployment_target": "mobile_edge", "exec__batch_size": 1}
WANTED = Promotion(granted=False, wanted="promotions/promotion-beta-*.json with decision PROMOTE for this run")
GRANTED = Promotion(granted=True, wanted=WANTED.wanted)
TWICE = {**stacks(), "gamma": stacks()["alpha"]}
LINEAR = model_layout(rope_scaling={"rope_type": "linear", "factor": 2.0})
LLAMA3 = model_layout(
    rope_scaling={
        "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }
)  # fmt: skip
WIDE = model_layout(head_dim=8)
MISTRAL = model_layout("attention_bias", "mlp_bias", model_type="mistral")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One gate: facts that it alone refuses, words of the refusal, and facts just inside of what is allowed."""

    gate: str
    refused: dict[str, Any]
    words: tuple[str, ...]
    allowed: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.gate}: {self.words[0]}"


def run(**changed: Any) -> dict[str, Any]:
    return {"changed": changed}


CASES = [
    Case(
        gate="unknown_stack", refused=run(stack="alpa"), words=("stack alpa", "alpha, beta", "did you mean alpha?"),
        allowed=run(stack="alpha"),
    ),
    Case(gate="unknown_stack", refused=run(stack="zzz"), words=("stack zzz", "name one of them")),
    Case(
        gate="no_stack", refused=run(adapter__method="lora", quant__base="none"),
        words=("lane production, method lora, base none, which lead to no stack", "method qlora or base nf4 (alpha)", "alpha, beta"),
        allowed=run(**LORA),
    ),
    Case(
        gate="no_stack", refused=run(lane="research"), words=("lane research, method qlora",),
        allowed=run(lane="research", stack="alpha"),
    ),
    Case(
        gate="no_stack", refused={"stacks": TWICE}, words=("lead to 2 stacks", "alpha, gamma"),
        allowed={"stacks": TWICE, **run(stack="gamma")},
    ),
    Case(
        gate="forced_stack", refused=run(**{**BETA, "stack": "alpha"}),
        words=("stack alpha", "lane research, method lora and base none lead to beta"), allowed=run(**{**BETA, "stack": "beta"}),
    ),
    Case(
        gate="not_installed", refused={"missing": {"alpha": ("alpha-kernels",), "beta": ()}},
        words=("stack alpha without alpha-kernels", "pip install 'twostack[alpha]'"),
        allowed={"missing": {"alpha": (), "beta": ("other",)}},
    ),
    Case(
        gate="no_training", refused={"stacks": {**stacks(), "delta": capabilities(training=None)}, **run(**{**LORA, "stack": "delta"})},
        words=("stack delta", "alpha, beta"), allowed=run(**LORA),
    ),
    Case(
        gate="research_lane", refused={**run(**{**LORA, "stack": "beta"}), "promotion": WANTED},
        words=("stack beta of the research lane", WANTED.wanted, "set lane to research"),
        allowed={**run(**{**LORA, "stack": "beta"}), "promotion": GRANTED},
    ),
    Case(
        gate="research_lane",
        refused={**run(**{**LORA, "stack": "beta"}), "promotion": Promotion(granted=False, wanted="x", found=("y.json says HOLD",))},
        words=("y.json says HOLD",), allowed=run(**BETA),
    ),
    Case(
        gate="qlora_base", refused={**run(quant__base="none")},
        words=("adapter.method qlora with quant.base none", "nf4"), allowed=run(),
    ),
    Case(
        gate="method_and_base", refused=run(adapter__method="lora"),
        words=("lora on base nf4", "stack alpha: qlora on nf4; lora on none", "or take stack beta"), allowed=run(**LORA),
    ),
    Case(
        gate="nf4_block_size", refused=run(quant__block_size=256),
        words=("quant.block_size 256", "64, 128"), allowed=run(quant__block_size=128),
    ),
    Case(
        gate="graph", refused={**run(**PROXY), "trained": {"graphs": {"full_causal": ["llama"]}}},
        words=("graph qlora_proxy_v1", "stack alpha: full_causal"), allowed=run(**PROXY),
    ),
    Case(
        gate="compute_dtype", refused=run(exec__compute_dtype="bfloat16"),
        words=("exec.compute_dtype bfloat16", "stack alpha: float32"),
        allowed={**run(exec__compute_dtype="bfloat16"), "trained": ABLE},
    ),
    Case(
        gate="optimizer", refused=run(exec__optimizer="adamw_8bit"), words=("exec.optimizer adamw_8bit", "adamw"),
        allowed={**run(exec__optimizer="adamw_8bit"), "trained": {"optimizers": ["adamw_8bit"]}},
    ),
    Case(
        gate="optimizer",
        refused={
            **run(exec__optimizer="adamw_8bit"),
            "trained": {"optimizers": ["adamw", "adamw_8bit"], "optimizer_devices": {"adamw_8bit": ["CUDA"]}},
        },
        words=("exec.optimizer adamw_8bit on CPU", "stack alpha: adamw"),
        allowed={
            **run(exec__optimizer="adamw_8bit", exec__device="CUDA"),
            "trained": {"optimizers": ["adamw", "adamw_8bit"], "optimizer_devices": {"adamw_8bit": ["CUDA"]}},
        },
    ),
    Case(
        gate="dropout", refused=run(adapter__dropout=0.1), words=("adapter.dropout 0.1", "stack alpha: 0"),
        allowed={**run(adapter__dropout=0.1), "trained": ABLE},
    ),
    Case(
        gate="packing", refused=run(exec__packing=True),
        words=("exec.packing true",), allowed={**run(exec__packing=True), "trained": ABLE},
    ),
    Case(
        gate="patterns", refused=run(adapter__rank_pattern={"q_proj": 4}, adapter__alpha_pattern={"k_proj": 2.0}),
        words=("adapter.rank_pattern for q_proj, adapter.alpha_pattern for k_proj",),
        allowed={**run(adapter__rank_pattern={"q_proj": 4}, adapter__alpha_pattern={"k_proj": 2.0}), "trained": ABLE},
    ),
    Case(
        gate="tokenizer", refused=run(**LORA, data__tokenizer_mode="vox"), words=("data.tokenizer_mode vox", "stack alpha: hf"),
        allowed=run(**BETA, data__tokenizer_mode="vox"),
    ),
    *(
        Case(gate="proxy_fields", refused=run(**fields),
        words=(words, "graph full_causal", "qlora_proxy_v1"), allowed=run(**PROXY, **fields))
        for words, fields in [
            ("exec.lm_head_only", {"exec__lm_head_only": True}),
            ("exec.proxy_max_layers", {"exec__proxy_max_layers": 0}),
            ("exec.require_full_proxy_stack", {"exec__require_full_proxy_stack": True}),
        ]
    ),
    Case(
        gate="proxy_fields", refused=run(adapter__targets="lm_head_proxy"), words=("adapter.targets lm_head_proxy",),
        allowed=run(**PROXY),
    ),
    Case(
        gate="proxy_targets", refused=run(graph="qlora_proxy_v1"),
        words=("adapter.targets full_graph with graph qlora_proxy_v1",),
        allowed=run(**PROXY),
    ),
    Case(
        gate="proxy_targets", refused=run(**PROXY, adapter__target_modules=["o_proj"]),
        words=("adapter.targets lm_head_proxy and target_modules o_proj",),
        allowed=run(adapter__target_modules=["o_proj"]),
    ),
    Case(
        gate="proxy_base", refused=run(**PROXY, stack="alpha", adapter__method="lora", quant__base="none"), words=("quant.base none",),
        allowed=run(**PROXY),
    ),
    Case(
        gate="proxy_layers", refused=run(**PROXY, exec__lm_head_only=True, exec__proxy_max_layers=1),
        words=("exec.proxy_max_layers 1",),
        allowed=run(**PROXY, exec__lm_head_only=True, exec__proxy_max_layers=0),
    ),
    Case(
        gate="full_proxy_stack", refused={**run(**PROXY, exec__require_full_proxy_stack=True), "inspected": inspected(proxy=(3, 1))},
        words=("1 of 3 middle keys", "model.layers.1.self_attn.o_proj.weight", "all 3"),
        allowed={**run(**PROXY, exec__require_full_proxy_stack=True), "inspected": inspected(proxy=(3, 3))},
    ),
    Case(
        gate="proxy_square", refused={**run(**PROXY), "inspected": inspected(WIDE)},
        words=("attention's output projection is [24, 48]", "square", "exec.lm_head_only"),
        allowed={**run(**PROXY, exec__lm_head_only=True), "inspected": inspected(WIDE)},
    ),
    Case(
        gate="proxy_square", refused={**run(**PROXY, exec__proxy_max_layers=1), "inspected": inspected(WIDE)}, words=("a llama model",),
        allowed={**run(**PROXY), "inspected": inspected(WIDE, proxy=(3, 2))},
    ),
    Case(
        gate="model_type", refused={"inspected": inspected(MISTRAL)},
        words=("model_type mistral under graph full_causal", "stack alpha: llama"),
        allowed={"inspected": inspected(MISTRAL), "trained": {"graphs": {"full_causal": ["mistral"]}}},
    ),
    Case(
        gate="layout_options", refused={"inspected": inspected(LLAMA3)},
        words=("rope_scaling.llama3", "stack alpha: rope_scaling.linear"),
        allowed={"inspected": inspected(LINEAR)},
    ),
    Case(
        gate="whole_weights", refused={"inspected": inspected(missing=("a.weight",), strange=("b.weight",))},
        words=("missing: a.weight; without a place: b.weight",), allowed={**run(**PROXY), "inspected": inspected(missing=("a.weight",))},
    ),
    Case(
        gate="target_modules", refused=run(adapter__target_modules=["q_proj", "c_attn"]),
        words=("adapter.target_modules c_attn", "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
        allowed=run(adapter__target_modules=["q_proj"]),
    ),
    *(
        Case(gate="pattern_names", refused={**run(**{f"adapter__{name}": {key: 4}}), "trained": ABLE},
        words=(f"adapter.{name} {key}",), allowed={
            **run(**{f"adapter__{name}": {"layers.2.q_proj": 4}}), "trained": ABLE,
        })
        for name in ("rank_pattern", "alpha_pattern")
        for key in ("c_attn", "layers.3.q_proj", "layers.02.q_proj", "layers.2.norm", "layers.99999999999999999999.q_proj")
    ),
    Case(
        gate="pattern_names",
        refused={**run(adapter__rank_pattern={"k_proj": 4}, adapter__target_modules=["q_proj"]), "trained": ABLE},
        words=("adapter.rank_pattern k_proj", "linears that get LoRA (q_proj)"),
    ),
    *(
        Case(gate="pattern_names", refused={**run(**PROXY, adapter__rank_pattern={refused: 4}, **fields), "trained": ABLE},
        words=(f"adapter.rank_pattern {refused}", words), allowed={
            **run(**PROXY, adapter__alpha_pattern={allowed: 4.0}, **fields), "trained": ABLE,
        })
        for refused, allowed, fields, words in (
            ("q_proj", "o_proj", {}, "(o_proj, lm_head), or one of them in one layer: layers.0.o_proj to layers.2"),
            ("layers.2.o_proj", "layers.1.o_proj", {"exec__proxy_max_layers": 2}, "layers.0.o_proj to layers.1"),
            ("layers.0.lm_head", "lm_head", {}, "lm_head"),
            ("o_proj", "lm_head", {"exec__lm_head_only": True}, "linears that get LoRA (lm_head)"),
        )
    ),
    Case(
        gate="tokenizer_file", refused={"has_tokenizer": False}, words=("method qlora with tokenizer hf, and no tokenizer.json",),
        allowed={"has_tokenizer": False, **run(**BETA, data__tokenizer_mode="vox")},
    ),
    Case(
        gate="positions", refused=run(exec__seq_len=4097), words=("exec.seq_len 4,097", "4,096"),
        allowed=run(exec__seq_len=4096),
    ),
    Case(
        gate="resume_from", refused={**run(exec__resume_from="other"), "resumed": "0" * 64}, words=("exec.resume_from other", "0" * 64),
        allowed={**run(exec__resume_from="own"), "resumed": run_digest(contract())},
    ),
    Case(
        gate="qlora_tokenizer", refused=run(data__tokenizer_mode="vox"),
        words=("adapter.method qlora with data.tokenizer_mode vox",),
        allowed=run(data__tokenizer_mode="hf"),
    ),
    Case(
        gate="vox_ids", refused={**run(**BETA, data__tokenizer_mode="vox"), "inspected": inspected(model_layout(vocab_size=130))},
        words=("ids are 0 to 130", "vocab_size 130"),
        allowed={**run(**BETA, data__tokenizer_mode="vox"), "inspected": inspected(model_layout(vocab_size=131))},
    ),
    Case(
        gate="chat_template", refused=run(data__template="tokenizer", objective="last_k"), words=("with objective last_k",),
        allowed=run(data__template="tokenizer"),
    ),
    Case(
        gate="chat_template", refused=run(**BETA, data__template="tokenizer", data__tokenizer_mode="vox"),
        words=("data.template tokenizer with data.tokenizer_mode vox",), allowed=run(**BETA, data__template="tokenizer"),
    ),
    Case(
        gate="own_template", refused={"has_template": False}, words=("no chat template beside tokenizer.json",),
        allowed={"has_template": True},
    ),
    Case(
        gate="last_k", refused=run(objective="last_k", exec__ce_last_k=256),
        words=("exec.ce_last_k 256 with exec.seq_len 256", "255"),
        allowed=run(objective="last_k", exec__ce_last_k=255),
    ),
    Case(
        gate="last_k_truncation", refused=run(objective="last_k", data__truncation="right"),
        words=("data.truncation right with objective last_k",), allowed=run(data__truncation="right"),
    ),
    Case(
        gate="packed_last_k", refused={**run(objective="last_k", exec__packing=True), "trained": ABLE},
        words=("exec.packing true with objective last_k",),
        allowed=run(objective="last_k"),
    ),
    Case(gate="warmup", refused={"steps": 99}, words=("exec.warmup_steps 100, with 99", "99 at most"), allowed={"steps": 100}),
    Case(
        gate="edge_full_proxy_stack", refused=run(**EDGE, **PROXY, exec__require_full_proxy_stack=True),
        words=("exec.require_full_proxy_stack",),
        allowed=run(**EDGE, **PROXY),
    ),
    Case(
        gate="edge_seq_len", refused=run(**EDGE, exec__seq_len=513), words=("exec.seq_len 513", "512"),
        allowed=run(**EDGE, exec__seq_len=512),
    ),
    Case(
        gate="edge_rank", refused=run(**EDGE, adapter__rank=33), words=("adapter.rank 33", "32"),
        allowed=run(**EDGE, adapter__rank=32),
    ),
    Case(
        gate="edge_rank", refused={**run(**EDGE, adapter__rank_pattern={"q_proj": 33}), "trained": ABLE},
        words=("rank_pattern q_proj: 33",),
        allowed={**run(**EDGE, adapter__rank_pattern={"q_proj": 32}), "trained": ABLE},
    ),
    Case(
        gate="edge_batch_size", refused=run(**{**EDGE, "exec__batch_size": 2}),
        words=("exec.batch_size 2 for deployment_target mobile_edge",),
        allowed=run(**EDGE),
    ),
    Case(
        gate="edge_device", refused=run(**EDGE, exec__device="CUDA"), words=("exec.device CUDA",),
        allowed=run(exec__device="CUDA"),
    ),
    Case(
        gate="device", refused=run(exec__device="WEBGPU"), words=("exec.device WEBGPU", "stack alpha: CPU, CUDA"),
        allowed=run(exec__device="CUDA"),
    ),
    Case(
        gate="memory", refused={"estimate": estimate(activations=901)},
        words=("901 B, most of it activations", "900 B: 0.9", "exec.batch_size"),
        allowed={"estimate": estimate(activations=900)},
    ),
    Case(
        gate="memory", refused={"estimate": estimate(weights=501), **run(exec__max_vram_fraction=0.5)},
        words=("most of it weights", "quant.base"),
        allowed={"estimate": estimate(weights=500), **run(exec__max_vram_fraction=0.5)},
    ),
]  # fmt: skip
