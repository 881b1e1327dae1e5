"""The initial adapter: golden values from the authors' Philox, PEFT's distribution, and what each matrix does not depend on.

GOLDEN was made with Random123 1.14.0 (github.com/DEShawResearch/random123, commit 9545ff6, by Philox's authors), gcc 12.2.0 and
sha256sum of GNU coreutils 9.1: for each case

    printf '%s' "$SEED $NAME" | sha256sum                  the first 16 bytes, as two little-endian words: KEY0 KEY1
    gcc -std=gnu99 -O1 -ffp-contract=off -I include golden.c -o golden -lm && ./golden KEY0 KEY1 VALUES IN

with golden.c:

    #include <math.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <Random123/philox.h>
    int main(int n, char **arg) {
        philox4x64_key_t key = {{strtoull(arg[1], 0, 16), strtoull(arg[2], 0, 16)}};
        int values = atoi(arg[3]), in = atoi(arg[4]);
        for (int i = 0; i < values; i++) {
            philox4x64_ctr_t counter = {{1 + i / 4, 0, 0, 0}};
            long k = philox4x64(counter, key).v[i % 4] >> 40;
            printf("%a%s", (float)(1 / sqrt(in)) * ((2 * k + 1 - 16777216) / 16777216.0f), i % in == in - 1 ? "\\n" : " ");
        }
    }
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contract.model import layout
from contract.model.adapter_init import initial, of_contract
from contract.model.layout import LlamaLayout
from contract.run.memory import adapter_values
from contract.run.spec import AdapterSpec
from contract.worker import graph, taps
from contract.worker.plan import GraphPlan, Lora
from contract.worker.taps import LINEARS
from parity.judge.confidence import FALSE_ALARM
from tests.contract.worker import small_plan

GOLDEN = {
    (7, "layers.1.k_proj.lora_a"): """
        -0x1.3970b4p-3 0x1.184db8p-3 -0x1.771186p-4 -0x1.331d42p-2 0x1.5788c6p-4 0x1.314274p-2
        -0x1.428fe4p-3 -0x1.7ef9fp-3 0x1.06682cp-3 0x1.259bep-2 0x1.e6f4cep-3 -0x1.3fd686p-3""",
    (-3, "layers.0.down_proj.lora_a"): """
        -0x1.52d306p-5 0x1.29f086p-2 0x1.b7222cp-3 0x1.113c58p-3 0x1.9e1524p-4
        0x1.d0f858p-4 -0x1.dd43fep-4 0x1.29e584p-2 0x1.e93f9ep-6 0x1.34ea5cp-5
        0x1.0256bp-6 0x1.92d0d6p-3 -0x1.691a8ap-3 0x1.6d0574p-3 0x1.1b7542p-2
        -0x1.ed689ep-4 0x1.3eee86p-2 -0x1.18da76p-3 -0x1.296eccp-3 0x1.669312p-7""",
}


def plan(*, rank: int = 2, targets: tuple[str, ...] = tuple(LINEARS), sections: tuple[str, ...] | None = None, width: int = 6) -> GraphPlan:
    layout = LlamaLayout(
        vocab_size=11, hidden_size=width, intermediate_size=10, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=2, max_position_embeddings=9, rms_norm_eps=1e-5, rope_theta=1e4, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=False,
    )  # fmt: skip
    return GraphPlan(layout=layout, dtype="float64", lora=Lora(rank=rank, alpha=3, targets=targets), sections=sections)


def as_bytes(adapter: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: matrix.tobytes() for name, matrix in adapter.items()}


@pytest.mark.parametrize(("seed", "name"), GOLDEN)
def test_golden(seed: int, name: str) -> None:
    golden = np.array([float.fromhex(value) for value in GOLDEN[seed, name].split()], np.float32)
    got = initial(plan(), seed)[name]
    assert got.tobytes() == golden.tobytes()
    assert got.shape == (2, golden.size // 2)


def test_every_matrix_of_the_plan_and_no_other() -> None:
    adapter = initial(plan(), 0)
    assert {name: (matrix.shape, matrix.dtype.name) for name, matrix in adapter.items()} == graph.adapter(plan())
    for name, matrix in adapter.items():
        assert name.endswith(("lora_a", "lora_b"))
        assert not matrix.any() if name.endswith("lora_b") else matrix.all()


def test_the_same_seed_gives_the_same_bits_and_another_one_other_bits() -> None:
    once, twice, other = (initial(plan(), seed) for seed in (5, 5, 6))
    assert as_bytes(once) == as_bytes(twice)
    assert all(once[name].tobytes() != other[name].tobytes() for name in once if name.endswith("lora_a"))


def test_no_two_matrices_are_alike() -> None:
    """Heads, widths and seeds whose names run together (1 and 12 ..., 11 and 2 ...) would share a stream if the key were careless."""
    drawn = [matrix[0, :6].tobytes() for seed in (1, 11, -1) for name, matrix in initial(plan(), seed).items() if name.endswith("a")]
    assert len(set(drawn)) == len(drawn) == 3 * 2 * 7


@given(
    targets=st.sets(st.sampled_from(tuple(LINEARS)), min_size=1).map(sorted).map(tuple),
    sections=st.none() | st.sets(st.sampled_from(taps.sections(2)), min_size=1).map(sorted).map(tuple),
    seed=st.integers(-(2**70), 2**70),
)
def test_a_matrix_does_not_depend_on_other_targets_or_sections(
    targets: tuple[str, ...], sections: tuple[str, ...] | None, seed: int
) -> None:
    whole, part = as_bytes(initial(plan(), seed)), initial(plan(targets=targets, sections=sections), seed)
    assert part.keys() == graph.adapter(plan(targets=targets, sections=sections)).keys()
    assert as_bytes(part).items() <= whole.items()


def test_a_larger_rank_adds_rows() -> None:
    small, large = initial(plan(rank=2), 3), initial(plan(rank=5), 3)
    for name in small:
        if name.endswith("lora_a"):
            np.testing.assert_array_equal(large[name][:2], small[name])


def peft_matrix(width: int, rank: int, init: bool | str) -> tuple[np.ndarray, np.ndarray]:
    """A and B as PEFT starts them on one linear."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(20_260)
    model = torch.nn.Sequential(torch.nn.Linear(width, 5))
    state = inject_adapter_in_model(LoraConfig(r=rank, target_modules=["0"], init_lora_weights=init), model).state_dict()
    return state["0.lora_A.default.weight"].numpy(), state["0.lora_B.default.weight"].numpy()


