"""A failure of a real stack, replayed in an environment in which the other stack was never installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.parity.find import partial_environment

TORCH, TINYGRAD = ("torch", "bitsandbytes", "peft"), ("tinygrad",)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("check", "mutant", "other", "own"),
    [
        ("a.softmax", "torch-primitive-softmax-in-float32", TINYGRAD, TORCH),
        ("a.softmax", "tinygrad-softmax-not-shifted", TORCH, TINYGRAD),
        ("c.proxy", "torch-proxy-root-of-layers-left-out", TINYGRAD, TORCH),
        ("c.proxy", "tinygrad-proxy-root-of-blocks-left-out", TORCH, TINYGRAD),
    ],
)
def test_a_stored_failure_replays_without_the_other_stack(
    check: str, mutant: str, other: tuple[str, ...], own: tuple[str, ...], tmp_path: Path
) -> None:
    """Exit 1 where the failing stack is, 0 with its bug taken out, 4 where it is not."""
    here = Path(sys.executable)
    red = partial_environment.run(
        here, tmp_path, "run", "--only", check, "--profile", "quick", "--mutant", mutant, "--reproducers", "red"
    )  # fmt: skip
    assert red.returncode == 1, red.stderr
    (failure,) = (tmp_path / "red").glob(f"{check}-same_function-float64-*.safetensors")

    without_other = partial_environment.make(tmp_path / "without_other", other)
    assert partial_environment.lacks(without_other, other[0])
    replayed = partial_environment.run(without_other, tmp_path, "replay", failure)
    assert (replayed.returncode, replayed.stderr) == (1, ""), replayed.stdout
    assert "FAILS AS STORED, on 1 stack asked" in replayed.stdout
    assert "answers bit for bit as then" in replayed.stdout
    mended = partial_environment.run(without_other, tmp_path, "replay", failure, "--no-mutants")
    assert (mended.returncode, mended.stderr) == (0, ""), mended.stdout

    without_own = partial_environment.make(tmp_path / "without_own", own)
    assert partial_environment.lacks(without_own, own[0])
    missing = partial_environment.run(without_own, tmp_path, "replay", failure)
    assert missing.returncode == 4, missing.stdout
    assert f"{own[0]}" in missing.stderr
    assert "not installed here; run: pip install 'twostack[" in missing.stderr
