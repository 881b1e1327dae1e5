"""The in-memory merge against the file's definition (contract/artifacts/delta.py), and the requests merge and save, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.artifacts import v3
from contract.artifacts.adapter import Adapter, Place, Quant
from contract.artifacts.delta import Delta, merged_tiles
from contract.artifacts.merge import merge
from contract.model.checkpoint import load, open_checkpoint
from contract.worker import graph as requests
from contract.worker.plan import GraphPlan, Lora
from contract.worker.stack import NotSupported
from parity.reference import nf4
from stacks.tinygrad_lora import merge as merge_module
from stacks.tinygrad_lora import ops
from stacks.tinygrad_lora.host import to_host
from stacks.tinygrad_lora.merge import Merger
from stacks.tinygrad_lora.ops import TinygradLora
from stacks.tinygrad_lora.session import Session
from tests import proxy_formula
from tests.contract.artifacts.adapter_cases import DTYPES, GPT2, LLAMA, adapter_on, gpt2_tensors, llama_tensors, write_base

pytestmark = pytest.mark.usefixtures("cpu")

KEYS = {"plain": "model.layers.0.self_attn.q_proj.weight", "transposed": "h.0.attn.c_proj.weight"}
LINEARS = {
    "llama": ("layers.1.q_proj", "layers.0.down_proj", "layers.1.down_proj", "layers.0.up_proj"),
    "gpt2": tuple(f"layers.{layer}.{name}_proj" for layer in (0, 1) for name in ("q", "k", "v", "o", "up", "down")),
}
BASES: dict[str, tuple[Callable[[], dict[str, np.ndarray]], Any]] = {"llama": (llama_tensors, LLAMA), "gpt2": (gpt2_tensors, GPT2)}


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


MERGER = Merger()


@given(
    sizes=st.sampled_from([(1, 7), (9, 5), (6, 6)]), rank=st.sampled_from([1, 3, 16, 37]), alpha=st.floats(0.01, 100), rslora=st.booleans(),
    key=st.sampled_from(list(KEYS)), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_bits_of_a_merge_of_files(sizes: tuple[int, int], rank: int, alpha: float, rslora: bool, key: str, seed: int) -> None:
    """Ranks short of what one kernel adds, just as many, and more; a square weight, whose transpose passes for it."""
    out, in_ = sizes
    rng = np.random.default_rng(seed)
    (a, b), weight_OI = factors(rng, rank, in_, out), drawn(rng, out, in_)
    adapter = adapter_of(a, b, key, alpha=alpha, rslora=rslora)
    wanted = by_file(np.ascontiguousarray(weight_OI.T) if key == "transposed" else weight_OI, adapter)
    got = MERGER.merged(weight_OI, a, b, scale=adapter.scale("w"))
    assert got.dtype == np.float32
    assert got.tobytes() == np.ascontiguousarray(wanted.T if key == "transposed" else wanted).tobytes()


def test_a_weight_of_many_tiles_of_which_the_last_begins_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_module, "_TILE", 21)
    rng = np.random.default_rng(1)
    (a, b), weight = factors(rng, 5, 5, 10), drawn(rng, 10, 5)
    adapter = adapter_of(a, b, "plain", alpha=1.7 * 5, rslora=False)
    assert MERGER.merged(weight, a, b, scale=1.7).tobytes() == by_file(weight, adapter).tobytes()


def test_a_sum_begins_at_plus_zero() -> None:
    """B = 0 against a negative A is -0 at every rank, and -0 + -0 would keep a weight's sign that the file's definition does not."""
    weight, a, b = np.full((2, 3), -0.0, np.float32), np.full((1, 3), -1, np.float32), np.zeros((2, 1), np.float32)
    got = MERGER.merged(weight, a, b, scale=2.0)
    assert got.tobytes() == by_file(weight, adapter_of(a, b, "plain", alpha=2.0, rslora=False)).tobytes()
    assert not np.signbit(got).any()


OTHERS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]] = {
    "ranks in another order": lambda w, a, b, s: MERGER.merged(w, np.roll(a, 1, axis=0), np.roll(b, 1, axis=1), scale=s),
    "s in float32": lambda w, a, b, s: MERGER.merged(w, a, b, scale=float(np.float32(s))),
    "the sum in float32": lambda w, a, b, s: w + np.float32(s) * (b @ a),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_arithmetic_gives_other_bits(other: str) -> None:
    """What these tests can see."""
    rng = np.random.default_rng(2)
    weight, (a, b) = drawn(rng, 30, 40), factors(rng, 600, 40, 30)
    assert MERGER.merged(weight, a, b, scale=1 / 3).tobytes() != OTHERS[other](weight, a, b, 1 / 3).tobytes()


# The requests


def opened(adapter: Adapter, folder: Path, dtype: str = "float32", **more: Any) -> Session:
    """A session on a checkpoint's weights; linears of the adapter's kinds that it lacks have zeros."""
    checkpoint = open_checkpoint(folder)
    kinds = tuple(dict.fromkeys(path.rpartition(".")[2] for path in adapter.layer_order))
    lora = Lora(
        rank=adapter.rank, alpha=adapter.alpha, rslora=adapter.rslora, targets=kinds, rank_pattern=adapter.rank_pattern(),
        alpha_pattern=dict(adapter.alpha_pattern),
    )  # fmt: skip
    plan = GraphPlan.model_validate({"layout": checkpoint.layout, "dtype": dtype, "lora": lora} | more)
    own = {f"{path}.lora_{half}": matrix for path, pair in adapter.matrices.items() for half, matrix in zip("ab", pair, strict=True)}
    tensors = {name: load(checkpoint, name) for name in requests.weights(plan)}
    tensors |= {name: own.get(name, np.zeros(shape, np.float32)) for name, (shape, _) in requests.adapter(plan).items()}
    return Session(plan, tensors, device="CPU", channel=None)


def exceptional(model: str) -> Adapter:
    """Of other ranks and alphas on some linears of some layers in Llama, on the parts of the fused weight in GPT-2."""
    if model == "gpt2":
        return adapter_on(GPT2, LINEARS["gpt2"], rank=2, alpha=4.0, rslora=True, embed_key="wte.weight")
    ranks, alphas = {"layers.1.down_proj": 5}, {"layers.1.q_proj": 2.5}
    return adapter_on(LLAMA, LINEARS["llama"], ranks=ranks, alphas=alphas, rslora=True, embed_key="model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("model", "dtype", "precision"), [("llama", "BF16", "float32"), ("gpt2", "F32", "float64"), ("gpt2", "F16", "float32")]
)
def test_a_merge_in_memory_has_the_bits_of_a_merge_of_files(tmp_path: Path, model: str, dtype: str, precision: str) -> None:
    """Onto the base that the graph holds, widened; GPT-2's weights lie transposed in the file, q, k and v in one."""
    make, config = BASES[model]
    base = write_base(tmp_path / "base", {key: tensor.astype(DTYPES[dtype]) for key, tensor in make().items()}, config)
    adapter = exceptional(model)
    merge(adapter, base, tmp_path / "merged")
    filed = open_checkpoint(tmp_path / "merged")
    merged = opened(adapter, base, precision).merge(None)
    assert set(adapter.matrices) <= set(merged)
    for path, weight in merged.items():
        assert weight.tobytes() == np.ascontiguousarray(load(filed, path)).tobytes(), path


