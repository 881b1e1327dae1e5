"""The graph qlora_proxy_v1 against its formula in NumPy (tests/proxy_formula.py), and its laws.

How far two right answers may lie apart is measured, not typed: the stack's float32 answer against its float64 answer shows what this
graph makes of roundings of 2^-24, and of 2^-53 it makes 2^-29 of that (as in test_torch_witness.py: relative to a tensor's largest
value, the largest over all gradients, or over all else, times 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from contract.worker import graph, taps
from contract.worker.plan import GraphPlan, Lora, Nf4
from stacks.torch_qlora import adapted_loss, lora
from stacks.torch_qlora.graph import GraphBatch, open_graph
from stacks.torch_qlora.models.proxy import Proxy
from stacks.torch_qlora.nf4_linear import Linear4bit
from tests.proxy_formula import (
    BATCH,
    DROPOUT,
    GPT2,
    LLAMA,
    TOKENS,
    batch,
    linear,
    logits,
    loss_and_gradients,
    mask,
    norm,
    plan,
    tensors_of,
)
from tests.stacks.torch_qlora.tiny_proxy import GRAPH, gradients, opened

MARGIN, UNIT_RATIO = 3, 2.0**-29
PLANTED = 1e-9
"""A relative error that no bound may let through: float32's roundings are 60 times larger."""
CPU = torch.device("cpu")
PLANS: dict[str, dict[str, Any]] = {
    "all layers": {},
    "two of four": {"middle_blocks": 2},
    "one": {"middle_blocks": 1},
    "head alone": {"middle_blocks": 0},
    "rslora": {"middle_blocks": 3, "lora": Lora(rank=4, alpha=3.0, rslora=True)},
    "GPT-2": {"layout": GPT2, "middle_blocks": 3},
}


def sizes(double: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.abs(value).max()) for name, value in double.items()}


