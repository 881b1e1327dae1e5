"""The table of operations: what an answer must hold, and which inputs are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.worker.answers import ProtocolBroken, check_answer
from contract.worker.operation import expected_answer
from contract.worker.operations import OPERATIONS

SIDES = st.integers(1, 9)
Tensors = dict[str, np.ndarray]


def zeros(dtype: str = "float32", **shapes: tuple[int, ...]) -> Tensors:
    return {name: np.zeros(shape, dtype) for name, shape in shapes.items()}


@given(rows=SIDES, inner=SIDES, columns=SIDES, dtype=st.sampled_from(["float32", "float64"]))
def test_matmul(rows: int, inner: int, columns: int, dtype: str) -> None:
    tensors = zeros(dtype, a=(rows, inner), b=(inner, columns))
    expected = {"y": ((rows, columns), dtype)}
    assert expected_answer(OPERATIONS["matmul"], {"dtype": dtype}, tensors) == expected
    gradients = {"a_grad": ((rows, inner), dtype), "b_grad": ((inner, columns), dtype)}
    tensors |= zeros(dtype, y_bar=(rows, columns))
    assert expected_answer(OPERATIONS["matmul"], {"dtype": dtype}, tensors) == expected | gradients


@pytest.mark.parametrize("bias", [False, True])
def test_linear_has_a_gradient_of_its_bias_only_with_one(bias: bool) -> None:
    tensors = zeros(x=(5, 3), weight=(4, 3), y_bar=(5, 4), **({"bias": (4,)} if bias else {}))
    expected = {"y": (5, 4), "x_grad": (5, 3), "weight_grad": (4, 3)} | ({"bias_grad": (4,)} if bias else {})
    got = expected_answer(OPERATIONS["linear"], {}, tensors)
    assert got == {name: (shape, "float32") for name, shape in expected.items()}


def test_frozen_inputs_have_no_gradient() -> None:
    tensors = zeros(x=(5, 3), weight=(4, 3), y_bar=(5, 4), bias=(4,))
    got = expected_answer(OPERATIONS["linear"], {"frozen": ["weight", "bias"]}, tensors)
    assert got == {"y": ((5, 4), "float32"), "x_grad": ((5, 3), "float32")}


def test_cross_entropy_answers_a_scalar() -> None:
    tensors = zeros("float64", logits=(5, 7), loss_bar=()) | zeros("int64", labels=(5,))
    attrs = {"dtype": "float64", "reduction": "sum", "ignore_index": -100}
    assert expected_answer(OPERATIONS["cross_entropy"], attrs, tensors) == {"loss": ((), "float64"), "logits_grad": ((5, 7), "float64")}


@given(rows=SIDES, columns=SIDES, block_size=st.sampled_from([2, 32, 64]))
def test_nf4_quantize_counts_blocks_and_bytes_up(rows: int, columns: int, block_size: int) -> None:
    elements = rows * columns
    expected = {
        "codes": ((elements,), "uint8"),
        "packed": (((elements + 1) // 2,), "uint8"),
        "absmax": (((elements + block_size - 1) // block_size,), "float32"),
    }
    assert expected_answer(OPERATIONS["nf4_quantize"], {"block_size": block_size}, zeros(weight=(rows, columns))) == expected


@pytest.mark.parametrize(("blocks", "nested"), [(1, 1), (255, 1), (256, 1), (257, 2), (513, 3)])
def test_nf4_nest_shares_one_nested_absmax_among_256_blocks(blocks: int, nested: int) -> None:
    expected = {"absmax_codes": ((blocks,), "uint8"), "nested_absmax": ((nested,), "float32")}
    assert expected_answer(OPERATIONS["nf4_nest"], {}, zeros(absmax=(blocks,), offset=())) == expected
    unnested = zeros("uint8", absmax_codes=(blocks,)) | zeros(nested_absmax=(nested,), offset=())
    assert expected_answer(OPERATIONS["nf4_unnest"], {}, unnested) == {"absmax": ((blocks,), "float32")}


NF4 = {"block_size": 64, "out_features": 5, "in_features": 39}  # 195 elements: 98 bytes, 4 blocks


def test_nf4_dequantize_and_linear() -> None:
    stored = zeros("uint8", packed=(98,)) | zeros(absmax=(4,))
    assert expected_answer(OPERATIONS["nf4_dequantize"], NF4, stored) == {"weight": ((5, 39), "float32")}
    tensors = stored | zeros(x=(3, 39), y_bar=(3, 5), bias=(5,))
    assert expected_answer(OPERATIONS["nf4_linear"], NF4, tensors) == {"y": ((3, 5), "float32"), "x_grad": ((3, 39), "float32")}


ROWS, WIDTH = (5, 6), (6,)
SEQUENCES, GROUPS = (2, 4, 5, 6), (2, 2, 5, 6)
PARAMETERS = dict.fromkeys(("weight", "gradient", "m", "v"), (9,))

PRIMITIVES: list[tuple[str, dict[str, object], Tensors, dict[str, tuple[int, ...]]]] = [
    (
        "embedding",
        {},
        zeros(weight=(11, 6), y_bar=ROWS) | zeros("int64", ids=(5,)),
        {"y": ROWS, "weight_grad": (11, 6)},
    ),
    ("rms_norm", {"eps": 1e-5}, zeros(x=ROWS, weight=WIDTH, y_bar=ROWS), {"y": ROWS, "x_grad": ROWS, "weight_grad": WIDTH}),
    (
        "layer_norm",
        {"eps": 1e-5},
        zeros(x=ROWS, weight=WIDTH, bias=WIDTH, y_bar=ROWS),
        {"y": ROWS, "x_grad": ROWS, "weight_grad": WIDTH, "bias_grad": WIDTH},
    ),
    (
        "rope",
        {"theta": 1e4, "scaling": None},
        zeros(x=SEQUENCES, y_bar=SEQUENCES) | zeros("int64", positions=(2, 5)),
        {"y": SEQUENCES, "x_grad": SEQUENCES},
    ),
    (
        "rope_tables",
        {"head_dim": 6, "theta": 1e4, "scaling": None},
        zeros("int64", positions=(5,)),
        {"cos": ROWS, "sin": ROWS},
    ),
    ("softmax", {}, zeros(x=ROWS, y_bar=ROWS), {"y": ROWS, "x_grad": ROWS}),
    (
        "attention",
        {"window": 3},
        zeros(q=SEQUENCES, k=GROUPS, v=GROUPS, context_bar=SEQUENCES) | zeros("bool", valid=(2, 5)),
        {"context": SEQUENCES, "q_grad": SEQUENCES, "k_grad": GROUPS, "v_grad": GROUPS},
    ),
    ("silu", {}, zeros(x=(7,), y_bar=(7,)), {"y": (7,), "x_grad": (7,)}),
    ("gelu", {"approximate": "tanh"}, zeros(x=(7,), y_bar=(7,)), {"y": (7,), "x_grad": (7,)}),
    ("swiglu", {}, zeros(gate=ROWS, up=ROWS, y_bar=ROWS), {"y": ROWS, "gate_grad": ROWS, "up_grad": ROWS}),
    (
        "lora_linear",
        {"alpha": 8, "rslora": True, "dropout": 0.5},
        zeros(x=ROWS, weight=(4, 6), bias=(4,), lora_a=(3, 6), lora_b=(4, 3), y_bar=(5, 4)) | zeros("bool", keep=ROWS),
        {"y": (5, 4), "x_grad": ROWS, "lora_a_grad": (3, 6), "lora_b_grad": (4, 3)},
    ),
    ("clip_gradients", {"max_norm": 1.0}, zeros(a=(3, 4), b=(5,)), {"norm": (), "a_clipped": (3, 4), "b_clipped": (5,)}),
    (
        "adamw_step",
        {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1},
        zeros(**PARAMETERS) | zeros("int64", step=()),
        {"weight_next": (9,), "m_next": (9,), "v_next": (9,), "step_next": ()},
    ),
]
LARGEST = {op: tensors for op, _, tensors, _ in PRIMITIVES}
each_primitive = pytest.mark.parametrize(("op", "attrs", "tensors", "shapes"), PRIMITIVES, ids=list(LARGEST))


@each_primitive
def test_a_primitive_with_all_that_it_takes(
    op: str, attrs: dict[str, object], tensors: Tensors, shapes: dict[str, tuple[int, ...]]
) -> None:
    operation = OPERATIONS[op]
    assert set(tensors) == set(operation.inputs) | set(operation.cotangents()), "the largest request"
    assert set(attrs) == operation.attributes
    wide = {name: array.astype("float64") if array.dtype == "float32" else array for name, array in tensors.items()}
    for dtype, sent in (("float32", tensors), ("float64", wide)):
        expected = {name: (shape, "int64" if name == "step_next" else dtype) for name, shape in shapes.items()}
        assert expected_answer(operation, {**attrs, "dtype": dtype}, sent) == expected


@each_primitive
def test_a_primitive_without_what_it_can_do_without(
    op: str, attrs: dict[str, object], tensors: Tensors, shapes: dict[str, tuple[int, ...]]
) -> None:
    """No cotangent, no gradients; and none of the optional inputs."""
    operation = OPERATIONS[op]
    least = {name: array for name, array in tensors.items() if name in operation.inputs and not operation.inputs[name].optional}
    assert set(expected_answer(operation, attrs, least)) == {name for name in shapes if not name.endswith("_grad")}
    for name in least:
        with pytest.raises(ValueError, match=f"{op}: input '{name}' is missing"):
            expected_answer(operation, attrs, {other: array for other, array in least.items() if other != name})


@pytest.mark.parametrize(("op", "attrs", "tensors"), [one[:3] for one in PRIMITIVES if one[0] != "rope_tables"])
def test_no_tensor_may_be_longer_than_the_others_have_it(op: str, attrs: dict[str, object], tensors: Tensors) -> None:
    """Each axis that another tensor has, too; the tables' positions are alone."""
    operation = OPERATIONS[op]
    specs = {**operation.inputs, **operation.cotangents()}
    letters = [letter for spec in specs.values() for letter in spec.dims]
    for name, array in tensors.items():
        for axis, letter in enumerate(specs[name].dims):
            if letters.count(letter) > 1:
                longer = np.concatenate([array, np.take(array, [0], axis)], axis)
                with pytest.raises(ValueError, match=rf"{op}: .* has {letter} = \d+, .*must agree"):
                    expected_answer(operation, attrs, {**tensors, name: longer})