def ours(width: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    adapter = initial(plan(width=width, rank=rank, targets=("q_proj",)), 20_260)
    return adapter["layers.0.q_proj.lora_a"], adapter["layers.0.q_proj.lora_b"]


@pytest.mark.parametrize("width", [37, 64, 576])
def test_it_is_drawn_as_peft_draws_it(width: int) -> None:
    """Kolmogorov-Smirnov, two samples of 256 rows each; the seeds are fixed, so a right draw either passes always or never."""
    (a, b), (witness_a, witness_b) = ours(width, 256), peft_matrix(width, 256, True)
    assert (a.shape, a.dtype, b.dtype) == (witness_a.shape, witness_a.dtype, witness_b.dtype)
    assert not b.any()
    assert not witness_b.any()
    assert np.abs(a).max() <= np.float32(1 / math.sqrt(width))
    assert stats.ks_2samp(a.ravel(), witness_a.ravel()).pvalue > FALSE_ALARM
    assert stats.kstest(a.ravel() * math.sqrt(width), "uniform", args=(-1, 2)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("wrong", ["gaussian", "wider"])
def test_that_comparison_can_fail(wrong: str) -> None:
    """PEFT's other start, and a bound that is 2 % off."""
    a, _ = ours(576, 256)
    witness, _ = peft_matrix(576, 256, "gaussian" if wrong == "gaussian" else True)
    assert stats.ks_2samp(a.ravel() * (1.02 if wrong == "wider" else 1), witness.ravel()).pvalue < FALSE_ALARM


GPT2 = layout.read(
    {
        "model_type": "gpt2",
        "vocab_size": 40,
        "n_embd": 12,
        "n_layer": 2,
        "n_head": 3,
        "n_positions": 16,
        "n_inner": 20,
        "layer_norm_epsilon": 1e-3,
    }
)


def test_a_contract_and_a_plan_start_from_the_same_bits() -> None:
    plan = small_plan.plan(targets=("k_proj", "down_proj"))
    spec = AdapterSpec(rank=plan.lora.rank, alpha=plan.lora.alpha, target_modules=plan.lora.targets)
    by_plan, by_contract = initial(plan, 5), of_contract(plan.layout, spec, 5)
    assert list(by_contract) == list(by_plan)
    assert all((by_contract[name] == matrix).all() for name, matrix in by_plan.items())


def test_gpt2_has_q_k_and_v_apart() -> None:
    shapes = {name: matrix.shape for name, matrix in of_contract(GPT2, AdapterSpec(rank=5), 1).items() if name.startswith("layers.1.")}
    assert shapes == {
        **{f"layers.1.{name}.lora_a": (5, 12) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")},
        **{f"layers.1.{name}.lora_b": (12, 5) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")},
        "layers.1.up_proj.lora_b": (20, 5), "layers.1.down_proj.lora_a": (5, 20),
    }  # fmt: skip


@given(
    targets=st.lists(st.sampled_from(GPT2.linears), unique=True),
    pattern=st.dictionaries(st.sampled_from(["q_proj", "o_proj", "layers.0.q_proj", "layers.1.o_proj"]), st.integers(1, 9)),
    rank=st.integers(1, 9),
)
def test_ranks_follow_the_pattern_and_are_what_the_memory_estimate_counts(targets: list[str], pattern: dict[str, int], rank: int) -> None:
    spec = AdapterSpec(rank=rank, target_modules=tuple(targets), rank_pattern=pattern)
    matrices = of_contract(GPT2, spec, 1)
    assert {name.split(".")[2] for name in matrices} == set(targets or GPT2.linears)
    for name, matrix in matrices.items():
        linear, _, half = name.rpartition(".")
        wanted = pattern.get(linear, pattern.get(linear.split(".")[2], rank))
        assert matrix.shape[0 if half == "lora_a" else 1] == wanted
    assert sum(matrix.size for matrix in matrices.values()) == adapter_values(GPT2, spec)