def allowed(wanted: GraphPlan, double: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest distance of two right float64 answers; see the top of this file."""
    single, size = gradients(wanted.model_copy(update={"dtype": "float32"})), sizes(double)
    response = {name: float(np.abs(single[name] - double[name]).max()) / size[name] for name in double}
    kinds = {kind: max(value for name, value in response.items() if name.startswith("grad.") == kind) for kind in (True, False)}
    return {name: MARGIN * UNIT_RATIO * value * kinds[name.startswith("grad.")] for name, value in size.items()}


@pytest.mark.parametrize("name", PLANS)
def test_logits_loss_and_gradients_are_those_of_the_formula(name: str) -> None:
    wanted = plan(**PLANS[name])
    tensors, tokens, found = tensors_of(wanted), batch(wanted), gradients(wanted)
    exact = loss_and_gradients(wanted, tensors, tokens) | {"lm_head": logits(wanted, tensors, tokens["ids"])}
    bounds = allowed(wanted, found)
    assert {name for name in found if name.startswith("grad.")} == {f"grad.{name}" for name in graph.adapter(wanted)}
    for tap, value in exact.items():
        assert value.any(), tap
        assert found[tap].dtype == np.float64
        assert np.abs(found[tap] - value).max() <= bounds[tap], tap
        assert np.abs(found[tap] * (1 + PLANTED) - value).max() > bounds[tap], tap


def test_every_tap_is_its_own_formula() -> None:
    wanted = plan()
    tensors, tokens, found = tensors_of(wanted), batch(wanted), gradients(plan())
    bounds, n = allowed(wanted, found), LLAMA.num_hidden_layers
    h = tensors["embedding"].astype(np.float64)[tokens["ids"]]
    expected = {"embedding": h}
    for layer in range(n):
        own, path = linear(wanted, tensors, f"layers.{layer}.o_proj"), f"layers.{layer}"
        normed = norm(h)
        ax = normed @ own.a_RI.T
        expected |= {f"{path}.norm": normed, f"{path}.o_proj.base": normed @ own.w_OI.T, f"{path}.o_proj.lora_ax": ax}
        expected |= {f"{path}.o_proj.lora_bax": ax @ own.b_OR.T, f"{path}.o_proj": own(normed)}
        h = h + own(normed) / np.sqrt(n)
        expected[f"{path}.output"] = h
    head, scaled = linear(wanted, tensors, "lm_head"), h / 2
    expected |= {"scaled": scaled, "lm_head.base": scaled @ head.w_OI.T, "lm_head.lora_ax": scaled @ head.a_RI.T}
    expected |= {"lm_head.lora_bax": scaled @ head.a_RI.T @ head.b_OR.T, "lm_head": head(scaled)}
    assert {*expected, "loss"} == set(taps.full_names(wanted))
    for tap, value in expected.items():
        assert np.abs(found[tap] - value).max() <= bounds[tap], tap


def test_logits_depend_on_their_own_token_alone() -> None:
    wanted = plan()
    stack, tokens = opened(wanted), batch(wanted)
    before = stack.forward(GRAPH, ["lm_head"], tokens).tensors["lm_head"]
    changed = tokens["ids"].copy()
    changed[1, 4] = (changed[1, 4] + 1) % LLAMA.vocab_size
    after = stack.forward(GRAPH, ["lm_head"], {"ids": changed}).tensors["lm_head"]
    differs = (before != after).any(axis=-1)
    assert differs[1, 4]
    assert differs.sum() == 1


def test_without_middle_blocks_nothing_is_scaled() -> None:
    wanted = plan(middle_blocks=0)
    found = opened(wanted).forward(GRAPH, ["embedding", "scaled"], batch(wanted)).tensors
    assert found["scaled"].tobytes() == found["embedding"].tobytes()
    assert taps.full_names(wanted)[1] == "scaled"
    assert set(graph.adapter(wanted)) == {"lm_head.lora_a", "lm_head.lora_b"}


def test_an_adapter_whose_b_is_zero_is_the_base() -> None:
    wanted = plan("float32")
    tensors = {name: np.zeros_like(value) if name.endswith("lora_b") else value for name, value in tensors_of(wanted).items()}
    found = gradients(wanted, tensors)
    plain = opened(plan("float32", lora=Lora(rank=1, alpha=1.0, targets=())), {
        name: value for name, value in tensors.items() if "lora" not in name
    })  # fmt: skip
    bare = plain.forward(GRAPH, ["lm_head", "loss"], batch(wanted)).tensors
    assert all(found[name].tobytes() == bare[name].tobytes() for name in bare)
    assert not any(value.any() for name, value in found.items() if name.startswith("grad.") and name.endswith("lora_a"))


# What training takes


def held(wanted: GraphPlan, tensors: dict[str, np.ndarray] | None = None) -> Proxy:
    own = tensors_of(wanted) if tensors is None else tensors
    found = open_graph(wanted, own, own, CPU)
    assert isinstance(found, Proxy)
    return found


def trained(wanted: GraphPlan, tensors: dict[str, np.ndarray] | None = None, *, dropped: bool = False) -> dict[str, np.ndarray]:
    """loss_sum as training asks for it, and its gradients, both over the supervised tokens."""
    proxy, tokens = held(wanted, tensors), {name: torch.from_numpy(value) for name, value in batch(wanted).items()}
    if dropped:
        lora.set_dropout(proxy, lambda path, width: torch.from_numpy(mask(path, width)), DROPOUT)
    total = proxy.loss_sum(GraphBatch(ids_BT=tokens["ids"], labels_BT=tokens["labels"]))
    total.backward()
    count = int((tokens["labels"][:, 1:] != -100).sum())
    found = {f"grad.{name}": parameter.grad for name, parameter in lora.parameters(proxy).items()}
    return {"loss": total.detach().numpy() / count} | {name: gradient.numpy() / count for name, gradient in found.items()}


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows a chunk, and fewer in the last one."""
    monkeypatch.setattr(adapted_loss, "CHUNK_VALUES", 5 * LLAMA.vocab_size + 1)
    assert (batch(plan())["labels"][:, 1:] != -100).sum() % 5


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dropped", [False, True], ids=["plain", "dropped"])
@pytest.mark.parametrize("blocks", [None, 0])
@pytest.mark.parametrize(
    "paths",
    [(), ("chunked_loss",), ("fused_lora",), ("chunked_loss", "fused_lora", "fused_elementwise"), ("chunked_loss", "checkpoint")],
    ids=str,
)
def test_training_computes_the_formula_in_the_rows_that_count(paths: tuple[str, ...], blocks: int | None, dropped: bool) -> None:
    wanted = plan(paths=paths, middle_blocks=blocks)
    found = trained(wanted, dropped=dropped)
    exact = loss_and_gradients(wanted, tensors_of(wanted), batch(wanted), dropped=dropped)
    plain = plan(middle_blocks=blocks)
    bounds = allowed(plain, gradients(plain))
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        assert np.abs(found[name] - value).max() <= bounds[name], name


def test_dropout_is_seen() -> None:
    wanted = plan()
    one, other = (loss_and_gradients(wanted, tensors_of(wanted), batch(wanted), dropped=dropped) for dropped in (False, True))
    assert all(np.abs(one[name] - value).max() > 1e-3 * np.abs(value).max() for name, value in other.items())


def test_rows_that_do_not_count_are_not_computed() -> None:
    wanted, rows = plan(paths=("chunked_loss",)), []
    proxy, tokens = held(wanted), {name: torch.from_numpy(value) for name, value in batch(wanted).items()}
    for block in proxy.layers.values():
        block.register_forward_hook(lambda module, inputs, output: rows.append(output.shape))
    proxy.loss_sum(GraphBatch(ids_BT=tokens["ids"], labels_BT=tokens["labels"]))
    assert rows == [(int((tokens["labels"][:, 1:] != -100).sum()), LLAMA.hidden_size)] * LLAMA.num_hidden_layers


def test_the_chunked_loss_never_makes_all_logits() -> None:
    wanted = plan(paths=("chunked_loss",))
    assert not any(name.startswith("lm_head") for name in taps.full_names(wanted))
    with pytest.raises(ValueError, match="the path chunked_loss never holds the tap lm_head"):
        opened(wanted).forward(GRAPH, ["lm_head"], batch(wanted))
    plain, path = gradients(plan()), gradients(wanted)
    bounds = allowed(plan(), plain)
    assert set(path) == {name for name in plain if not name.startswith("lm_head")}
    assert all(np.abs(path[name] - plain[name]).max() <= bounds[name] for name in path)


def test_hidden_and_logits_are_the_graph() -> None:
    wanted = plan()
    proxy, tokens = held(wanted), batch(wanted)
    with torch.no_grad():
        found = proxy.logits(proxy.hidden(GraphBatch(ids_BT=torch.from_numpy(tokens["ids"]))))
    assert found.numpy().tobytes() == opened(wanted).forward(GRAPH, ["lm_head"], tokens).tensors["lm_head"].tobytes()


# NF4, bfloat16


def dequantized(weight: np.ndarray, base: Nf4) -> np.ndarray:
    """What NF4 keeps of a weight, float32."""
    module = Linear4bit(torch.from_numpy(weight), None, block_size=base.block_size, double_quant=base.double_quant)
    return module.dequantized().numpy()


@pytest.mark.parametrize("double_quant", [True, False])
def test_every_linear_and_the_head_are_nf4_and_the_embedding_is_not(double_quant: bool) -> None:
    base = Nf4(block_size=32, double_quant=double_quant)
    wanted, plain = plan(base=base), plan()
    tensors = tensors_of(wanted)
    kept = {name: value if "lora" in name else dequantized(value, base) for name, value in tensors.items()}
    weights = kept | {"embedding": tensors["embedding"], "lm_head": kept["embedding"]}
    assert (weights["lm_head"] != weights["embedding"]).any()
    found, exact = gradients(wanted, tensors), loss_and_gradients(plain, weights, batch(plain))
    bounds = allowed(wanted, found)
    for name, value in exact.items():
        assert np.abs(found[name] - value).max() <= bounds[name], name


def test_nf4_weights_are_held_as_codes_and_multiplied_from_them() -> None:
    base, paths = Nf4(block_size=32), ("nf4_linear", "chunked_loss", "fused_lora")
    wanted = plan("float32", base=base, paths=paths)
    linears = [module for module in held(wanted).modules() if isinstance(module, Linear4bit)]
    assert [(linear.out_features, linear.in_features) for linear in linears] == [(48, 48)] * 4 + [(83, 48)]
    assert all(linear.weight.dtype == torch.uint8 for linear in linears)
    exact, plain, path = trained(plan(base=base)), trained(plan("float32", base=base)), trained(wanted)
    for name, value in exact.items():
        own_error = np.abs(plain[name] - value).max()
        assert np.abs(path[name] - value).max() <= 2 * own_error + np.finfo(np.float32).eps / 2 * np.abs(value).max(), name


def test_given_offsets_are_taken() -> None:
    wanted = plan("float32", base=Nf4(block_size=32, offsets_given=True))
    tensors = tensors_of(wanted)
    offsets = {name for name in tensors if name.endswith(".offset")}
    assert offsets == {*(f"layers.{layer}.o_proj.offset" for layer in range(4)), "lm_head.offset"}
    one = opened(wanted, tensors).forward(GRAPH, ["lm_head"], batch(wanted)).tensors["lm_head"]
    for name in ("layers.3.o_proj.offset", "lm_head.offset"):
        other = opened(wanted, tensors | {name: tensors[name] + np.float32(0.3)})
        assert (other.forward(GRAPH, ["lm_head"], batch(wanted)).tensors["lm_head"] != one).any(), name


def test_bfloat16_is_as_precise_as_its_roundings() -> None:
    wanted = plan("bfloat16", paths=("chunked_loss", "fused_lora"))
    proxy, tokens = held(wanted), {name: torch.from_numpy(value) for name, value in batch(wanted).items()}
    assert proxy.hidden(GraphBatch(ids_BT=tokens["ids"])).dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in lora.parameters(proxy).values())
    found, exact = trained(wanted), loss_and_gradients(plan(), tensors_of(wanted), batch(wanted))
    bounds = allowed(plan(), gradients(plan()))
    for name, value in exact.items():
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - value).max() <= bounds[name] * 2.0 ** (53 - 8), name


