"""The chain rule by hand, against tinygrad's own through the whole expression."""

from __future__ import annotations

import numpy as np
import pytest
from tinygrad import Tensor

from stacks.tinygrad_lora.chain import Hook, Keep, backward

pytestmark = pytest.mark.usefixtures("cpu")


def tensors() -> dict[str, Tensor]:
    generator = np.random.default_rng(2)
    return {name: Tensor(generator.standard_normal((3, 3))).realize() for name in ("x", "a", "b", "bar")}


def section(of: dict[str, Tensor], x: Tensor, hook: Hook) -> Tensor:
    """Taps that are kept, computed again, neither; one that two others follow from; a parameter that is met twice."""
    norm = hook("attention_norm", x * x + 1)
    q, v = hook("q_proj", norm @ of["a"]), hook("v_proj", norm @ of["b"])
    scores = hook("scores", q * q)
    context = hook("context", hook("context.base", scores @ v))
    return hook("output", x + context @ of["a"])


@pytest.mark.parametrize("of_input", [True, False])
def test_it_is_the_gradient_of_the_whole(of_input: bool) -> None:
    of, hook = tensors(), Keep()
    output = section(of, of["x"], hook)
    Tensor.realize(output, *hook.kept.values())
    assert set(hook.kept) == {"q_proj", "v_proj", "context"}
    parameters = {name: of[name] for name in "ab"}
    bar_x, found = backward(lambda x, own: section(of, x, own), of["x"], hook.kept, of["bar"], parameters, of_input=of_input)
    whole = section(of, of["x"], lambda name, value: value)
    expected = dict(zip("xab", whole.gradient(of["x"], of["a"], of["b"], gradient=of["bar"]), strict=True))
    assert (bar_x is not None) == of_input
    got = found if bar_x is None else {**found, "x": bar_x}
    assert set(got) == set("xab" if of_input else "ab")
    for name, gradient in got.items():
        # both in float64, in another order of a few sums
        np.testing.assert_allclose(gradient.numpy(), expected[name].numpy(), rtol=2.0**-40, atol=2.0**-40)
