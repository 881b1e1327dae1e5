"""The memory estimate: each share against bytes counted by hand, and what makes it grow."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.model import layout
from contract.model.layout import LlamaLayout
from contract.run import memory
from contract.run.memory import Estimate
from contract.run.survey import declared_memory
from contract.worker import discover, graph
from contract.worker.capabilities import Memory
from contract.worker.plan import GraphPlan, Lora
from tests.contract.run.gate_facts import contract, model_layout

NOTHING: dict[str, Any] = {
    "device": "CPU", "process": 0, "loading": 0, "residue": 0, "head_apart": False, "activations": {}, "work": {}, "logits": 0,
    "source": "a test",
}  # fmt: skip


def declared(**changed: Any) -> Memory:
    return Memory.model_validate({**NOTHING, **changed})


def estimate(
    changed: dict[str, Any] | None = None, /, *, base: str = "none", model: LlamaLayout | None = None, **coefficients: Any
) -> Estimate:
    return memory.estimate(model or llama(), contract(quant__base=base, **changed or {}), declared(**coefficients))


def llama(**changed: Any) -> LlamaLayout:
    """D 24, F 40, 3 layers, H 6, K 2, E 4, V 1000."""
    model = model_layout(**changed)
    assert isinstance(model, LlamaLayout)
    return model


LINEARS = 3 * (24 * 24 + 2 * 8 * 24 + 24 * 24 + 3 * 24 * 40)
OTHERS = 1000 * 24 + 3 * 2 * 24 + 24


def test_float32_weights() -> None:
    assert estimate().weights == 4 * (LINEARS + OTHERS)
    assert estimate(model=llama(tie_word_embeddings=False)).weights == 4 * (LINEARS + OTHERS + 1000 * 24)


@pytest.mark.parametrize("biases", [{}, {"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": False}], ids=str)
def test_the_weights_are_those_that_a_stack_is_given(biases: dict[str, bool]) -> None:
    model = llama(**biases)
    plan = GraphPlan(layout=model, dtype="float32", lora=Lora(rank=1, alpha=1))
    values = sum(math.prod(shape) for shape, _ in graph.weights(plan).values())
    assert memory.linear_values(model) + memory.other_values(model) == values


def test_gpt2_has_positions_and_biases() -> None:
    config = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 16}
    model = layout.read(config)
    block = 4 * 12 * 12 + 2 * 12 * 48
    biases = 4 * 12 + 48 + 12
    norms = 2 * 2 * 12
    assert memory.linear_values(model) == 2 * block
    assert memory.other_values(model) == 50 * 12 + 16 * 12 + 2 * (biases + norms) + 2 * 12


def test_a_head_apart_is_counted_where_it_is_tied() -> None:
    assert estimate(head_apart=True).weights - estimate().weights == 4 * 1000 * 24
    untied = llama(tie_word_embeddings=False)
    assert estimate(head_apart=True, model=untied) == estimate(model=untied)


@pytest.mark.parametrize(("double_quant", "absmax"), [(False, 4 * 2), (True, 2 + 4 + 4)], ids=["single", "double"])
def test_nf4_is_half_a_byte_a_value_and_absmax(double_quant: bool, absmax: int) -> None:
    """One linear of 9 x 9 values in blocks of 64: 41 bytes of codes, 2 blocks; nested: 2 codes, one nested absmax, one offset."""
    model = llama(hidden_size=9, intermediate_size=9, num_attention_heads=1, num_key_value_heads=1, head_dim=2, num_hidden_layers=1)
    quant = contract(quant__double_quant=double_quant).quant
    mlp_only = sum(1 for shape in model.widths.values() if shape == (9, 9))
    attention = memory.nf4_bytes(model, quant) - mlp_only * (41 + absmax)
    one_block = 4 if not double_quant else 1 + 4 + 4
    assert attention == 4 * (9 * 2 // 2 + one_block)


def test_the_adapter_counts_targets_and_patterns() -> None:
    assert memory.adapter_values(llama(), contract(adapter__target_modules=["k_proj"], adapter__rank=5).adapter) == 3 * 5 * (8 + 24)
    adapter = contract(
        adapter__target_modules=["k_proj", "q_proj"], adapter__rank=5, adapter__rank_pattern={"layers.1.k_proj": 7, "q_proj": 2}
    ).adapter
    assert memory.adapter_values(llama(), adapter) == (5 + 7 + 5) * (8 + 24) + 3 * 2 * (24 + 24)
    trained = graph.adapter(GraphPlan(layout=llama(), dtype="float32", lora=Lora(rank=16, alpha=1)))
    assert memory.adapter_values(llama(), contract().adapter) == sum(math.prod(shape) for shape, _ in trained.values())


def test_a_model_of_two_billion_layers_takes_no_longer() -> None:
    model = llama().model_copy(update={"num_hidden_layers": 2**31 - 1})
    adapter = contract(
        adapter__target_modules=["q_proj"], adapter__rank=1, adapter__rank_pattern={"layers.7.q_proj": 3, "layers.8.k_proj": 9}
    )
    assert memory.adapter_values(model, adapter.adapter) == (2**31 - 1 + 2) * 48
    assert memory.estimate(model, adapter, declared(activations={"BTD": 1})).total > 2**47


def test_the_optimizer_holds_m_and_v() -> None:
    assert memory.optimizer_bytes(1000, "adamw") == 8000
    assert memory.optimizer_bytes(1000, "adamw_8bit") == memory.optimizer_bytes(1000, "paged_adamw_8bit") == 2 * (1000 + 4 * 4)
    shares = estimate({"adapter__rank": 2})
    assert (shares.gradients, shares.optimizer) == (shares.adapter, 2 * shares.adapter)
    assert estimate({"adapter__rank": 2}, adapter=1.5).adapter == 2.5 * shares.adapter


def test_activations_of_all_layers_work_of_one_and_logits() -> None:
    run = {"exec__batch_size": 2, "exec__seq_len": 10}
    assert estimate(run, activations={"BTD": 1.5}).activations == 3 * 4 * 1.5 * 2 * 10 * 24
    assert estimate(run, work={"BTF": 2, "BHTS": 1}).activations == 4 * (2 * 2 * 10 * 40 + 2 * 6 * 10 * 10)
    assert estimate(run, activations={"BTN": 1, "BTQ": 1, "R": 1}).activations == 3 * 4 * (20 * 8 + 20 * 24 + 16)
    assert estimate(run, logits=3).logits == 4 * 3 * 2 * 10 * 1000


@pytest.mark.parametrize(("vocab_size", "parts"), [(1024, 4), (1000, 125), (1008, 63), (1001, 0), (1004, 0)])
def test_slices_are_of_what_divides_a_linear_and_the_slice(vocab_size: int, parts: int) -> None:
    """D 24, F 40 in slices of 256, 8 rows at least: only the MLP's 40 = 5 * 8 and the widths 24 = 3 * 8 and 8 go in parts."""
    run = {"exec__batch_size": 2, "exec__seq_len": 10}
    model = llama(vocab_size=vocab_size)
    slices = {"size": 256, "smallest": 8, "head": 2, "linears": 0.5}
    cut, whole = estimate(run, model=model, slices=slices), estimate(run, model=model)
    assert cut.logits - whole.logits == 2 * 4 * 20 * 24 * parts
    attention = 24 * 3 + 2 * 24 * 1 + 24 * 3
    assert cut.activations - whole.activations == 0.5 * 4 * 20 * (attention + 2 * 24 * 5 + 40 * 3)


