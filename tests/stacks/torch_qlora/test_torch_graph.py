"""The graph's pieces against their formulas in extended precision, its laws, and its production paths against the plain one."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from contract.worker import graph, taps
from contract.worker.graph import Lora, Nf4
from stacks.torch_qlora import nf4
from stacks.torch_qlora.graph import Graph, Taps
from stacks.torch_qlora.loss import chunked_cross_entropy, cross_entropy
from stacks.torch_qlora.models import llama
from tests.stacks.torch_qlora.tiny_torch_graph import BATCH, GRAPH, LAYOUT, TOKENS, all_taps, batch, gradients, opened, plan, weights

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def unit(dtype: str) -> float:
    return float(np.finfo(dtype).eps) / 2


def gamma(k: int, dtype: str) -> float:
    """Relative error of k roundings in a row (Higham 2002, lemma 3.1)."""
    return k * unit(dtype) / (1 - k * unit(dtype))


# Pieces


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_is_its_formula_in_its_own_dtype(dtype: str) -> None:
    x, weight = draw(2, 5, 96).to(DTYPES[dtype]), draw(96, seed=4).to(DTYPES[dtype])
    got = llama.RmsNorm(torch.nn.Parameter(weight, requires_grad=False), LAYOUT.rms_norm_eps)(x)
    wide = x.numpy().astype(np.longdouble)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + np.longdouble(LAYOUT.rms_norm_eps)) * weight.numpy()
    # 96 squares and a sum, mean, eps (stored and added), root; division, product: all of them relative, since nothing cancels.
    assert got.dtype == DTYPES[dtype]
    assert np.all(np.abs(got.numpy() - exact) <= gamma(96 + 8, dtype) * np.abs(exact))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_tables_are_cast_once(dtype: str) -> None:
    cos, sin = llama.rope_tables(LAYOUT, TOKENS, DTYPES[dtype], CPU)
    angles = np.outer(np.arange(TOKENS), np.longdouble(LAYOUT.rope_theta) ** (-np.arange(0, 20, 2, dtype=np.longdouble) / 20))
    angles = np.concatenate((angles, angles), axis=1)
    # The exponent's rounding counts log(theta) times, the angle's by its size; then the table's own.
    of_angle = gamma(math.ceil(math.log(LAYOUT.rope_theta)) + 3, "float64") * angles
    for table, exact in ((cos, np.cos(angles)), (sin, np.sin(angles))):
        assert table.dtype == DTYPES[dtype]
        assert table.shape == (TOKENS, 20)
        assert np.all(np.abs(table.numpy() - exact) <= of_angle + 2 * unit(dtype) * np.abs(exact))


def test_rope_turns_each_pair_of_halves_by_its_angle() -> None:
    x = draw(2, 3, TOKENS, 20)
    cos, sin = llama.rope_tables(LAYOUT, TOKENS, torch.float64, CPU)
    got = torch.complex(*llama.rope(x, cos, sin).chunk(2, dim=-1))
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.complex(cos[:, :10], sin[:, :10])
    assert bool((torch.abs(got - turned) <= gamma(4, "float64") * torch.abs(turned) * math.sqrt(2)).all())
    assert torch.equal(got[:, :, 0], torch.complex(*x[:, :, 0].chunk(2, dim=-1)))


def test_softmax_is_causal_exactly_and_sums_to_one() -> None:
    scores = 50 * draw(2, 6, TOKENS, TOKENS)
    weights_BHTS = llama.causal_softmax(scores)
    assert not torch.triu(weights_BHTS, diagonal=1).any()
    assert torch.equal(weights_BHTS[..., 0, 0], torch.ones(2, 6, dtype=torch.float64))
    assert bool(((weights_BHTS.sum(-1) - 1).abs() <= gamma(2 * TOKENS, "float64")).all())
    assert torch.equal(weights_BHTS, llama.causal_softmax(scores + torch.triu(1000 * draw(TOKENS, TOKENS), diagonal=1)))


def test_query_heads_share_key_heads_in_groups_of_neighbours() -> None:
    q, k = draw(2, 6, TOKENS, 20), draw(2, 2, 20, TOKENS, seed=4)
    got = llama.grouped(q, k)
    for head in range(6):
        exact = np.einsum("bte,bes->bts", q[:, head].numpy().astype(np.longdouble), k[:, head // 3].numpy().astype(np.longdouble))
        bound = gamma(20, "float64") * torch.matmul(q[:, head].abs(), k[:, head // 3].abs()).numpy()
        assert np.all(np.abs(got[:, head].numpy() - exact) <= bound)


# Taps


def test_taps_record_what_was_computed_and_answer_the_override() -> None:
    computed, override = draw(3), draw(3, seed=4)
    shown = Taps(keep={"layers.1.scores", "logits"}, overrides={"layers.1.scores": override})
    assert shown.under("layers.1")("scores", computed) is override
    assert shown.under("layers.0")("scores", computed) is computed
    assert shown.under("head")("logits", computed) is computed
    assert {name: torch.equal(value, computed) for name, value in shown.recorded.items()} == {"layers.1.scores": True, "logits": True}


def test_the_first_computation_counts() -> None:
    shown = Taps(keep={"loss"})
    shown.tap("loss", torch.ones(()))
    shown.tap("loss", torch.zeros(()))
    assert shown.recorded["loss"] == 1


def test_a_pass_leaves_no_hook_behind() -> None:
    wanted = plan(paths=("checkpoint",))
    held = Graph(wanted, weights(wanted), CPU)
    shown = Taps(keep={"loss"}, attached={"loss"})
    ids, labels = (torch.from_numpy(tensor) for tensor in batch().values())
    held.full_causal(ids, labels, shown)
    shown.recorded["loss"].backward()  # type: ignore[no-untyped-call]
    assert not any(module._forward_hooks for module in held.modules())


def test_only_the_sections_of_the_plan_are_held() -> None:
    wanted = plan(sections=("layers.2",))
    held = Graph(wanted, weights(wanted), CPU)
    assert list(held.layers) == ["2"]
    assert held.embedding is None
    assert held.head is None


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_the_embeddings_own_parameter(tied: bool) -> None:
    wanted = plan(layout={"tie_word_embeddings": tied})
    held = Graph(wanted, weights(wanted), CPU)
    assert held.embedding is not None
    assert held.head is not None
    assert (held.head.weight is held.embedding.weight) == tied


def test_a_float64_graph_holds_no_float32() -> None:
    wanted = plan(base=Nf4())
    held = Graph(wanted, weights(wanted), CPU)
    assert {parameter.dtype for parameter in held.parameters()} == {torch.float64}
    assert {name for name, parameter in held.named_parameters() if parameter.requires_grad} == {
        f"layers.{layer}.{linear}.lora_{matrix}.default.weight" for layer in range(3) for linear in taps.LINEARS for matrix in "AB"
    }


# Laws


def test_a_later_token_changes_no_earlier_value() -> None:
    stack, first = opened(plan()), batch()
    changed = {"ids": first["ids"].copy(), "labels": first["labels"]}
    changed["ids"][:, 9] = (changed["ids"][:, 9] + 1) % LAYOUT.vocab_size
    one, other = (stack.forward(GRAPH, ["logits"], tensors).tensors["logits"] for tensors in (first, changed))
    assert one[:, :9].tobytes() == other[:, :9].tobytes()
    assert np.all((one[:, 9:] != other[:, 9:]).any(axis=2))


def test_an_adapter_with_b_zero_is_the_base_and_its_a_gets_no_gradient() -> None:
    wanted, bare = plan(), plan(lora=Lora(rank=4, alpha=10, targets=()))
    tensors = {name: np.zeros_like(tensor) if name.endswith("lora_b") else tensor for name, tensor in weights(wanted).items()}
    got = gradients(wanted, tensors)
    base = gradients(bare, {name: tensor for name, tensor in tensors.items() if "lora" not in name})
    assert got["logits"].tobytes() == base["logits"].tobytes()
    for name in graph.adapter(wanted):
        assert got[f"grad.{name}"].any() == name.endswith("lora_b"), name


@pytest.mark.parametrize(
    "changed",
    [{"rms_norm_eps": 0.02}, {"rope_theta": 6000.0}, {"num_key_value_heads": 3}, {"attention_bias": False}, {"mlp_bias": False}],
    ids=lambda changed: next(iter(changed)),
)
def test_each_field_of_the_layout_changes_the_function(changed: dict[str, Any]) -> None:
    wanted = plan(layout=changed)
    tensors = weights(plan())
    for name, (shape, _) in graph.weights(wanted).items() | graph.adapter(wanted).items():
        tensors[name] = np.resize(tensors[name], shape)
    kept = {name: tensor for name, tensor in tensors.items() if name in graph.weights(wanted) | graph.adapter(wanted)}
    assert gradients(wanted, kept)["loss"] != gradients(plan())["loss"]


# Production paths against the plain one


@pytest.mark.parametrize("dtype", DTYPES)
def test_checkpointing_changes_no_bit(dtype: str) -> None:
    plain, path = gradients(plan(dtype)), gradients(plan(dtype, paths=("checkpoint",)))
    assert all(plain[name].tobytes() == path[name].tobytes() for name in plain)


def test_checkpointing_keeps_no_activations() -> None:
    """What autograd keeps of the whole graph is what it keeps of the head, and each block's input: blocks compute the rest again."""
    ids, labels = (torch.from_numpy(tensor) for tensor in batch().values())
    head = {"input": draw(BATCH, TOKENS, LAYOUT.hidden_size).requires_grad_(), "labels": labels}
    kept: list[int] = []
    for paths in ((), ("checkpoint",)):
        wanted = plan(paths=paths)
        held, sizes = Graph(wanted, weights(wanted), CPU), Sizes()
        with torch.autograd.graph.saved_tensors_hooks(sizes.pack, lambda tensor: tensor):
            held.full_causal(ids, labels, Taps(keep={"loss"}, attached={"loss"}))
        kept.append(sizes.total)
    sizes = Sizes()
    with torch.autograd.graph.saved_tensors_hooks(sizes.pack, lambda tensor: tensor):
        held.run_section("head", head, Taps(keep={"loss"}, attached={"loss"}))
    assert kept[1] == sizes.total + LAYOUT.num_hidden_layers * head["input"].numel() < kept[0]