# Requests on one section


def test_sections_one_after_the_other_are_the_whole_graph() -> None:
    wanted = plan()
    stack, tokens, whole = opened(wanted), batch(wanted), gradients(plan())
    given: dict[str, np.ndarray] = {"ids": tokens["ids"]}
    inputs = {}
    for section in taps.sections(4):
        inputs[section] = given
        found = stack.block(GRAPH, section, given | ({"labels": tokens["labels"]} if section == "head" else {})).tensors
        assert found.keys() == {tap.name for tap in taps.section_taps(wanted, section)}
        assert all(value.tobytes() == whole[taps.prefix(section) + name].tobytes() for name, value in found.items())
        given = {"input": found.get("output", found.get("embedding", np.empty(0)))}
    bar, at = np.ones(()), "loss"
    for section in reversed(taps.sections(4)[1:]):
        asked = inputs[section] | ({"labels": tokens["labels"]} if section == "head" else {}) | {f"bar.{at}": bar}
        found = stack.block(GRAPH, section, asked).tensors
        for name in graph.section_adapter(wanted, section):
            own = name.removeprefix(taps.prefix(section))
            assert found[f"grad.{own}"].tobytes() == whole[f"grad.{name}"].tobytes()
        bar, at = found["grad.input"], "output"


@pytest.mark.parametrize("section", ["layers.2", "head"])
def test_a_section_that_is_held_alone_is_that_of_the_whole_graph(section: str) -> None:
    """Also its divisor, which the blocks of the graph count for and not those that are held."""
    wanted, whole = plan(), gradients(plan())
    alone = plan(sections=(section,))
    names = graph.weights(alone) | graph.adapter(alone)
    stack = opened(alone, {name: tensor for name, tensor in tensors_of(wanted).items() if name in names})
    before = "layers.1.output" if section == "layers.2" else "layers.3.output"
    found = stack.block(GRAPH, section, {"input": whole[before]}).tensors
    assert {"output", "lm_head"} & found.keys()
    assert all(value.tobytes() == whole[taps.prefix(section) + tap].tobytes() for tap, value in found.items())


