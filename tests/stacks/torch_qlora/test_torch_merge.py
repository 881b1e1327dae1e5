"""The in-memory merge against the file's definition (contract/artifacts/delta.py), bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contract.artifacts.adapter import Adapter, Place
from contract.artifacts.delta import Delta, merged_tiles
from contract.worker.plan import Lora
from stacks.torch_qlora import lora, merge
from stacks.torch_qlora.linear import FrozenLinear

KEYS = {"plain": "model.layers.0.self_attn.q_proj.weight", "transposed": "h.0.attn.c_proj.weight"}
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NUMPY = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def drawn(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers over many binades, so that sums round."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-12, 6, shape)).astype(np.float32)


def factors(rng: np.random.Generator, rank: int, in_: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B whose last rank undoes the first one, which is larger by 2^40: what lies between is rounded to its units."""
    a, b = drawn(rng, rank, in_), drawn(rng, out, rank)
    a[0] *= np.float32(2.0**40)
    a[-1], b[:, -1] = -a[0], b[:, 0]
    return a, b


def adapter_of(a: np.ndarray, b: np.ndarray, key: str, *, alpha: float, rslora: bool) -> Adapter:
    return Adapter(
        matrices={"w": (a, b)}, places={"w": Place(key=KEYS[key])}, layer_order=("w",), rank=a.shape[0], alpha=alpha, rslora=rslora
    )


def by_file(weight: np.ndarray, adapter: Adapter) -> np.ndarray:
    """The file's definition on the weight as a checkpoint has it."""
    ((_, after),) = merged_tiles(iter([weight]), [Delta(adapter=adapter, logical="w", row=0, column=0)], place="w")
    return after


@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9)), alpha=st.floats(0.01, 100), rslora=st.booleans(),
    dtype=st.sampled_from(list(TORCH)), key=st.sampled_from(list(KEYS)), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_bits_of_a_merge_of_files(sizes: tuple[int, int, int], alpha: float, rslora: bool, dtype: str, key: str, seed: int) -> None:
    out, in_, rank = sizes
    rng = np.random.default_rng(seed)
    (a, b), weight_OI = factors(rng, rank, in_, out), drawn(rng, out, in_).astype(NUMPY[dtype])
    adapter = adapter_of(a, b, key, alpha=alpha, rslora=rslora)
    stored = weight_OI.T if key == "transposed" else weight_OI
    wanted = by_file(np.ascontiguousarray(stored), adapter)
    held = torch.from_numpy(weight_OI.astype(np.float32)).to(TORCH[dtype])
    got = merge.merged(held, torch.from_numpy(a), torch.from_numpy(b), scale=adapter.scale("w")).numpy()
    assert got.dtype == np.float32
    assert got.tobytes() == np.ascontiguousarray(wanted.T if key == "transposed" else wanted).tobytes()


def test_a_weight_of_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_TILE", 70)
    rng = np.random.default_rng(1)
    (a, b), weight = factors(rng, 5, 30, 41), drawn(rng, 41, 30)
    got = merge.merged(*map(torch.from_numpy, (weight, a, b)), scale=1.7).numpy()
    adapter = adapter_of(a, b, "plain", alpha=1.7 * 5, rslora=False)
    assert adapter.scale("w") == 1.7
    assert got.tobytes() == by_file(weight, adapter).tobytes()


OTHERS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "a matrix product": lambda w, a, b, s: (w.double() + s * (b.double() @ a.double())).float(),
    "ranks in another order": lambda w, a, b, s: merge.merged(w, a.roll(1, 0), b.roll(1, 1), scale=s),
    "s in float32": lambda w, a, b, s: merge.merged(w, a, b, scale=float(np.float32(s))),
    "s times B first": lambda w, a, b, s: (w.double() + sum((s * b.double())[:, r, None] * a.double()[r] for r in range(len(a)))).float(),
    "the sum in float32": lambda w, a, b, s: w + s * (b @ a),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_arithmetic_gives_other_bits(other: str) -> None:
    """What these tests can see."""
    rng = np.random.default_rng(2)
    matrices = [torch.from_numpy(matrix) for matrix in (drawn(rng, 30, 40), *factors(rng, 600, 40, 30))]
    assert not torch.equal(merge.merged(*matrices, scale=1 / 3), OTHERS[other](*matrices, 1 / 3))


def model_of(rng: np.random.Generator, plan: Lora, dtype: torch.dtype) -> tuple[torch.nn.ModuleDict, dict[str, np.ndarray]]:
    model = torch.nn.ModuleDict({"q_proj": FrozenLinear(torch.from_numpy(drawn(rng, 6, 4)).to(dtype), torch.ones(6, dtype=dtype))})
    adapter = {"q_proj.lora_a": drawn(rng, plan.rank, 4), "q_proj.lora_b": drawn(rng, 6, plan.rank)}
    lora.inject(model, plan, {name: torch.from_numpy(matrix).to(dtype) for name, matrix in adapter.items()})
    return model, adapter


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_merged_model_holds_plain_linears(dtype: torch.dtype, rslora: bool) -> None:
    """peft's scale is the file's, and the bias stays."""
    model, adapter = model_of(np.random.default_rng(3), Lora(rank=3, alpha=5.0, rslora=rslora, targets=("q_proj",)), dtype)
    weight = model["q_proj"].base_layer.weight.detach().float().numpy().copy()
    found = merge.merge_into(model, dtype)
    filed = adapter_of(adapter["q_proj.lora_a"], adapter["q_proj.lora_b"], "plain", alpha=5.0, rslora=rslora)
    assert found["q_proj"].numpy().tobytes() == by_file(weight, filed).tobytes()
    assert type(model["q_proj"]) is FrozenLinear
    assert model["q_proj"].weight.dtype == dtype
    assert torch.equal(model["q_proj"].weight.float(), found["q_proj"])
    assert torch.equal(model["q_proj"].bias, torch.ones(6, dtype=dtype))


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf, 3e38])
def test_a_merge_that_is_not_finite_is_refused_and_leaves_the_model(spoilt: float) -> None:
    model, _ = model_of(np.random.default_rng(4), Lora(rank=1, alpha=1.0, targets=("q_proj",)), torch.float32)
    module = model["q_proj"]
    with torch.no_grad():
        module.lora_A[lora.ADAPTER].weight.fill_(1)
        module.lora_B[lora.ADAPTER].weight.fill_(spoilt)
        module.base_layer.weight.fill_(3e38)
    with pytest.raises(ValueError, match="q_proj: merge: a value is NaN or infinite once it is merged; allowed are finite ones; look into"):
        merge.merge_into(model, torch.float32)
    assert model["q_proj"] is module


def test_a_base_that_float32_does_not_hold_is_refused() -> None:
    model, _ = model_of(np.random.default_rng(5), Lora(rank=1, alpha=1.0, targets=("q_proj",)), torch.float64)
    with torch.no_grad():
        model["q_proj"].base_layer.weight[2, 1] += 2.0**-40
    with pytest.raises(ValueError, match="the base has values that float32 does not hold; open the graph with weights in float32"):
        merge.merge_into(model, torch.float64)
