"""The open graph, and what is asked of it: state, forward, gradients, block (contract.worker.graph)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tinygrad import Tensor

from contract.artifacts.saved import as_filed, of_plan, write_both
from contract.worker import graph as requests
from contract.worker import taps
from contract.worker.graph import IGNORE_INDEX, POSITIONS, ROPE_TABLES, SEGMENTS, Invalid
from contract.worker.plan import GraphPlan
from contract.worker.serve import Channel
from contract.worker.taps import EMBEDDING, HEAD
from stacks.tinygrad_lora import weights
from stacks.tinygrad_lora.graph import BAR, OVERRIDE, SEEN, Sections, sections_of
from stacks.tinygrad_lora.host import rounded, to_device, write
from stacks.tinygrad_lora.loss import next_tokens
from stacks.tinygrad_lora.merge import merge_graph
from stacks.tinygrad_lora.models.build import build
from stacks.tinygrad_lora.models.section import PLACES, TOKENS
from stacks.tinygrad_lora.visible import visible
from stacks.tinygrad_lora.weights import Weights
from stacks.tinygrad_lora.widen import inside

Arrays = Mapping[str, np.ndarray]

_BATCH = ("ids", "labels", POSITIONS, SEGMENTS)


class Session:
    """One open graph: its weights on the device, and the functions that compute its sections.

    Args:
        plan: `plan.dtype` is one that the device has.
        tensors: the base weights and the adapter, as `contract.worker.graph` names them; not kept, but for the embeddings.
        channel: told of each section that is begun; None where nobody waits.

    Raises:
        Invalid: a tensor is missing, unknown, of the wrong shape or dtype, or not finite.
    """

    def __init__(self, plan: GraphPlan, tensors: Arrays, *, device: str, channel: Channel | None) -> None:
        requests.require(requests.weights(plan) | requests.adapter(plan), tensors, "open")
        self.plan, self._device, self._channel = plan, device, channel
        size = sum(tensor.nbytes for tensor in tensors.values())
        self._model, self._sections = build(plan), sections_of(plan, device, weights=size)
        read = Weights(plan, weights.of_arrays(tensors), device)
        self._embeddings = read.embeddings() if EMBEDDING in plan.held else {}
        self._held: dict[str, dict[str, Tensor]] = {}
        for section in plan.held:
            self._tell(section)
            self._held[section] = {} if section == EMBEDDING else {**read.section(section), **self._scalars(section)}
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
        expected = requests.expected_block_answer(self.plan, section, tensors, batch, tokens)
        answer = self._embed(tensors) if section == EMBEDDING else self._section(section, tensors, wanted=expected.__contains__)
        # an override of which nothing that has a cotangent follows, in a request whose cotangents are constants'
        absent = {
            name: np.zeros(shape, dtype) for name, (shape, dtype) in expected.items() if name not in answer and name.startswith("grad.")
        }
        return {name: (answer | absent)[name].reshape(shape) for name, (shape, _) in expected.items()}

    def merge(self, linears: Sequence[str] | None) -> dict[str, np.ndarray]:
        """LoRA goes into the weights that it lies on; answers the named ones, float32, or all that had any.

        Raises: as `stacks.tinygrad_lora.merge.merge_graph`; the graph stays as it was.
        """
        plan, held, merged = merge_graph(self.plan, self._held, self.state(None), asked=linears, told=self._tell)
        self.plan, self._held, self._adapter = plan, held, {}
        self._model, self._sections = build(plan), Sections(plan, self._device)
        return merged

    def save(self, folder: Path) -> tuple[str, ...]:
        """Writes the adapter as v3, v2 and PEFT (contract/artifacts/saved.py); answers what the user must know."""
        if not self._adapter:
            raise ValueError("save: the open graph has no LoRA, having been merged or opened without; open one with an adapter")
        return write_both(as_filed(of_plan(self.plan, self.state(None))), folder)

    # The whole graph

    def _graph(self, wanted: Sequence[str], tensors: Arrays, *, gradients: bool) -> dict[str, np.ndarray]:
        self._require_batch(wanted, tensors, gradients=gradients)
        ids_BT, positioned = tensors["ids"], POSITIONS in tensors
        expected = requests.expected_graph_answer(self.plan, wanted, *ids_BT.shape, gradients=gradients, positions=positioned)
        answer = self._embed({name: tensors[name] for name in ("ids", POSITIONS) if name in tensors})
        x_BTD, inputs = answer[taps.entering(self.plan.layout) if self.plan.graph == "full_causal" else EMBEDDING], {}
        places = {name: tensors[name] for name in (POSITIONS, SEGMENTS) if name in tensors}
        ending = {"labels": tensors["labels"]} if "labels" in tensors else {}
        if gradients:
            ending[f"{BAR}loss"] = np.ones((), requests.dtype_of(self.plan, "loss"))
        for section in self._needed(expected, gradients=gradients):
            inputs[section] = {"input": x_BTD} | ({} if section == HEAD else places)
            given = inputs[section] | (ending if section == HEAD else {})
            own = {"output", *self._own(expected, section)}
            named = self._section(section, given, wanted=_or_gradient(own))
            x_BTD = named.get("output", x_BTD)
            answer |= {taps.prefix(section) + name: array for name, array in named.items()}
        if gradients:
            answer |= self._backward(inputs, answer["grad.input"])
        return {name: answer[name].reshape(shape) for name, (shape, _) in expected.items()}

    def _backward(self, inputs: dict[str, dict[str, np.ndarray]], bar_BTD: np.ndarray) -> dict[str, np.ndarray]:
        """The adapter's gradients: the blocks from the last to the first, each computed again from its input."""
        answer: dict[str, np.ndarray] = {}
        for section in reversed(inputs):
            if section != HEAD:
                given = inputs[section] | {f"{BAR}output": bar_BTD}
                named = self._section(section, given, wanted=lambda name: name.startswith("grad."))
                bar_BTD = named.pop("grad.input")
                answer |= {f"grad.{taps.prefix(section)}{name.removeprefix('grad.')}": array for name, array in named.items()}
        return answer

    def _require_batch(self, wanted: Sequence[str], tensors: Arrays, *, gradients: bool) -> None:
        if self.plan.held != taps.sections(self.plan.blocks):
            raise Invalid(f"only {', '.join(self.plan.held)} are open; open the whole graph (sections: None), or ask for `block`")
        strange = sorted(set(tensors) - set(_BATCH))
        if strange or "ids" not in tensors:
            raise Invalid(
                f"got {', '.join(sorted(tensors)) or 'no tensors'}; give ids, and labels where the loss is wanted, positions and segments "
                "where sequences are packed"
            )
        if "labels" not in tensors and (gradients or "loss" in wanted):
            raise Invalid("the loss is wanted and there are no labels; give labels, int64 [sequences, tokens]")
        requests.require_batch(self.plan, tensors["ids"], *(tensors.get(name) for name in _BATCH[1:]))

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

    def _embed(self, tensors: Arrays) -> dict[str, np.ndarray]:
        """The taps of the section `embedding`, and its gradients where there are cotangents."""
        ids_BT = tensors["ids"]
        positions = tensors.get(POSITIONS, np.arange(ids_BT.shape[1]))
        given = {TOKENS: rounded(self._embeddings["embedding"][ids_BT], self.plan.dtype)}
        if "position_embedding" in self._embeddings:
            given[PLACES] = rounded(self._embeddings["position_embedding"][positions], self.plan.dtype)
        constants = self._model.places(positions)
        own = {tap.name for tap in taps.section_taps(self.plan, EMBEDDING)} - set(constants)
        given |= {name: array for name, array in tensors.items() if name.partition(".")[2] in own}
        return self._sections.run(EMBEDDING, {}, given, wanted=lambda name: True) | constants

    def _section(self, section: str, tensors: Arrays, *, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
        """The taps and gradients of a block or the head, by their own names."""
        self._tell(section)
        aside = ("labels", POSITIONS, SEGMENTS)
        given = {name: array for name, array in tensors.items() if name not in aside and name.removeprefix(OVERRIDE) not in ROPE_TABLES}
        if section != HEAD:
            given |= self._places(section, tensors)
        if "labels" in tensors:
            given |= next_tokens(tensors["labels"], dtype=inside(self.plan.dtype), ignore_index=IGNORE_INDEX)
        prefix = taps.prefix(section) or f"{taps.LM_HEAD}."
        adapter = {name.removeprefix(taps.prefix(section)): it for name, it in self._adapter.items() if name.startswith(prefix)}
        return self._sections.run(section, {**self._held[section], **adapter}, given, wanted=wanted)

    def _places(self, section: str, tensors: Arrays) -> dict[str, np.ndarray]:
        """What a block takes of where its tokens stand; the proxy graph's blocks take nothing."""
        if self.plan.graph != "full_causal":
            return {}
        tokens = tensors["input"].shape[1]
        window = self.plan.layout.window(int(section.removeprefix("layers.")))
        constants = self._model.places(tensors.get(POSITIONS, np.arange(tokens)))
        given = {name: tensors.get(f"{OVERRIDE}{name}", table) for name, table in constants.items()}
        return given | {SEEN: visible(tokens, window=window, segments_BT=tensors.get(SEGMENTS))}

    def _tell(self, section: str) -> None:
        if self._channel is not None:
            self._channel.progress(section=section)

    # What is held

    def _scalars(self, section: str) -> dict[str, Tensor]:
        numbers = self._model.scalars(section)
        arrays = {name: np.array([value], dtype=inside(self.plan.dtype)) for name, value in numbers.items()}
        return {name: to_device(array, self._device) for name, array in arrays.items()}

    def _set_adapter(self, tensors: Arrays) -> None:
        # from NumPy buffers, each its own: two matrices of zeros made by tinygrad would be one constant
        arrays = {name: tensors[name].astype(inside(self.plan.dtype)) for name in requests.adapter(self.plan)}
        if self._adapter:
            for name, array in arrays.items():
                write(self._adapter[name], array)
        else:
            self._adapter = {name: to_device(array, self._device) for name, array in arrays.items()}


def _or_gradient(names: set[str]) -> Callable[[str], bool]:
    """Whether a name is one of these, or a gradient's."""
    return lambda name: name in names or name.startswith("grad.")