def test_the_peak_is_that_of_opening_or_that_of_the_run() -> None:
    opening = estimate(loading=10)
    assert opening.total == opening.weights + 10 * 4 * (LINEARS + OTHERS)
    running = estimate(loading=10, process=7, logits=100)
    assert running.loading == 0
    assert running.total == 7 + running.weights + 2 * running.adapter + running.optimizer + running.logits


def test_the_residue_is_of_linears_that_became_nf4() -> None:
    assert estimate(residue=0.5).residue == 0
    assert estimate(base="nf4", residue=0.5).residue == 2 * LINEARS


GROWS = ["exec__batch_size", "exec__seq_len", "adapter__rank"]


@given(field=st.sampled_from(GROWS), low=st.integers(2, 500), more=st.integers(1, 500), base=st.sampled_from(["none", "nf4"]))
def test_more_of_anything_takes_no_less(field: str, low: int, more: int, base: str) -> None:
    coefficients: dict[str, Any] = {"activations": {"BTD": 2, "BHTS": 1}, "logits": 2, "loading": 1, "residue": 0.3}
    before = estimate({field: low}, base=base, **coefficients)
    after = estimate({field: low + more}, base=base, **coefficients)
    assert after.total >= before.total
    assert sum(after.shares().values()) == after.total


@pytest.mark.parametrize("wrong", [{"activations": {"BX": 1}}, {"logits": -1}, {"loading": float("inf")}, {"source": ""}], ids=str)
def test_a_wrong_declaration_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        declared(**wrong)


