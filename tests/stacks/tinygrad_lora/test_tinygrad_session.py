"""The tinygrad stack's open graph: what it takes, what it refuses by name, NF4, and what it leaves alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.model.layout import MODEL_TYPES
from contract.worker import graph, taps
from contract.worker.capabilities import Capabilities
from contract.worker.plan import GraphPlan, Lora, Nf4
from contract.worker.process import RequestFailed, StackProcess
from parity.checks.graph_layouts import OPTIONS
from parity.judge.perturb import respond
from parity.reference import nf4
from parity.reference.graph import Batch
from stacks.tinygrad_lora import ops, probe
from stacks.tinygrad_lora.ops import PATHS, TinygradLora
from tests.stacks.tinygrad_lora.tiny_tinygrad_graph import (
    EXP_ULP,
    EXP_ULP_WEBGPU,
    LAYOUT,
    RUNS,
    all_taps,
    batch_of,
    outside,
    plan_of,
    tensors_of,
)

COMMAND = (sys.executable, "-m", "stacks.tinygrad_lora.worker")
CAPABILITIES = Path(ops.__file__).with_name("capabilities.json")
TIED = LAYOUT.model_copy(update={"tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "num_hidden_layers": 1})


class Recorder:
    """A channel that writes down which sections were told of."""

    def __init__(self) -> None:
        self.sections: list[str] = []

    def progress(self, *, section: str) -> None:
        self.sections.append(section)


def opened(plan: GraphPlan, tensors: dict[str, np.ndarray] | None = None) -> tuple[TinygradLora, Recorder]:
    """A stack in this process with the graph `tiny`, and what it tells."""
    recorder = Recorder()
    stack = TinygradLora("CPU", recorder)  # type: ignore[arg-type]
    stack.open("tiny", plan.model_dump(mode="json"), tensors_of(plan) if tensors is None else tensors)
    recorder.sections.clear()
    return stack, recorder


@pytest.fixture(scope="module")
def process() -> Iterator[StackProcess]:
    with StackProcess("tinygrad_lora", COMMAND, "CPU") as process:
        plan = plan_of()
        process.request("open", {"graph": "tiny", "plan": plan.model_dump(mode="json")}, tensors_of(plan))
        yield process


def test_through_the_process_are_the_same_bits(process: StackProcess) -> None:
    plan, wanted = plan_of(), ["rope.sin", "layers.0.scores", "layers.1.output", "logits", "loss"]
    through = process.request("gradients", {"graph": "tiny", "taps": wanted}, batch_of()).tensors
    directly = opened(plan)[0].gradients("tiny", wanted, batch_of()).tensors
    expected = graph.expected_graph_answer(plan, wanted, *batch_of()["ids"].shape, gradients=True)
    assert {name: (tensor.shape, tensor.dtype.name) for name, tensor in through.items()} == expected
    for name, value in directly.items():
        np.testing.assert_array_equal(through[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("request_name", "values", "tensors", "message"),
    [
        ("forward", {"graph": "other", "taps": []}, batch_of(), "graph 'other' was asked of, and 'tiny' is open; open 'other' first"),
        ("forward", {"graph": "tiny", "taps": ["layers.2.output"]}, batch_of(), "there is no tap 'layers.2.output'"),
        ("forward", {"graph": "tiny", "taps": ["loss"]}, {"ids": batch_of()["ids"]}, "the loss is wanted and there are no labels"),
        ("forward", {"graph": "tiny", "taps": []}, batch_of() | {"mask": np.ones(1)}, "got ids, labels, mask; give ids, and labels"),
        ("gradients", {"graph": "tiny", "taps": []}, {"ids": batch_of()["ids"] + 61}, "no labels"),
        ("gradients", {"graph": "tiny", "taps": []}, {name: it + 61 for name, it in batch_of().items()}, "allowed: 0 .. 60"),
        ("block", {"graph": "tiny", "section": "layers.2"}, {"input": np.ones((1, 2, 24))}, "section 'layers.2' is not open"),
        ("block", {"graph": "tiny", "section": "layers.0"}, {"input": np.ones((1, 2, 24), np.float32)}, r"must be float64\[1, 2, 24\]"),
        ("state", {"graph": "tiny"}, {"layers.0.q_proj.lora_a": np.ones((3, 24), np.float32)}, "down_proj.lora_a is missing"),
    ],
)
def test_what_is_refused(
    process: StackProcess, request_name: str, values: dict[str, Any], tensors: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(RequestFailed, match=message):
        process.request(request_name, values, tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paths": ("nf4_linear",), "base": Nf4()}, "nf4_linear computes in float32 or bfloat16, the plan in float64; leave"),
        ({"paths": ("checkpoint",)}, "no path 'checkpoint'; allowed: nf4_linear"),
    ],
)
def test_plans_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        opened(plan_of(**changes))
    assert type(caught.value).__name__ == "NotSupported"


def test_what_is_declared_is_what_is_there() -> None:
    declared = Capabilities.model_validate_json(CAPABILITIES.read_text(encoding="utf-8"))
    assert declared.graphs is not None
    assert declared.graphs.paths == PATHS
    dtypes = ("float32", "float64", "bfloat16")
    assert declared.graphs.architectures == dict.fromkeys(MODEL_TYPES, dtypes)
    assert declared.graphs.proxy == dtypes
    drawn = {option for recipes in OPTIONS.values() for recipe in recipes for option in recipe.layout.options}
    assert set(declared.graphs.layout_options) == drawn
    assert set(dtypes) == set(probe.dtypes_of("CPU"))
    assert (declared.graphs.packing, declared.graphs.patterns) == (True, True)
    assert {"open", "state", "forward", "gradients", "block"} <= set(declared.requests)


def test_an_open_that_fails_leaves_nothing_open() -> None:
    plan = plan_of()
    stack, _ = opened(plan)
    tensors = tensors_of(plan)
    del tensors["layers.1.up_proj.bias"]
    with pytest.raises(graph.Invalid, match=r"layers\.1\.up_proj\.bias is missing"):
        stack.open("next", plan.model_dump(mode="json"), tensors)
    for name in ("tiny", "next"):
        with pytest.raises(ValueError, match="none is open"):
            stack.forward(name, [], batch_of())


def test_the_adapter_is_answered_as_it_was_set() -> None:
    plan = plan_of()
    stack, _ = opened(plan)
    before = stack.forward("tiny", ["loss"], batch_of()).tensors["loss"]
    other = {name: tensor for name, tensor in tensors_of(plan, seed=1).items() if name in graph.adapter(plan)}
    assert stack.state("tiny", other).tensors == {}
    answered = stack.state("tiny").tensors
    assert set(answered) == set(graph.adapter(plan))
    for name, value in answered.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, other[name])
    assert stack.forward("tiny", ["loss"], batch_of()).tensors["loss"] != before
    assert (
        stack.forward("tiny", ["loss"], batch_of()).tensors["loss"]
        == opened(plan, tensors_of(plan) | other)[0].forward("tiny", ["loss"], batch_of()).tensors["loss"]
    )


def test_only_what_is_needed_is_computed_and_each_section_is_told_of() -> None:
    stack, recorder = opened(plan_of())
    stack.forward("tiny", ["embedding", "rope.cos"], {"ids": batch_of()["ids"]})
    assert recorder.sections == []
    stack.forward("tiny", ["layers.0.output"], {"ids": batch_of()["ids"]})
    assert recorder.sections == ["layers.0"]
    recorder.sections.clear()
    stack.gradients("tiny", [], batch_of())
    assert recorder.sections == ["layers.0", "layers.1", "head", "layers.1", "layers.0"]


def test_sections_that_are_held_alone() -> None:
    """The same bits as in the whole graph, from a part of its tensors; the whole graph is refused."""
    whole, _ = opened(plan_of())
    computed = whole.forward("tiny", ["layers.0.output", "layers.1.output", "logits"], batch_of()).tensors
    for section, entering, leaving in (("layers.1", "layers.0.output", "layers.1.output"), (taps.HEAD, "layers.1.output", "logits")):
        plan = plan_of(sections=(section,))
        part, _ = opened(plan, {name: tensors_of(plan_of())[name] for name in graph.weights(plan) | graph.adapter(plan)})
        answer = part.block("tiny", section, {"input": computed[entering]}).tensors
        np.testing.assert_array_equal(answer[leaving.removeprefix("layers.1.")], computed[leaving])
        with pytest.raises(graph.Invalid, match=f"only {section} are open"):
            part.forward("tiny", [], batch_of())


def dequantized(plan: GraphPlan, tensors: dict[str, np.ndarray], base: Nf4) -> dict[str, np.ndarray]:
    """The tensors with each block linear's weight through the reference's NF4."""
    changed = dict(tensors)
    for name in graph.weights(plan):
        if name.rpartition(".")[2] in taps.LINEARS:
            quantized = nf4.quantize(tensors[name], base.block_size)
            absmax = quantized.absmax
            if base.double_quant:
                offset = np.asarray(np.mean(absmax, dtype=np.float32))
                absmax = nf4.unnest(*nf4.nest(absmax, offset), offset)
            changed[name] = nf4.dequantize(quantized.packed, absmax, base.block_size, tensors[name].shape)
    return changed


@pytest.mark.parametrize("base", [Nf4(block_size=32, double_quant=False), Nf4(block_size=64, double_quant=True)])
def test_an_nf4_base_with_a_tied_head_and_without_adapters_elsewhere(base: Nf4) -> None:
    changes: dict[str, Any] = {"layout": TIED, "base": base, "lora": Lora(rank=2, alpha=3.0, targets=("up_proj",))}
    plan, plain = plan_of(**changes), plan_of("float32", **changes)
    tensors = tensors_of(plan)
    stack, _ = opened(plan, tensors)
    got = stack.gradients("tiny", all_taps(plan), batch_of()).tensors
    changed = dequantized(plan, tensors, base)
    adapter = {name: tensors[name] for name in graph.adapter(plan)}
    trace, response = respond(plan, changed.__getitem__, adapter, Batch(**batch_of()), runs=RUNS, seed=2, ulp=EXP_ULP)
    exact = trace.taps | {f"grad.{name}": gradient for name, gradient in trace.grads.items()}
    # the mean offset may be rounded in another order, and so move absmax by float32's last place
    assert outside(got, exact, response, "float32" if base.double_quant else "float64") == {}
    answers = [
        opened(plain.model_copy(update={"paths": paths}), tensors)[0].gradients("tiny", all_taps(plan), batch_of()).tensors
        for paths in ((), ("nf4_linear",))
    ]
    for name, value in answers[0].items():
        np.testing.assert_array_equal(answers[1][name], value, err_msg=name)


def test_an_adapter_of_zeros_has_gradients_of_its_own() -> None:
    """Two matrices of one shape and one value stay two tensors."""
    plan = plan_of(lora=Lora(rank=3, alpha=5.0, targets=("gate_proj", "up_proj")))
    tensors = tensors_of(plan)
    tensors |= {name: np.zeros_like(tensor) for name, tensor in tensors.items() if name.endswith(".lora_b")}
    answer = opened(plan, tensors)[0].gradients("tiny", [], batch_of()).tensors
    gate, up = (answer[f"grad.layers.0.{name}.lora_b"] for name in ("gate_proj", "up_proj"))
    assert gate.any()
    assert up.any()
    assert (gate != up).any()


@pytest.mark.webgpu
def test_on_webgpu() -> None:
    """float32 within what rounding explains; float64 is refused by name."""
    plan = plan_of("float32")
    tensors = tensors_of(plan)
    adapter = {name: tensors[name] for name in graph.adapter(plan)}
    with StackProcess("tinygrad_lora", COMMAND, "WEBGPU") as process:
        with pytest.raises(RequestFailed, match="opens no graph in float64 on WEBGPU; allowed: float32"):
            process.request("open", {"graph": "tiny", "plan": plan_of().model_dump(mode="json")}, tensors)
        process.request("open", {"graph": "tiny", "plan": plan.model_dump(mode="json")}, tensors)
        for _ in range(3):
            got = process.request("gradients", {"graph": "tiny", "taps": all_taps(plan)}, batch_of()).tensors
    trace, response = respond(plan, tensors.__getitem__, adapter, Batch(**batch_of()), runs=RUNS, seed=3, ulp=EXP_ULP_WEBGPU)
    exact = trace.taps | {f"grad.{name}": gradient for name, gradient in trace.grads.items()}
    assert outside(got, exact, response, plan.dtype) == {}
