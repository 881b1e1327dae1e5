"""What a stack is to open where a request names a model and an adapter by their files: the checkpoint, the adapter and a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contract.artifacts.adapter import Adapter
from contract.artifacts.by_path import by_path, require_causal
from contract.artifacts.convert import read_source
from contract.artifacts.merge_plan import open_base, plan
from contract.model.checkpoint import Checkpoint, locate
from contract.run.spec import QuantSpec
from contract.worker.generation import Opens
from contract.worker.plan import GraphPlan, Lora, Nf4


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a request names.

    adapter: by the graph's paths; of the kinds of linears that the plan's LoRA has, not every layer need have one there.
    notes: how it was put together, where the request leaves that to the adapter's file.
    """

    checkpoint: Checkpoint
    adapter: Adapter | None
    plan: GraphPlan
    notes: tuple[str, ...]


def named(request: Opens) -> Named:
    """Opens the files that a request names, and holds the adapter against the model.

    Raises:
        ContractError, ContractErrors, MissingError: a file is missing or not sound, the adapter is not the model's, or it has LoRA where
            a full causal graph has none.
    """
    checkpoint = locate(request.model)
    adapter = None if request.adapter is None else _adapter(Path(request.adapter), checkpoint)
    base, notes = _base(request, adapter)
    settled = GraphPlan(layout=checkpoint.layout, dtype=request.dtype, lora=_lora(adapter), base=base)
    return Named(checkpoint=checkpoint, adapter=adapter, plan=settled, notes=notes)


def _adapter(path: Path, checkpoint: Checkpoint) -> Adapter:
    """An adapter of any format, or a training checkpoint's, by the graph's paths."""
    adapter = read_source(path).adapter
    plan(adapter, open_base(checkpoint.path))  # every linear has its weight there
    return require_causal(by_path(adapter, checkpoint.layout), str(path))


def _base(request: Opens, adapter: Adapter | None) -> tuple[Nf4 | None, tuple[str, ...]]:
    """How the base is held: as the request says, else as the adapter was trained."""
    trained = None if adapter is None else adapter.quant
    wanted = request.base or ("none" if trained is None else trained.base_quant)
    notes = []
    if adapter is not None and trained is None and request.base is None:
        notes.append("the adapter does not say how its base was held in training: the base is plain; --base nf4 if it was NF4")
    if trained is not None and wanted != trained.base_quant:
        notes.append(f"the adapter was trained on base {trained.base_quant}: on base {wanted} it is another model")
    if wanted == "none":
        return None, tuple(notes)
    usual = QuantSpec()
    block_size = usual.block_size if trained is None or trained.block_size is None else trained.block_size
    double_quant = usual.double_quant if trained is None or trained.double_quant is None else trained.double_quant
    if adapter is not None and (trained is None or None in (trained.block_size, trained.double_quant)):
        taken = f"block_size {block_size}, double_quant {str(double_quant).lower()}"
        notes.append(f"the adapter does not say all of how an NF4 base was made: {taken} are taken")
    return Nf4(block_size=block_size, double_quant=double_quant), tuple(notes)


def _lora(adapter: Adapter | None) -> Lora:
    if adapter is None:
        return Lora(rank=1, alpha=1.0, targets=())
    kinds = dict.fromkeys(path.rpartition(".")[2] for path in adapter.layer_order)
    return Lora(
        rank=adapter.rank, alpha=adapter.alpha, rslora=adapter.rslora, targets=tuple(kinds), rank_pattern=adapter.rank_pattern(),
        alpha_pattern=dict(adapter.alpha_pattern),
    )  # fmt: skip
