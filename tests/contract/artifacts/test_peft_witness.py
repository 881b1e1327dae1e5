"""PEFT and transformers as witnesses: a converted adapter, loaded by PEFT itself, gives our logits; a merged model, loaded by
transformers, gives the adapter's.

Logits in float64. The oracle's response to perturbation at u = 2^-53 (parity/judge/perturb.py) is the limit where it has the graph.
transformers' norm and rotary compute in float32 even then, and are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from contract.artifacts import peft, v2, v3
from contract.artifacts.adapter import Adapter
from contract.artifacts.convert import convert
from contract.artifacts.merge import merge
from contract.artifacts.names import places
from contract.model import keymap
from contract.worker.plan import Lora
from parity.judge.confidence import per_comparison
from parity.judge.perturb import respond, row_limits
from tests.contract.artifacts.adapter_cases import DTYPES, GPT2, adapter_on, gpt2_tensors, merged_tensors, write_base
from tests.float64_transformers import clean
from tests.parity.reference import plain_cases
from tests.parity.reference.plain_cases import Case

RUNS = 30

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def case(seed: int, **how: Any) -> Case:
    """transformers takes no hidden_size that is no multiple of the heads."""
    return plain_cases.case(seed, **({"hidden_size": 24} | how))


def config_of(it: Case) -> dict[str, Any]:
    return LlamaConfig(**it.plan.layout.model_dump(exclude={"model_type"}), pad_token_id=None).to_dict()


def base_of(it: Case, folder: Path, dtype: str = "F32") -> Path:
    """The case's weights as a checkpoint."""
    return write_base(folder, {keymap.hugging_face_key(name): it.astype(DTYPES[dtype]) for name, it in it.weights.items()}, config_of(it))


def adapter_of(it: Case, **more: Any) -> Adapter:
    linears = sorted({name.rpartition(".lora_")[0] for name in it.adapter})
    matrices = {logical: (it.adapter[f"{logical}.lora_a"], it.adapter[f"{logical}.lora_b"]) for logical in linears}
    layout, lora = it.plan.layout, it.plan.lora
    facts = {"vocab": layout.vocab_size, "d_model": layout.hidden_size, "embed_key": "model.embed_tokens.weight", "graph": "full_causal"}
    return Adapter(
        **({
            "matrices": matrices, "places": places(layout, linears), "layer_order": tuple(linears), "rank": lora.rank, "alpha": lora.alpha,
            "rslora": lora.rslora,
        } | facts | more)
    )  # fmt: skip


