"""A plan's base weights, read one at a time and put on the device as the plan's base has them.

Shape suffixes: V vocabulary, P positions, D width, O out_features, I in_features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from tinygrad import Tensor

from contract.model import checkpoint as checkpoints
from contract.model.checkpoint import Checkpoint
from contract.worker import graph as requests
from contract.worker import taps
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD, LM_HEAD
from stacks.tinygrad_lora import nf4
from stacks.tinygrad_lora.host import rounded, to_device
from stacks.tinygrad_lora.memory import require_fits
from stacks.tinygrad_lora.replay import Replays

SMALL = 2**20
"""Bytes of a weight of which the captured kernels are kept."""
_WEIGHT, _OFFSET = "weight", "offset"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where weights come from, by their names in contract/model/weights.py.

    Attributes:
        load: a weight, float32, or a narrower dtype that widens to it.
        rows: a matrix of which rows are looked up, float32; mapped into memory, where it can be.
    """

    load: Callable[[str], np.ndarray]
    rows: Callable[[str], np.ndarray]


def of_arrays(tensors: Mapping[str, np.ndarray]) -> Source:
    """The tensors of a request: rows are copied, since a view would keep the whole request."""
    return Source(load=tensors.__getitem__, rows=lambda name: tensors[name].astype(np.float32))


def of_checkpoint(checkpoint: Checkpoint) -> Source:
    """A checkpoint's files, one weight at a time: mapped into memory where they lie as they are asked for, in float32."""
    return Source(load=partial(_mapped, checkpoint), rows=partial(_mapped, checkpoint))


class Weights:
    """The frozen weights of one plan, section by section.

    Args:
        device: tinygrad's name of it.

    Raises:
        NotSupported: one is larger than the device takes.
    """

    def __init__(self, plan: GraphPlan, source: Source, device: str) -> None:
        self._plan, self._source, self._device = plan, source, device
        uploaded = plan.model_copy(update={"sections": tuple(section for section in plan.held if section != EMBEDDING)})
        nbytes = 8 if plan.dtype == "float64" else 4
        require_fits(device, {name: nbytes * math.prod(shape) for name, (shape, _) in requests.weights(uploaded).items()})

    def embeddings(self) -> dict[str, np.ndarray]:
        """embedding [V, D], and GPT-2's position_embedding [P, D], float32 on the host, where rows are looked up exactly."""
        return {name: self._source.rows(name) for name in ("embedding", "position_embedding") if name in self._names(EMBEDDING)}

    def section(self, section: str) -> dict[str, Tensor]:
        """The weights of a block or of the head by their own names, on the device: a linear of a quantised base as its dequantised
        values, or with the path nf4_linear as NAME.packed and NAME.absmax; all else in the plan's dtype.

        Raises:
            ContractError: a checkpoint's file has changed since it was opened.
        """
        prefix = taps.prefix(section)
        held: dict[str, Tensor] = {}
        for name in self._names(section):
            own = name.removeprefix(prefix)
            own = LM_HEAD if section == HEAD and own == "embedding" else own
            if own in taps.LINEARS or (own == LM_HEAD and self._plan.graph == "qlora_proxy_v1"):
                held |= self._linear(own, self._source.load(name), prefix + own)
            elif not own.endswith(".offset"):
                held[own] = self._widened(self._source.load(name))
        return held

    def _names(self, section: str) -> list[str]:
        return list(requests.weights(self._plan.model_copy(update={"sections": (section,)})))

    def _linear(self, name: str, weight_OI: np.ndarray, path: str) -> dict[str, Tensor]:
        """A linear's weight: as it is, or through NF4, as codes where the product reads them; nested with the offset, if one is given."""
        base = self._plan.base
        if base is None:
            return {name: self._widened(weight_OI)}
        given = {_WEIGHT: weight_OI.astype(np.float32, copy=False)}
        if base.offsets_given:
            given[_OFFSET] = self._source.load(f"{path}.offset")
        sizes = {"block_size": base.block_size, "double_quant": base.double_quant}
        if "nf4_linear" in self._plan.paths:
            encoded = _replays(self._device).run(_encoded, given, **sizes)
            return {f"{name}.{part}": to_device(array, self._device) for part, array in encoded.items()}
        return {name: self._widened(_replays(self._device).run(_requantized, given, **sizes)[_WEIGHT])}

    def _widened(self, array: np.ndarray) -> Tensor:
        return to_device(rounded(array.astype(np.float32, copy=False), self._plan.dtype), self._device)


@lru_cache
def _replays(device: str) -> Replays:
    """Of steps that are kernels of their own, eleven a weight: scheduling them takes a small weight longer than computing them."""
    return Replays(device, largest=SMALL)


def _encoded(given: Mapping[str, Tensor], *, block_size: int, double_quant: bool) -> dict[str, Tensor]:
    """NF4's codes of a weight, `packed`, and what they scale, `absmax`."""
    weight_OI, offset_1 = given[_WEIGHT], given.get(_OFFSET)
    packed_P, absmax_B = nf4.encode(weight_OI, block_size=block_size, double_quant=double_quant, given_offset_1=offset_1)
    return {"packed": packed_P, "absmax": absmax_B}


def _requantized(given: Mapping[str, Tensor], *, block_size: int, double_quant: bool) -> dict[str, Tensor]:
    """The values that a weight has in NF4, float32."""
    encoded = _encoded(given, block_size=block_size, double_quant=double_quant)
    out_features, in_features = map(int, given[_WEIGHT].shape)
    sizes = {"block_size": block_size, "out_features": out_features, "in_features": in_features}
    return {_WEIGHT: nf4.dequantize(encoded["packed"], encoded["absmax"], **sizes).contiguous()}


def _mapped(checkpoint: Checkpoint, name: str) -> np.ndarray:
    mapped = checkpoints.mapped(checkpoint, name)
    return checkpoints.load(checkpoint, name) if mapped is None else mapped