@pytest.mark.parametrize("section", ["layers.2", "head"])
def test_a_section_with_everything_given(section: str) -> None:
    wanted, generator = plan(), np.random.default_rng(2)
    given: dict[str, np.ndarray] = {"input": generator.standard_normal((BATCH, TOKENS, 48))}
    if section == "head":
        given["labels"] = batch(wanted)["labels"]
    for tap in taps.section_taps(wanted, section):
        shape = graph.shape_of(section, tap, wanted, BATCH, TOKENS)
        given |= {f"{kind}.{tap.name}": np.asarray(generator.standard_normal(shape)) for kind in ("override", "bar")}
    found = opened(wanted).block(GRAPH, section, given).tensors
    expected = graph.expected_block_answer(wanted, section, given, BATCH, TOKENS)
    assert {name: (value.shape, value.dtype.name) for name, value in found.items()} == expected
    assert all(value.any() for name, value in found.items() if name.startswith("grad.") and name not in ("grad.loss", "grad.output"))


# Merging


def test_a_merged_proxy_has_no_lora_and_computes_its_weights() -> None:
    wanted = plan(paths=("chunked_loss",))
    stack, tokens, tensors = opened(wanted), batch(wanted), tensors_of(wanted)
    merged = stack.merge(GRAPH).tensors
    assert merged.keys() == {"lm_head", *(f"layers.{layer}.o_proj" for layer in range(4))}
    zero = {name: np.zeros_like(value) for name, value in tensors.items() if "lora" in name}
    weights = {"embedding": tensors["embedding"]} | merged | zero
    loss = stack.forward(GRAPH, ["loss"], tokens).tensors["loss"]
    bound = allowed(plan(), gradients(plan()))["loss"]
    assert abs(loss - loss_and_gradients(plan(), weights, tokens)["loss"]) <= bound
    assert stack.state(GRAPH).tensors == {}