def peft_logits(base: Path, adapter: Path, ids: np.ndarray) -> np.ndarray:
    """PEFT's own loading of a folder, onto transformers' own loading of the base, in float64."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)).double().eval()
    with torch.no_grad(), clean():
        logits: np.ndarray = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    assert logits.dtype == np.float64
    return logits


def worst(it: Case, logits: np.ndarray) -> float:
    """The largest error of a row over its limit."""
    trace, response = respond(
        it.plan, it.weights.__getitem__, it.adapter, it.batch, runs=RUNS, seed=1, ulp=1.0, keep=lambda name: name == "logits"
    )
    error = np.linalg.norm(logits - trace.taps["logits"], axis=-1)
    limits = row_limits(response.rows["logits"], dtype="float64", runs=RUNS, false_alarm=per_comparison(error.size), sides=2)
    return float((error / limits).max())


CASES: dict[str, dict[str, Any]] = {
    "all_linears": {},
    "rslora": {"lora": Lora(rank=5, alpha=3.0, rslora=True, targets=("q_proj", "v_proj", "down_proj"))},
    "tied": {"tied": True, "bias": False},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("through", ["v2", "v3"])
def test_peft_loads_a_converted_adapter_and_gives_our_logits(tmp_path: Path, name: str, through: str) -> None:
    it = case(3, **CASES[name])
    {"v2": v2.write, "v3": v3.write}[through](tmp_path / "ours", adapter_of(it))
    convert(tmp_path / "ours", tmp_path / "theirs", "peft")
    logits = peft_logits(base_of(it, tmp_path / "base"), tmp_path / "theirs", it.ids)
    assert worst(it, logits) < 1
    without = Case(**(vars(it) | {"adapter": {name: np.zeros_like(matrix) for name, matrix in it.adapter.items()}}))
    assert worst(without, logits) > 1e9  # the adapter is what is seen


def test_ranks_and_alphas_of_single_linears_reach_peft(tmp_path: Path) -> None:
    """The oracle has one scale: rank 2 and alpha 8, s = 4, is rank 3 with a row of zeros and twice B, s = 2, exactly."""
    it = case(4, lora=Lora(rank=3, alpha=6.0))
    logical = "layers.1.up_proj"
    a, b = it.adapter[f"{logical}.lora_a"].copy(), it.adapter[f"{logical}.lora_b"].copy()
    a[2] = 0
    it.adapter.update({f"{logical}.lora_a": a, f"{logical}.lora_b": b})
    own = adapter_of(it)
    narrow = (np.ascontiguousarray(a[:2]), np.ascontiguousarray(b[:, :2]) / np.float32(2))
    own = Adapter(**(vars(own) | {"matrices": own.matrices | {logical: narrow}, "alpha_pattern": {logical: 8.0}}))
    peft.write(tmp_path / "theirs", own)
    assert worst(it, peft_logits(base_of(it, tmp_path / "base"), tmp_path / "theirs", it.ids)) < 1


SPOILT: dict[str, Callable[[Adapter], dict[str, Any]]] = {
    "alpha for alpha / rank": lambda adapter: {"alpha": adapter.alpha * adapter.rank},
    "no scale": lambda adapter: {"alpha": float(adapter.rank)},
    "rslora turned": lambda adapter: {"rslora": not adapter.rslora},
    "alpha off by 1e-9": lambda adapter: {"alpha": adapter.alpha * (1 + 1e-9)},
    "the sign of B": lambda adapter: {"matrices": {name: (a, -b) for name, (a, b) in adapter.matrices.items()}},
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_wrong_scale_or_sign_is_far_outside(tmp_path: Path, name: str) -> None:
    """Catalogue: lora-alpha-not-divided-by-r, lora-args-swallowed, rslora-scale-applied-twice, negative-adapter-weight-combination."""
    it = case(3)
    adapter = adapter_of(it)
    peft.write(tmp_path / "theirs", Adapter(**(vars(adapter) | SPOILT[name](adapter))))
    assert worst(it, peft_logits(base_of(it, tmp_path / "base"), tmp_path / "theirs", it.ids)) > 1e3


def jacobian_bound(model: torch.nn.Module, keys: list[str], ids: torch.Tensor) -> torch.Tensor:
    """What the rounding of W' can change each logit by, to first order: the sum of |d logit / d W'_ij| 2^-24 |W'_ij|."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    merged = {key: parameters[key] for key in keys}

    def logits(changed: dict[str, torch.Tensor]) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(model, parameters | changed, kwargs={"input_ids": ids, "use_cache": False}).logits
        return out

    derivative = torch.func.jacrev(logits)(merged)
    return sum((derivative[key].abs() * merged[key].abs() * 2.0**-24).sum((-2, -1)) for key in keys)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_model_is_the_adapter_s_forward_but_for_the_rounding_of_its_weights(tmp_path: Path, dtype: str) -> None:
    """Catalogue: merge-forgets-scale, rslora-ignored-in-merge. Loaded by transformers from what config.json says, in float32 as it must."""
    it = case(5, batch=1, tokens=4, layers=1, vocab_size=9, lora=Lora(rank=5, alpha=3.0, rslora=True))
    base, ids = base_of(it, tmp_path / "base", dtype), torch.from_numpy(it.ids % 9)
    adapter = adapter_of(it)
    peft.write(tmp_path / "theirs", adapter)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[dtype]}))
    merge(adapter, base, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    for key, tensor in merged_tensors(tmp_path / "merged").items():
        assert torch.equal(merged.state_dict()[key], torch.from_numpy(tensor.astype(np.float32))), key
    with clean():
        with torch.no_grad():
            got = merged.double()(input_ids=ids).logits
            plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).double()(input_ids=ids).logits
        wanted = torch.from_numpy(peft_logits(base, tmp_path / "theirs", it.ids % 9))
        keys = [place.key for place in adapter.places.values()]
        bound = jacobian_bound(merged, keys, ids)
    error, effect = (got - wanted).abs(), (wanted - plain).abs()
    assert (error <= bound).all()
    assert (error > 0).any()
    assert bound.max() < 2.0**-10 * effect.max()  # so that an error of a thousandth of the delta could not hide