class Sizes:
    """How many elements autograd saved."""

    def __init__(self) -> None:
        self.total = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.total += tensor.numel()
        return tensor


@pytest.mark.parametrize("rows", [1, 2, 7, 24])
def test_the_chunked_loss_is_the_loss(rows: int) -> None:
    head, labels = draw(97, 96, seed=5), torch.arange(rows)
    if rows > 2:
        labels[1] = -100
    results = []
    for chunked in (True, False):
        x = draw(rows, 96).requires_grad_()
        if chunked:
            loss = chunked_cross_entropy(x, head, labels, ignore_index=-100)
        else:
            loss = cross_entropy(x @ head.T, labels, reduction="mean", ignore_index=-100)
        results.append((loss.detach(), *torch.autograd.grad(loss, x)))
    (loss, gradient), (plain_loss, plain_gradient) = results
    # Each row is the same, but for the order in a product's sum; the mean adds `rows` terms in another order.
    reach = gamma(2 * (96 + 97 + rows), "float64") * float((draw(rows, 96).abs() @ head.abs().T).max())
    assert abs(loss - plain_loss) <= reach
    assert bool((gradient - plain_gradient).abs().max() <= reach * head.abs().sum(0).max())
    assert gradient.any()


def test_the_chunked_loss_never_makes_all_logits() -> None:
    rows, vocabulary = 64, 5000
    shapes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                shapes.append(result.numel())
            return result

    x, head = draw(rows, 8).requires_grad_(), draw(vocabulary, 8)
    with Watch():
        torch.autograd.grad(chunked_cross_entropy(x, head, torch.arange(rows), ignore_index=-100), x)
    assert max(shapes) == 8 * vocabulary


