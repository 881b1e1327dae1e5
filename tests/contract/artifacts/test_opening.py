"""What a request names by files: one plan and one adapter for every format; how the base is to be held; refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.artifacts import peft, training_checkpoint, v2, v3
from contract.artifacts.adapter import Quant
from contract.artifacts.adapter_fields import tensors_of
from contract.artifacts.opening import Named, named
from contract.errors import ContractError
from contract.worker.generation import Generation
from tests.contract.artifacts.adapter_cases import LLAMA, adapter_on, checkpoint_of
from tests.contract.artifacts.filed_adapters import LINEARS, adapter_of, base_of


def opened(model: Path, adapter: Path | None = None, **more: Any) -> Named:
    values = {"model": str(model), "adapter": None if adapter is None else str(adapter), "prompts": ((1,),), "max_new_tokens": 1}
    return named(Generation.model_validate(values | more))


def added(found: Named) -> dict[str, tuple[bytes, float]]:
    """What an adapter adds, linear by linear: B times A's bytes, and the plan's scale."""
    assert found.adapter is not None
    return {
        path: (b"".join(matrix.tobytes() for matrix in pair), found.plan.lora.scaling_of(path))
        for path, pair in found.adapter.matrices.items()
    }


@pytest.mark.parametrize("model", LINEARS)
def test_each_format_is_the_same_adapter(tmp_path: Path, model: str) -> None:
    base, adapter = base_of(tmp_path, model), adapter_of(model)
    v2.write(tmp_path / "v2", adapter)
    v3.write(tmp_path / "v3", adapter)
    training_checkpoint.write(tmp_path / "checkpoint", checkpoint_of(adapter))
    expected = {path: (b"".join(matrix.tobytes() for matrix in pair), adapter.scale(path)) for path, pair in adapter.matrices.items()}
    for name in ("v2", "v3", "checkpoint"):
        assert added(opened(base, tmp_path / name)) == expected, name
    peft.write(tmp_path / "peft", adapter)
    fused = opened(base, tmp_path / "peft")
    assert fused.adapter is not None
    assert set(fused.adapter.matrices) == set(adapter.matrices)
    assert model == "gpt2" or added(fused) == expected  # of GPT-2's c_attn the parts come with the ranks of all
    assert {name.rpartition(".")[0] for name in tensors_of(fused.adapter)} == set(adapter.matrices)
    assert fused.plan.targets == {path.rpartition(".")[2] for path in adapter.matrices}


def test_without_an_adapter_nothing_has_lora(tmp_path: Path) -> None:
    found = opened(base_of(tmp_path), dtype="float64")
    assert (found.adapter, found.plan.targets, found.plan.base, found.notes, found.plan.dtype) == (None, frozenset(), None, (), "float64")


QUANT = Quant(base_quant="nf4", double_quant=False, block_size=32)
BASES: dict[str, tuple[Quant | None, str | None, tuple[int, bool] | None, str]] = {
    "as it was trained": (QUANT, None, (32, False), ""),
    "as it was trained, plain": (Quant(base_quant="none"), None, None, ""),
    "the usual where the file does not say": (
        Quant(base_quant="nf4"), None, (64, True), "NF4 base was made: block_size 64, double_quant true",
    ),
    "not known": (None, None, None, "does not say how its base was held"),
    "not known, and asked for": (None, "nf4", (64, True), "NF4 base was made: block_size 64, double_quant true are taken"),
    "asked for otherwise": (QUANT, "none", None, "was trained on base nf4: on base none it is another model"),
    "asked for otherwise, nf4": (Quant(base_quant="none"), "nf4", (64, True), "was trained on base none: on base nf4"),
}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_the_base_is_held_as_it_was_in_training_or_as_it_is_asked_for(tmp_path: Path, name: str) -> None:
    quant, asked, wanted, note = BASES[name]
    v3.write(tmp_path / "v3", adapter_of(quant=quant))
    found = opened(base_of(tmp_path), tmp_path / "v3", base=asked)
    base = found.plan.base
    assert (None if base is None else (base.block_size, base.double_quant)) == wanted
    assert bool(found.notes) == bool(note)
    assert note in "".join(found.notes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"graph": "qlora_proxy_v1"}, "got an adapter of the proxy graph qlora_proxy_v1; allowed: one that was trained on full_causal"),
        ({"vocab": 15}, "adapter: vocab: got 15; allowed: 14"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    v3.write(tmp_path / "v3", replace(adapter_of(), **changed))
    with pytest.raises(ContractError, match=message):
        opened(base_of(tmp_path), tmp_path / "v3")


def test_lora_on_the_head_is_refused(tmp_path: Path) -> None:
    v3.write(tmp_path / "v3", adapter_on(LLAMA, ("lm_head",), embed_key="model.embed_tokens.weight"))
    with pytest.raises(ContractError, match="got LoRA on lm_head; allowed: LoRA on linears of blocks; merge it with finetune merge-qlora"):
        opened(base_of(tmp_path), tmp_path / "v3")
