"""LoRA through peft's own modules: which linears, in which dtype, with which scale, and what they compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft.tuners import lora as peft_lora

from contract.worker import graph, taps
from contract.worker.plan import GraphPlan, Lora, Nf4
from stacks.torch_qlora import lora
from stacks.torch_qlora.graph import Graph
from tests.stacks.torch_qlora.tiny_torch_graph import GRAPH, everything_given, gradients, opened, plan, scaling, weights
from tests.stacks.torch_qlora.torch_compute import DTYPES, assert_rounded, computed, drawn

CPU = torch.device("cpu")


def held(wanted: GraphPlan) -> Graph:
    return Graph(wanted, weights(wanted), weights(wanted), CPU)


def test_a_linear_outside_the_blocks_has_masks_of_its_own() -> None:
    """By contract/data/dropout.py its layer is -1, which is no block's."""
    assert lora.site("layers.12.q_proj") == (12, "q_proj")
    assert lora.site("lm_head") == (-1, "lm_head")


@pytest.mark.parametrize("targets", [("q_proj",), ("down_proj", "v_proj"), tuple(taps.LINEARS)], ids="-".join)
def test_peft_wraps_the_targets_and_nothing_else(targets: tuple[str, ...]) -> None:
    wanted = plan(lora=Lora(rank=3, alpha=8, targets=targets))
    wrapped = {path for path, module in held(wanted).named_modules() if type(module) is peft_lora.Linear}
    assert wrapped == {f"layers.{layer}.{name}" for layer in range(3) for name in targets}
    assert lora.parameters(held(wanted)).keys() == graph.adapter(wanted).keys()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_adapter_is_the_given_one_in_the_plans_dtype(dtype: str) -> None:
    """peft's autocast of adapters to float32 must not reach them."""
    wanted = plan(dtype)
    given = weights(wanted)
    for name, parameter in lora.parameters(held(wanted)).items():
        assert parameter.dtype == {"float32": torch.float32, "float64": torch.float64}[dtype]
        assert parameter.requires_grad
        np.testing.assert_array_equal(parameter.detach().numpy(), given[name])


@pytest.mark.parametrize("base", [None, Nf4()], ids=["plain", "nf4"])
def test_everything_but_the_adapter_is_frozen(base: Nf4 | None) -> None:
    model = held(plan("float32", base=base, paths=() if base is None else ("nf4_linear",)))
    adapter = {id(parameter) for parameter in lora.parameters(model).values()}
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == adapter


@pytest.mark.parametrize(
    "given", [Lora(rank=4, alpha=10), Lora(rank=4, alpha=10, rslora=True), Lora(rank=7, alpha=2.5), Lora(rank=1, alpha=1)], ids=str
)
def test_taps_of_a_linear_are_its_formula(given: Lora) -> None:
    """base + s B (A x) with s of the contract, operation by operation: the sum bit for bit, the products within gamma."""
    wanted = plan(lora=given)
    shown, tensors = gradients(wanted), weights(wanted)
    section = "layers.1"
    for name, linear in taps.LINEARS.items():
        x = shown[f"{section}.{linear.input}"].astype(np.longdouble)
        path = f"{section}.{name}"
        assert_product(shown[f"{path}.base"], x, tensors[path], tensors[f"{path}.bias"])
        assert_product(shown[f"{path}.lora_ax"], x, tensors[f"{path}.lora_a"])
        assert_product(shown[f"{path}.lora_bax"], shown[f"{path}.lora_ax"].astype(np.longdouble), tensors[f"{path}.lora_b"])
        np.testing.assert_array_equal(shown[path], shown[f"{path}.base"] + shown[f"{path}.lora_bax"] * scaling(given))