def test_the_chunked_loss_over_no_row_or_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"all 3 labels are ignore_index \(-100\); give at least one"):
        chunked_cross_entropy(draw(3, 8), draw(9, 8), torch.full((3,), -100), ignore_index=-100)
    with pytest.raises(ValueError, match=r"is 9; allowed are 0 to 8"):
        chunked_cross_entropy(draw(3, 8), draw(9, 8), torch.tensor([1, 9, 2]), ignore_index=-100)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("block_size", [32, 64])
def test_an_nf4_base_is_its_dequantised_weights(block_size: int, double_quant: bool) -> None:
    """The plain path is the graph of the values that nf4 and its nested absmax stand for, widened exactly."""
    base = Nf4(block_size=block_size, double_quant=double_quant)
    tensors = weights(plan())
    rounded = dict(tensors)
    for name in graph.weights(plan()):
        if name.rpartition(".")[2] in taps.LINEARS:
            rounded[name] = dequantised(tensors[name], block_size, double_quant)
            assert (rounded[name] != tensors[name]).any()
    for dtype in DTYPES:
        got, expected = gradients(plan(dtype, base=base), tensors), gradients(plan(dtype), rounded)
        assert all(got[name].tobytes() == expected[name].tobytes() for name in expected)


def dequantised(weight: np.ndarray, block_size: int, double_quant: bool) -> np.ndarray:
    quantized = nf4.quantize(torch.from_numpy(weight), block_size)
    if double_quant:
        mean = nf4.offset(quantized.absmax)
        quantized = nf4.Quantized(packed=quantized.packed, absmax=nf4.unnest(*nf4.nest(quantized.absmax, mean), mean))
    shape = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    return nf4.dequantize(quantized, block_size=block_size, **shape).numpy()