def test_gpt2_s_fused_and_transposed_weights_as_peft_takes_them(tmp_path: Path) -> None:
    """q, k, v and the square c_proj: PEFT on the converted folder against transformers on weights that were merged in float64.

    How far two right answers may lie apart is measured as in tests/stacks/torch_qlora/test_torch_witness.py: float32's own error,
    times 2^-29, thrice.
    """
    linears = tuple(f"layers.{n}.{name}" for n in (0, 1) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
    adapter, tensors = adapter_on(GPT2, linears, rank=2, alpha=3.0), gpt2_tensors(prefix="transformer.")
    lost = peft.write(tmp_path / "theirs", adapter)
    assert any("base_offset: 6 parts" in line for line in lost)
    model = GPT2LMHeadModel(GPT2Config(**{name: value for name, value in GPT2.items() if name != "model_type"})).eval()
    model.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in tensors.items()}, strict=False)
    model.tie_weights()
    ids = torch.tensor([[3, 1, 12, 0, 5], [2, 2, 7, 11, 4]])
    exact = {key: tensor.astype(np.float64) for key, tensor in tensors.items()}
    for logical, (a, b) in adapter.matrices.items():
        place = adapter.places[logical]
        columns = slice(place.offset, None if place.offset is None else place.offset + len(b))
        exact[f"transformer.{place.key}"][:, columns] += adapter.scale(logical) * (b.astype(np.float64) @ a.astype(np.float64)).T
    with torch.no_grad():
        base = model.double()(input_ids=ids).logits.clone()
        model.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in exact.items()}, strict=False)
        wanted = model(input_ids=ids).logits.clone()
        narrow = model.float()(input_ids=ids).logits.clone()
        model.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in tensors.items()}, strict=False)
        got = PeftModel.from_pretrained(model, str(tmp_path / "theirs")).double().eval()(input_ids=ids).logits
    assert (got - wanted).abs().max() <= 3 * 2.0**-29 * (narrow - wanted).abs().max()
    assert (base - wanted).abs().max() > 0.1 * wanted.abs().max()


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_transformers_loads_a_merged_gpt2_with_a_head_of_its_own(tmp_path: Path, prefix: str) -> None:
    """Keys without the prefix beside lm_head.weight are what an untied head gives there."""
    adapter = adapter_on(GPT2, ("layers.0.o_proj", "lm_head"), embed_key="wte.weight")
    base = write_base(tmp_path / "base", gpt2_tensors(prefix=prefix), GPT2)
    merge(adapter, base, tmp_path / "merged")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tensors = merged_tensors(tmp_path / "merged")
    assert torch.equal(model.lm_head.weight, torch.from_numpy(tensors["lm_head.weight"]))
    assert torch.equal(model.transformer.wte.weight, torch.from_numpy(tensors[f"{prefix}wte.weight"]))
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)


def test_a_head_that_was_tied_is_loaded_as_one_of_its_own_by_llama_too(tmp_path: Path) -> None:
    it = case(3, tied=True, bias=False)
    own = adapter_of(it)
    head = (np.ones((3, 24), np.float32), np.ones((37, 3), np.float32))  # s B A is 7 everywhere
    adapter = Adapter(
        **(vars(own) | {"matrices": {"lm_head": head}, "places": places(it.plan.layout, ("lm_head",)), "layer_order": ("lm_head",)})
    )
    merge(adapter, base_of(it, tmp_path / "base"), tmp_path / "merged")
    model, info = LlamaForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(model.lm_head.weight, (model.model.embed_tokens.weight.double() + 7).float())