def assert_product(got: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
    """|y - x W^T - b| <= gamma_(k + 1) (|x| |W|^T + |b|) (Higham 2002, 3.1)."""
    wide = weight.astype(np.longdouble)
    steps = (weight.shape[1] + 1) * 2.0**-53
    added = np.zeros(weight.shape[0]) if bias is None else bias
    bound = steps / (1 - steps) * (np.abs(x) @ np.abs(wide).T + np.abs(added))
    assert np.all(np.abs(got - (x @ wide.T + added)) <= bound)
    assert got.any()


def test_rslora_divides_alpha_by_the_root_of_the_rank() -> None:
    plain, root = Lora(rank=9, alpha=5), Lora(rank=9, alpha=5, rslora=True)
    scales = [{s for module in held(plan(lora=one)).modules() if isinstance(module, peft_lora.Linear) for s in module.scaling.values()}
              for one in (plain, root)]  # fmt: skip
    assert scales == [{scaling(plain)}, {scaling(root)}] == [{5 / 9}, {5 / 3}]


def test_gradients_of_the_adapter_follow_from_the_taps() -> None:
    """dB = s bar^T (A x), dA = s (bar B)^T x, summed over tokens, from a block's own cotangents."""
    wanted = plan()
    asked, tensors = everything_given(wanted, "layers.0"), weights(wanted)
    given = {name: asked[name] for name in ("input", "override.gated", "bar.down_proj")}
    got = opened(wanted).block(GRAPH, "layers.0", given).tensors
    x, bar, ax = (rows(tensor) for tensor in (given["override.gated"], given["bar.down_proj"], got["down_proj.lora_ax"]))
    b = tensors["layers.0.down_proj.lora_b"].astype(np.longdouble)
    s = scaling(wanted.lora)
    for exact, size, answer in (
        (s * bar.T @ ax, s * np.abs(bar).T @ np.abs(ax), got["grad.down_proj.lora_b"]),
        (s * (bar @ b).T @ x, s * (np.abs(bar) @ np.abs(b)).T @ np.abs(x), got["grad.down_proj.lora_a"]),
    ):
        steps = (len(bar) + bar.shape[1] + 2) * 2.0**-53
        assert np.all(np.abs(answer - exact) <= steps / (1 - steps) * size)
        assert answer.any()


def rows(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(-1, tensor.shape[-1]).astype(np.longdouble)


def test_without_targets_there_is_no_peft_module() -> None:
    model = held(plan(lora=Lora(rank=2, alpha=4, targets=())))
    assert not any(isinstance(module, peft_lora.LoraLayer) for module in model.modules())
    assert lora.parameters(model) == {}
    assert not any(parameter.requires_grad for parameter in model.parameters())


# The operation


TOKENS, INNER, OUTER, RANK = 5, 12, 9, 4


def _operands(dtype: str, *, dropped: bool, biased: bool = True) -> dict[str, np.ndarray]:
    shapes = {
        "x": (TOKENS, INNER), "weight": (OUTER, INNER), "lora_a": (RANK, INNER), "lora_b": (OUTER, RANK), "y_bar": (TOKENS, OUTER),
    } | ({"bias": (OUTER,)} if biased else {})  # fmt: skip
    given = {name: drawn(seed, *shape, dtype=dtype) for seed, (name, shape) in enumerate(shapes.items())}
    return given | ({"keep": np.random.default_rng(7).random((TOKENS, INNER)) < 0.75} if dropped else {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_operation_and_its_gradients_are_the_formula(dtype: str, biased: bool, rslora: bool, dropout: float) -> None:
    given = _operands(dtype, dropped=dropout > 0, biased=biased)
    got = computed("lora_linear", {"alpha": 10.0, "rslora": rslora, "dropout": dropout}, given, dtype)
    x, weight, a, b, bar = (given[name].astype(np.longdouble) for name in ("x", "weight", "lora_a", "lora_b", "y_bar"))
    scale = np.longdouble(10) / (2 if rslora else 4)
    share = given.get("keep", np.ones((TOKENS, INNER))) / (1 - np.longdouble(dropout))
    bias = given.get("bias", np.zeros(OUTER))

    def formula(
        x: np.ndarray, weight: np.ndarray, a: np.ndarray, b: np.ndarray, bar: np.ndarray, bias: np.ndarray
    ) -> dict[str, np.ndarray]:
        return {
            "y": x @ weight.T + bias + scale * ((x * share) @ a.T) @ b.T,
            "x_grad": bar @ weight + scale * share * (bar @ b @ a),
            "lora_a_grad": scale * (bar @ b).T @ (x * share),
            "lora_b_grad": scale * bar.T @ ((x * share) @ a.T),
        }

    exact, size = formula(x, weight, a, b, bar, bias), formula(*map(np.abs, (x, weight, a, b, bar, bias)))
    assert got.keys() == exact.keys()
    for name, array in got.items():
        assert_rounded(array, exact[name], size[name], INNER + OUTER + RANK + 8, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_b_it_is_the_base_bit_for_bit_and_a_gets_no_gradient(dtype: str) -> None:
    given = _operands(dtype, dropped=True)
    given["lora_b"][:] = 0
    got = computed("lora_linear", {"alpha": 10.0, "dropout": 0.1}, given, dtype)
    base = computed("linear", {}, {name: given[name] for name in ("x", "weight", "bias")}, dtype)
    assert got["y"].tobytes() == base["y"].tobytes()
    assert not got["lora_a_grad"].any()
    assert got["lora_b_grad"].any()


def test_frozen_operands_get_no_gradient() -> None:
    got = computed("lora_linear", {"alpha": 10.0, "frozen": ["x", "lora_b"]}, _operands("float32", dropped=False), "float32")
    assert sorted(got) == ["lora_a_grad", "y"]


@pytest.mark.parametrize(
    ("attrs", "dropped", "message"),
    [
        ({}, False, "alpha is None; allowed: a finite number above 0"),
        ({"alpha": 0}, False, "alpha is 0; allowed"),
        ({"alpha": 4, "rslora": 1}, False, "rslora is 1; allowed: true, false"),
        ({"alpha": 4, "dropout": 1.0}, True, "dropout is 1.0; allowed: a finite number of at least 0 and below 1"),
        ({"alpha": 4, "dropout": -0.5}, True, "dropout is -0.5; allowed"),
        ({"alpha": 4, "dropout": 0.25}, False, "dropout is 0.25 and keep is missing; allowed: dropout above 0 with its mask"),
        ({"alpha": 4}, True, "dropout is 0 and keep is given; allowed"),
    ],
)
def test_attributes_that_are_not_loras_are_refused(attrs: dict[str, object], dropped: bool, message: str) -> None:
    with pytest.raises(ValueError, match=f"lora_linear: {message}"):
        computed("lora_linear", attrs, _operands("float32", dropped=dropped), "float32")