@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_linear_is_the_plain_path_but_for_the_order_of_sums(double_quant: bool) -> None:
    base = Nf4(block_size=32, double_quant=double_quant)
    plain, path = gradients(plan("float32", base=base)), gradients(plan("float32", base=base, paths=("nf4_linear",)))
    wide = gradients(plan("float64", base=base))
    for name, exact in wide.items():
        own_error = np.abs(plain[name] - exact).max()
        assert np.abs(path[name] - exact).max() <= 2 * own_error + unit("float32") * np.abs(exact).max(), name


def test_nf4_weights_are_held_as_codes() -> None:
    wanted = plan("float32", base=Nf4(), paths=("nf4_linear",))
    held = Graph(wanted, weights(wanted), CPU)
    linears = [module for module in held.modules() if isinstance(module, nf4.Linear4bit)]
    assert len(linears) == 3 * len(taps.LINEARS)
    for linear in linears:
        assert linear.weight.dtype == torch.uint8
        assert linear.weight.numel() == linear.in_features * linear.out_features / 2
        codes, nested_absmax, mean = linear.absmax
        assert (codes.dtype, nested_absmax.dtype, mean.ndim) == (torch.uint8, torch.float32, 0)


def test_opening_in_float64_keeps_no_float32_copy() -> None:
    wanted = plan(layout={"vocab_size": 30000})
    tensors = weights(wanted)
    narrow = sum(tensor.nbytes for tensor in tensors.values())
    tracemalloc.start()
    Graph(wanted, tensors, CPU)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * narrow
    assert len(all_taps(wanted)) == len(taps.full_names(3, wanted.targets))