@pytest.mark.parametrize("paths", [("nf4_linear",), pytest.param((), marks=pytest.mark.nightly)], ids=["codes", "dequantised"])
def test_an_nf4_base_is_merged_onto_its_dequantised_values_and_saved_as_what_it_is(tmp_path: Path, paths: tuple[str, ...]) -> None:
    """What merge-qlora does not do: written as a checkpoint of their own, these values give the same bits."""
    base, adapter = write_base(tmp_path / "base", llama_tensors(), LLAMA), adapter_on(LLAMA, ("layers.1.q_proj",), alpha=2.5)
    key = adapter.places["layers.1.q_proj"].key
    codes = nf4.quantize(llama_tensors()[key], 32)
    value = nf4.dequantize(codes.packed, codes.absmax, 32, (24, 10))
    assert not np.array_equal(value, llama_tensors()[key])
    merge(adapter, write_base(tmp_path / "dequantised", llama_tensors() | {key: value}, LLAMA), tmp_path / "merged")
    session = opened(adapter, base, base={"block_size": 32, "double_quant": False}, sections=("layers.1",), paths=paths)
    assert session.save(tmp_path / "saved") == ()
    assert v3.read(tmp_path / "saved/adapter").quant == Quant(base_quant="nf4", double_quant=False, block_size=32)
    [merged] = session.merge(["layers.1.q_proj"]).values()
    assert merged.tobytes() == load(open_checkpoint(tmp_path / "merged"), "layers.1.q_proj").tobytes()
    assert not [name for name in session._held["layers.1"] if name.endswith((".packed", ".absmax"))]
    assert session.plan.paths == ()


def test_a_merged_graph_holds_the_merged_weights_and_has_no_adapter_left(tmp_path: Path) -> None:
    session = opened(exceptional("llama"), write_base(tmp_path / "base", llama_tensors(), LLAMA), "float64")
    held = {(section, name) for section, tensors in session._held.items() for name in tensors if not name.endswith(".scaling")}
    merged = session.merge(None)
    assert {(section, name) for section, tensors in session._held.items() for name in tensors} == held
    for path, weight in merged.items():
        section, _, name = path.rpartition(".")
        assert to_host(session._held[section][name]).tobytes() == weight.astype(np.float64).tobytes()
    assert session.plan.targets == frozenset()
    assert session.state(None) == {}
    assert session.merge(None) == {}
    with pytest.raises(
        ValueError, match="save: the open graph has no LoRA, having been merged or opened without; open one with an adapter"
    ):
        session.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.nightly