def test_adamw_in_8_bits_takes_float32_alone() -> None:
    operation, attrs = OPERATIONS["adamw_8bit_step"], {"lr": 1.0, "beta1": 0.5, "beta2": 0.5, "eps": 1.0, "weight_decay": 0.0}
    tensors = {**zeros(weight=(5,), gradient=(5,), m=(5,), v=(5,)), "step": np.zeros((), np.int64)}
    after = dict.fromkeys(("weight_next", "m_next", "v_next"), ((5,), "float32"))
    assert expected_answer(operation, attrs, tensors) == {**after, "step_next": ((), "int64")}
    wide = {name: array.astype("float64") if array.dtype == "float32" else array for name, array in tensors.items()}
    with pytest.raises(ValueError, match="weight is float64, must be float32"):
        expected_answer(operation, {**attrs, "dtype": "float64"}, wide)


def test_the_primitives_are_all_here() -> None:
    """An operation that is added to the table is added to this one, or tested by itself above."""
    alone = {"matmul", "linear", "cross_entropy", "elementary", "adamw_8bit_step"}
    alone |= {name for name in OPERATIONS if name.startswith("nf4_")}
    assert {one[0] for one in PRIMITIVES} == set(OPERATIONS) - alone


@pytest.mark.parametrize(
    ("op", "attrs", "tensors", "why"),
    [
        ("matmul", {"transposed": True}, zeros(a=(2, 3), b=(3, 4)), r"unknown attribute \['transposed'\]; allowed: \['dtype', 'frozen'\]"),
        ("elementary", {"frozen": []}, zeros(x=(3,)), r"unknown attribute \['frozen'\]; allowed: \['dtype', 'function'\]"),
        (
            "linear",
            {"frozen": ["y"]},
            zeros(x=(2, 3), weight=(4, 3), y_bar=(2, 4)),
            r"frozen is \['y'\], must be a list of names from \['x'",
        ),
        ("linear", {"frozen": "x"}, zeros(x=(2, 3), weight=(4, 3), y_bar=(2, 4)), "frozen is 'x', must be a list"),
        ("matmul", {}, zeros(a=(2, 3)), "input 'b' is missing"),
        ("matmul", {}, zeros(a=(2, 3), b=(3, 4), c=(1,)), "unknown input 'c'; allowed"),
        ("matmul", {}, zeros(a=(2, 3), b=(4, 5)), "b has K = 4, another tensor has K = 3"),
        ("matmul", {}, zeros(a=(2, 3), b=(3,)), r"b has shape \[3\], must have 2 dimensions"),
        ("matmul", {}, zeros("float64", a=(2, 3), b=(3, 4)), "a is float64, must be float32"),
        ("matmul", {"dtype": "float64"}, zeros(a=(2, 3), b=(3, 4)), "a is float32, must be float64"),
        ("matmul", {}, zeros(a=(2, 3), b=(3, 4), y_bar=(4, 2)), "y_bar has M = 4, another tensor has M = 2"),
        ("linear", {}, zeros(x=(2, 3), weight=(4, 3), bias=(3,)), "bias has O = 3, another tensor has O = 4"),
        ("cross_entropy", {}, zeros(logits=(2, 3), labels=(2,)), "labels is float32, must be int64"),
        ("elementary", {"function": "exp"}, zeros(x=(3,), y_bar=(3,)), "unknown input 'y_bar'"),
        ("embedding", {}, zeros(weight=(2, 3), ids=(4,)), "ids is float32, must be int64"),
        ("rope_tables", {"theta": 1e4}, zeros("int64", positions=(4,)), "attribute head_dim is None, must be an integer"),
        ("attention", {"causal": True}, zeros(q=SEQUENCES, k=GROUPS, v=GROUPS), r"unknown attribute \['causal'\]; allowed: \['dtype'"),
        ("attention", {}, zeros(q=SEQUENCES, k=GROUPS, v=GROUPS, valid=(2, 5)), "valid is float32, must be bool"),
        ("attention", {}, zeros(q=(1, 4, 2, 6), k=(1, 3, 2, 6), v=(1, 3, 2, 6)), "q has 4 heads, k and v have 3; allowed: .* multiple"),
        ("attention", {}, zeros(q=(1, 4, 2, 6), k=(1, 0, 2, 6), v=(1, 0, 2, 6)), "q has 4 heads, k and v have 0; allowed: "),
        ("rope", {"theta": 1e4}, zeros(x=(1, 2, 3, 5)) | zeros("int64", positions=(1, 3)), "head_dim is 5; allowed: an even number"),
        ("rope_tables", {"theta": 1e4, "head_dim": 3}, zeros("int64", positions=(4,)), "head_dim is 3; allowed: an even number"),
        ("rope_tables", {"theta": 1e4, "head_dim": 2**40}, zeros("int64", positions=(4,)), "head_dim is 1099511627776; allowed: "),
        ("lora_linear", {}, zeros(x=(2, 3), weight=(4, 3), lora_a=(0, 3), lora_b=(4, 0)), "rank 0; allowed: 1 and more"),
        ("softmax", {"frozen": [["x"]]}, zeros(x=(2, 3), y_bar=(2, 3)), r"frozen is \[\['x'\]\], must be a list of names"),
        (
            "lora_linear",
            {"frozen": ["weight"]},
            LARGEST["lora_linear"],
            r"frozen is \['weight'\], must be a list of names from \['x', 'lora_a'",
        ),
        ("adamw_step", {"amsgrad": True}, LARGEST["adamw_step"], r"unknown attribute \['amsgrad'\]"),
        ("nf4_quantize", {}, zeros(weight=(2, 3)), "attribute block_size is None, must be an integer"),
        ("nf4_quantize", {"block_size": 0}, zeros(weight=(2, 3)), "attribute block_size is 0"),
        ("nf4_quantize", {"block_size": "64"}, zeros(weight=(2, 3)), "attribute block_size is '64'"),
        ("nf4_quantize", {"block_size": True}, zeros(weight=(2, 3)), "attribute block_size is True"),
        ("nf4_dequantize", {"block_size": 64}, zeros("uint8", packed=(9,)) | zeros(absmax=(1,)), "attribute in_features is None"),
        ("nf4_dequantize", NF4, zeros("uint8", packed=(97,)) | zeros(absmax=(4,)), "has P = 97, the others make it 98"),
        ("nf4_dequantize", NF4, zeros("uint8", packed=(98,)) | zeros(absmax=(3,)), "has B = 3, the others make it 4"),
        ("nf4_linear", NF4, zeros("uint8", packed=(98,)) | zeros(absmax=(4,), x=(2, 38)), "x has I = 38, another tensor has I = 39"),
        ("nf4_unnest", {}, zeros("uint8", absmax_codes=(257,)) | zeros(nested_absmax=(1,), offset=()), "has S = 1, the others make it 2"),
    ],
)
def test_unsound_requests_are_refused(op: str, attrs: Mapping[str, object], tensors: Tensors, why: str) -> None:
    with pytest.raises(ValueError, match=f"{op}: .*{why}"):
        expected_answer(OPERATIONS[op], attrs, tensors)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_the_table_is_consistent(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation.name == name
    assert set(operation.gradients) <= set(operation.inputs)
    assert not set(operation.outputs) & set(operation.inputs)
    assert all(operation.inputs[gradient].dtype == "work" for gradient in operation.gradients)
    assert bool(operation.cotangents()) == bool(operation.gradients)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda answer: {}, r"answered y as nothing, must be float32\[2, 4\]"),
        (lambda answer: {**answer, "z": answer["y"]}, r"answered z as float32\[2, 4\], must be nothing"),
        (lambda answer: {"y": answer["y"].T}, r"answered y as float32\[4, 2\]"),
        (lambda answer: {"y": answer["y"].astype(np.float16)}, r"answered y as float16\[2, 4\]"),
        (lambda answer: {"y": answer["y"][None]}, r"answered y as float32\[1, 2, 4\]"),
    ],
)
def test_an_answer_at_odds_is_a_broken_protocol(spoil: Callable[[Tensors], Tensors], why: str) -> None:
    tensors, answer = zeros(a=(2, 3), b=(3, 4)), zeros(y=(2, 4))
    check_answer("fake", "matmul", {}, tensors, answer)
    with pytest.raises(ProtocolBroken, match=why):
        check_answer("fake", "matmul", {}, tensors, spoil(answer))