@pytest.mark.parametrize("name", ["torch_qlora", "tinygrad_lora"])
def test_each_stack_declares_what_it_holds_on_the_cpu(name: str) -> None:
    found = declared_memory(discover.installed()[name].capabilities, "CPU")
    assert found is not None
    assert found.source == "benchmarks/memory.py"
    assert found.process > 0
    assert found.logits > 0
    assert found.activations or found.work
    assert declared_memory(discover.installed()[name].capabilities, "WEBGPU") is None


# What depends on the stack's paths


def test_bfloat16_holds_weights_in_two_bytes() -> None:
    assert estimate(dtype="bfloat16").weights == 2 * (LINEARS + OTHERS)
    wide, narrow = (estimate(base="nf4", dtype=dtype).weights for dtype in ("float32", "bfloat16"))
    assert wide - narrow == 2 * OTHERS


def test_a_copy_of_the_head_s_weight_is_held_while_it_is_multiplied() -> None:
    run = {"exec__batch_size": 2, "exec__seq_len": 10}
    model = llama()
    more = estimate(run, panels=1.5).logits - estimate(run).logits
    assert more == 4 * 1.5 * model.vocab_size * model.hidden_size


@pytest.mark.parametrize(("chunk", "held"), [(None, 20_000), (10**9, 20_000), (3_000, 3_000), (7, 1_000)])
def test_of_chunked_logits_a_chunk_is_held_and_a_row_at_least(chunk: int | None, held: int) -> None:
    run = {"exec__batch_size": 2, "exec__seq_len": 10}
    assert estimate(run, logits=3, chunk=chunk).logits == 4 * 3 * held


def test_blocks_are_computed_again_where_the_run_does_not_fit() -> None:
    """All layers' activations become one layer's, beside each layer's input."""
    run, model = contract(exec__batch_size=2, exec__seq_len=10), llama()
    given = declared(activations={"BTD": 5, "BTF": 4}, work={"BTF": 1}, recomputes=True)
    usual = memory.estimate(model, run, given)
    again = usual.total - usual.activations + 4 * 20 * (3 * 24 + 5 * 24 + 5 * 40)
    assert memory.fitting(model, run, given, None) == memory.fitting(model, run, given, usual.total) == (usual, False)
    tight, recomputed = memory.fitting(model, run, given, usual.total - 1)
    assert (tight.total, recomputed) == (again, True)
    without = given.model_copy(update={"recomputes": False})
    assert memory.fitting(model, run, without, usual.total - 1) == (usual, False)


def test_a_declaration_is_of_one_dtype() -> None:
    found = discover.installed()["torch_qlora"].capabilities
    wide, narrow = declared_memory(found, "CPU"), declared_memory(found, "CPU", "bfloat16")
    assert wide is not None
    assert narrow is not None
    assert (wide.dtype, narrow.dtype) == ("float32", "bfloat16")
    assert narrow.activations["BTF"] < wide.activations["BTF"]