def test_a_merged_graph_is_the_merged_model(tmp_path: Path) -> None:
    base, batch = write_base(tmp_path / "base", llama_tensors(), LLAMA), {"ids": np.array([[3, 1, 11, 7]])}
    adapter = exceptional("llama")
    merge(adapter, base, tmp_path / "merged")
    session = opened(adapter, base, "float64")
    before = session.forward(["logits"], batch)["logits"]
    assert session.merge([]) == {}
    after = session.forward(["logits", "layers.0.down_proj"], batch)["logits"]
    other = opened(adapter, tmp_path / "merged", "float64", lora=Lora(rank=1, alpha=1.0, targets=()))
    assert after.tobytes() == other.forward(["logits"], batch)["logits"].tobytes() != before.tobytes()


def test_a_merge_is_refused_for_a_linear_without_lora_in_bfloat16_and_of_what_is_not_finite(tmp_path: Path) -> None:
    """And the graph stays as it was."""
    adapter = exceptional("llama")
    session = opened(adapter, write_base(tmp_path / "base", llama_tensors(), LLAMA))
    with pytest.raises(ValueError, match=r"merge: 'layers\.0\.o_proj' has no LoRA; allowed: layers\.0\.q_proj"):
        session.merge(["layers.0.o_proj"])
    session.plan = session.plan.model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(NotSupported, match="merges into graphs in float32 and float64, not in bfloat16"):
        session.merge(None)
    session.plan = session.plan.model_copy(update={"dtype": "float32"})
    state = session.state(None)
    session.state(state | {"layers.1.q_proj.lora_a": np.full_like(state["layers.1.q_proj.lora_a"], 3e38)})
    with pytest.raises(ValueError, match=r"layers.1.q_proj: merge: a value is NaN or infinite once it is merged; allowed are finite ones"):
        session.merge(None)
    assert session.state(None)
    session.state(state)
    assert session.merge(None)


def test_beside_another_device_the_cpu_is_opened_for_it(cpu: TinygradLora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WebGPU and Metal have no float64. On the CPU it is open."""
    beside: list[str] = []
    monkeypatch.setattr(ops, "open_beside", beside.append)
    monkeypatch.setattr(cpu, "_name", "g")
    for device in ("WEBGPU", "CPU"):
        session = opened(adapter_on(LLAMA, ("layers.1.q_proj",)), write_base(tmp_path / device, llama_tensors(), LLAMA))
        monkeypatch.setattr(cpu, "_session", session)
        monkeypatch.setattr(cpu, "_device", device)
        assert list(cpu.merge("g", ["layers.1.q_proj"]).tensors) == ["layers.1.q_proj"]
    assert beside == ["CPU"]


def test_a_base_that_float32_does_not_hold_is_refused(tmp_path: Path) -> None:
    session = opened(exceptional("llama"), write_base(tmp_path / "base", llama_tensors(), LLAMA), "float64")
    weight = session._held["layers.1"]["q_proj"]
    session._held["layers.1"]["q_proj"] = (weight + 2.0**-40).contiguous().realize()
    with pytest.raises(ValueError, match="the base has values that float32 does not hold; open the graph with weights in float32"):
        session.merge(None)


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_saved_adapter_is_the_one_that_was_open(tmp_path: Path, model: str) -> None:
    make, config = BASES[model]
    base, own = write_base(tmp_path / "base", make(), config), exceptional(model)
    session = opened(own, base)
    assert session.save(tmp_path / "saved") == ()
    saved = v3.read(tmp_path / "saved/adapter")
    assert {path for path in saved.matrices if saved.matrices[path][1].any()} == set(own.matrices)
    for path, (a, b) in own.matrices.items():
        assert saved.matrices[path][0].tobytes() == a.tobytes()
        assert saved.matrices[path][1].tobytes() == b.tobytes()
        assert (saved.places[path], saved.scale(path)) == (own.places[path], own.scale(path))
    assert saved.quant == Quant(base_quant="none")


def test_the_proxy_graph_is_merged_and_saved(tmp_path: Path) -> None:
    """Its middle blocks go by mid0 .. in the files, and its head is the embedding."""
    plan = proxy_formula.plan(base=None)
    tensors = proxy_formula.tensors_of(plan)
    session = Session(plan, tensors, device="CPU", channel=None)
    assert session.save(tmp_path) == ()
    saved = v3.read(tmp_path / "adapter")
    assert saved.layer_order == ("mid0", "mid1", "mid2", "mid3", "lm_head")
    assert saved.places["lm_head"].key == "model.embed_tokens.weight"
    merged = session.merge(None)
    assert set(merged) == {"lm_head", *(f"layers.{layer}.o_proj" for layer in range(4))}
    for path, weight in merged.items():
        a, b = tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"]
        base = tensors["embedding" if path == "lm_head" else path]
        scale = plan.lora.scaling_of(path)
        adapter = adapter_of(a, b, "plain", alpha=scale * a.shape[0], rslora=False)
        assert adapter.scale("w") == scale
        assert weight.tobytes() == by_file(base, adapter).tobytes()
        section = path.removesuffix(".o_proj") if path != "lm_head" else "head"
        assert to_host(session._held[section][path.rpartition(".")[2]]).tobytes() == weight.astype(plan.dtype).tobytes()
