"""The open graph, and what is asked of it: state, forward, gradients, block (contract.worker.graph)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tinygrad import Tensor

from contract.worker import graph as requests
from contract.worker import taps
from contract.worker.graph import IGNORE_INDEX, ROPE_TABLES, Invalid
from contract.worker.plan import GraphPlan
from contract.worker.serve import Channel
from contract.worker.stack import NotSupported
from contract.worker.taps import EMBEDDING, HEAD
from stacks.tinygrad_lora import lora, nf4
from stacks.tinygrad_lora.graph import BAR, OVERRIDE, Sections, llama_layout, to_device
from stacks.tinygrad_lora.loss import next_tokens
from stacks.tinygrad_lora.models import llama

Arrays = Mapping[str, np.ndarray]


class Session:
    """One open graph: its weights on the device, and the functions that compute its sections.

    Args:
        plan: `plan.dtype` is one that the device has.
        tensors: the base weights and the adapter, float32, as `contract.worker.graph` names them; not kept, but for the embedding.
        channel: told of each section that is begun; None where nobody waits.

    Raises:
        Invalid: a tensor is missing, unknown, of the wrong shape or dtype, or not finite.
    """

    def __init__(self, plan: GraphPlan, tensors: Arrays, *, device: str, channel: Channel | None) -> None:
        requests.require(requests.weights(plan) | requests.adapter(plan), tensors, "open")
        self.plan, self._device, self._channel = plan, device, channel
        self._sections = Sections(plan, device)
        # rows are looked up on the host: exactly, and without a product over the vocabulary; a view would keep the whole request
        self._embedding_VD = tensors["embedding"].astype(np.float32) if EMBEDDING in plan.held else None
        s = lora.scaling(alpha=plan.lora.alpha, rank=plan.lora.rank, rslora=plan.lora.rslora)
        numbers = {**llama.scalars(llama_layout(plan)), "scaling": s}
        self._scalars = {name: to_device(np.array([value], dtype=plan.dtype), device).realize() for name, value in numbers.items()}
        self._weights = {section: self._frozen(section, tensors) for section in plan.held if section != EMBEDDING}
        self._adapter: dict[str, Tensor] = {}
        self._set_adapter(tensors)

    # Requests

    def state(self, tensors: Arrays | None) -> dict[str, np.ndarray]:
        """Sets the adapter, all of it; without tensors, answers it, float32."""
        if tensors is None:
            return {name: tensor.numpy().astype(np.float32) for name, tensor in self._adapter.items()}
        requests.require(requests.adapter(self.plan), tensors, "state")
        self._set_adapter(tensors)
        return {}

    def forward(self, wanted: Sequence[str], tensors: Arrays) -> dict[str, np.ndarray]:
        """The wanted taps, by their full names."""
        return self._graph(wanted, tensors, gradients=False)

    def gradients(self, wanted: Sequence[str], tensors: Arrays) -> dict[str, np.ndarray]:
        """As `forward`, and the loss's gradient with respect to each adapter matrix."""
        return self._graph(wanted, tensors, gradients=True)

    def block(self, section: str, tensors: Arrays) -> dict[str, np.ndarray]:
        """One section alone; what it answers is in contract.worker.graph."""
        batch, tokens = requests.require_block(self.plan, section, tensors)
        _require_unpacked(tensors)
        expected = requests.expected_block_answer(self.plan, section, tensors, batch, tokens)
        if section == EMBEDDING:
            answer = self._embed(tensors["ids"])
            # nothing follows from an override here
            answer |= {name: np.zeros(shape, dtype) for name, (shape, dtype) in expected.items() if name.startswith("grad.")}
        else:
            if "labels" in tensors:
                requests.require_batch(self.plan, np.zeros_like(tensors["labels"]), tensors["labels"])
            answer = self._section(section, tensors, wanted=expected.__contains__)
        return {name: answer[name].reshape(shape) for name, (shape, _) in expected.items()}

    # The whole graph

    def _graph(self, wanted: Sequence[str], tensors: Arrays, *, gradients: bool) -> dict[str, np.ndarray]:
        ids_BT, labels_BT = self._batch(wanted, tensors, gradients=gradients)
        expected = requests.expected_graph_answer(self.plan, wanted, *ids_BT.shape, gradients=gradients)
        ending = {} if labels_BT is None else {"labels": labels_BT}
        if gradients:
            ending[f"{BAR}loss"] = np.ones((), self.plan.dtype)
        answer = self._embed(ids_BT)
        x_BTD, inputs = answer[EMBEDDING], {}
        for section in self._needed(expected, gradients=gradients):
            inputs[section] = x_BTD
            given = {"input": x_BTD, **(ending if section == HEAD else {})}
            named = self._section(section, given, wanted={"output", "grad.input", *self._own(expected, section)}.__contains__)
            x_BTD = named.get("output", x_BTD)
            answer |= {taps.prefix(section) + name: array for name, array in named.items()}
        if gradients:
            answer |= self._backward(inputs, named["grad.input"])
        return {name: answer[name].reshape(shape) for name, (shape, _) in expected.items()}

    def _backward(self, inputs: dict[str, np.ndarray], bar_BTD: np.ndarray) -> dict[str, np.ndarray]:
        """The adapter's gradients: the blocks from the last to the first, each computed again from its input."""
        answer: dict[str, np.ndarray] = {}
        for section in reversed(inputs):
            if section != HEAD:
                given = {"input": inputs[section], f"{BAR}output": bar_BTD}
                named = self._section(section, given, wanted=lambda name: name.startswith("grad."))
                bar_BTD = named.pop("grad.input")
                answer |= {f"grad.{taps.prefix(section)}{name.removeprefix('grad.')}": array for name, array in named.items()}
        return answer

    def _batch(self, wanted: Sequence[str], tensors: Arrays, *, gradients: bool) -> tuple[np.ndarray, np.ndarray | None]:
        if self.plan.held != taps.sections(self.plan.layout.num_hidden_layers):
            raise Invalid(f"only {', '.join(self.plan.held)} are open; open the whole graph (sections: None), or ask for `block`")
        _require_unpacked(tensors)
        strange = sorted(set(tensors) - {"ids", "labels"})
        if strange or "ids" not in tensors:
            raise Invalid(f"got {', '.join(sorted(tensors)) or 'no tensors'}; give ids, and labels where the loss is wanted")
        labels_BT = tensors.get("labels")
        if labels_BT is None and (gradients or "loss" in wanted):
            raise Invalid("the loss is wanted and there are no labels; give labels, int64 [sequences, tokens]")
        requests.require_batch(self.plan, tensors["ids"], labels_BT)
        return tensors["ids"], labels_BT

    def _needed(self, expected: requests.Expected, *, gradients: bool) -> list[str]:
        """The sections after the embedding, up to the last one of which something is wanted."""
        sections = list(self.plan.held)
        while not gradients and len(sections) > 1 and not self._own(expected, sections[-1]):
            sections.pop()
        return sections[1:]

    def _own(self, expected: requests.Expected, section: str) -> set[str]:
        """The taps of a section that are wanted, by their own names."""
        prefix = taps.prefix(section)
        return {tap.name for tap in taps.section_taps(self.plan, section) if prefix + tap.name in expected}

    # One section

    def _embed(self, ids_BT: np.ndarray) -> dict[str, np.ndarray]:
        """The taps of the section `embedding`."""
        assert self._embedding_VD is not None
        cos_TE, sin_TE = llama.rope_tables(llama_layout(self.plan), ids_BT.shape[1], self.plan.dtype)
        return {"embedding": self._embedding_VD[ids_BT].astype(self.plan.dtype), "rope.cos": cos_TE, "rope.sin": sin_TE}

    def _section(self, section: str, tensors: Arrays, *, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
        """The taps and gradients of a block or the head, by their own names."""
        self._tell(section)
        given = {name: array for name, array in tensors.items() if name != "labels" and name.removeprefix(OVERRIDE) not in ROPE_TABLES}
        if section != HEAD:
            tables = llama.rope_tables(llama_layout(self.plan), tensors["input"].shape[1], self.plan.dtype)
            given |= {name: tensors.get(f"{OVERRIDE}{name}", table) for name, table in zip(ROPE_TABLES, tables, strict=True)}
        if "labels" in tensors:
            given |= next_tokens(tensors["labels"], dtype=self.plan.dtype, ignore_index=IGNORE_INDEX)
        prefix = taps.prefix(section)
        adapter = {name.removeprefix(prefix): tensor for name, tensor in self._adapter.items() if prefix and name.startswith(prefix)}
        return self._sections.run(section, {**self._weights[section], **adapter, **self._scalars}, given, wanted=wanted)

    def _tell(self, section: str) -> None:
        if self._channel is not None:
            self._channel.progress(section=section)

    # Weights

    def _set_adapter(self, tensors: Arrays) -> None:
        # from NumPy buffers, each its own: two matrices of zeros made by tinygrad would be one constant
        arrays = {name: tensors[name].astype(self.plan.dtype) for name in requests.adapter(self.plan)}
        self._adapter = {name: to_device(array, self._device) for name, array in arrays.items()}
        if self._adapter:
            Tensor.realize(*self._adapter.values())

    def _frozen(self, section: str, tensors: Arrays) -> dict[str, Tensor]:
        """A section's base weights on the device, by their own names."""
        self._tell(section)
        if section == HEAD:
            tied = self.plan.layout.tie_word_embeddings
            head_VD = tensors["embedding" if tied else "lm_head"]
            return {"final_norm": self._widened(tensors["final_norm"]), "lm_head": self._widened(head_VD)}
        prefix = taps.prefix(section)
        weights: dict[str, Tensor] = {}
        for name in requests.weights(self.plan.model_copy(update={"sections": (section,)})):
            own = name.removeprefix(prefix)
            if own in taps.LINEARS:
                weights |= self._linear(own, tensors[name], tensors.get(f"{name}.offset"))
            elif not own.endswith(".offset"):
                weights[own] = self._widened(tensors[name])
        return weights

    def _linear(self, name: str, weight_OI: np.ndarray, offset: np.ndarray | None) -> dict[str, Tensor]:
        """A linear's weight: as it is, or through NF4, as codes where the product reads them; nested with the offset, if one is given."""
        base = self.plan.base
        if base is None:
            return {name: self._widened(weight_OI)}
        weight = to_device(weight_OI.astype(np.float32), self._device)
        offset_1 = None if offset is None else to_device(offset, self._device).realize()
        packed_P, absmax_B = nf4.encode(weight, block_size=base.block_size, double_quant=base.double_quant, given_offset_1=offset_1)
        if "nf4_linear" in self.plan.paths:
            return {f"{name}.packed": packed_P, f"{name}.absmax": absmax_B}
        out_features, in_features = weight_OI.shape
        sizes = {"block_size": base.block_size, "out_features": out_features, "in_features": in_features}
        dequantized_OI = nf4.dequantize(packed_P, absmax_B, **sizes)
        return {name: dequantized_OI.cast(self.plan.dtype).contiguous().realize()}

    def _widened(self, array: np.ndarray) -> Tensor:
        return to_device(array.astype(np.float32, copy=False), self._device).cast(self.plan.dtype).contiguous().realize()


def _require_unpacked(tensors: Arrays) -> None:
    """Raises NotSupported where positions or segments are given."""
    for name in (requests.POSITIONS, requests.SEGMENTS):
        if name in tensors:
            raise NotSupported(f"tinygrad_lora takes no {name}; allowed: one whole sequence a row, without padding; leave them out")
