"""Where a check draws matrices, some are square: a transpose that is left out or put in then keeps every shape, and only values tell."""

from __future__ import annotations

from itertools import islice

from parity.checks import lora_linear, nf4_inputs, nf4_linear, norms, registry, softmax


def test_rows_and_columns_coincide_in_some_example() -> None:
    assert any(rows == width for rows, width in norms.SHAPES)
    assert any(rows == entries for rows, entries in softmax.SHAPES)
    assert any(len(set(shape)) == 1 for shape in lora_linear.SHAPES)


def test_nf4_is_asked_of_a_square_of_as_many_blocks_as_a_block_has_elements_in_every_run() -> None:
    rows, columns, block_size = nf4_inputs.SQUARE
    assert rows == columns == block_size == rows * columns // block_size
    fixed = islice(nf4_inputs.hard_and_real_weights(), len(nf4_inputs.EACH_BLOCK_SIZE) + 1)
    assert [case.inputs["float32"]["weight"].shape for case in fixed if case.attrs["block_size"] == block_size][-1] == (rows, columns)


def test_the_linear_on_nf4_meets_as_many_tokens_as_inputs_and_outputs_in_every_run() -> None:
    (check,) = nf4_linear.CHECKS
    assert check is next(one for one in registry.CHECKS if one.id == "b.linear")
    assert check.fixed_cases is not None
    inputs = next(iter(check.fixed_cases())).inputs["float32"]
    assert inputs["x"].shape == inputs["weight"].shape == inputs["y_bar"].shape
