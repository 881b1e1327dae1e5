"""What tinygrad makes of a kernel, kept on disk: what comes back launches the same machine code in the same way."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tinygrad import Device, Tensor, codegen, helpers
from tinygrad.helpers import CACHELEVEL, NOOPT, Context
from tinygrad.renderer import Renderer
from tinygrad.uop.ops import Ops, UOp

from contract.errors import EnvironmentUnfit
from stacks.tinygrad_lora import lowered
from stacks.tinygrad_lora.lowered import TABLE, Kept, keep
from stacks.tinygrad_lora.ops import TinygradLora


class Counted:
    """tinygrad's own lowering, and which kernels were asked of it."""

    def __init__(self) -> None:
        self.asked: list[UOp] = []
        self._own = getattr(codegen.do_to_program, "own", codegen.do_to_program)

    def __call__(self, ast: UOp, renderer: Renderer) -> UOp:
        self.asked.append(ast)
        program: UOp = self._own(ast, renderer)
        return program


@pytest.fixture
def cache(cpu: TinygradLora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A cache of its own in place of the user's."""
    monkeypatch.setattr(helpers, "CACHEDB", str(tmp_path / "cache.db"))
    monkeypatch.setattr(helpers, "_db_connection", None)
    monkeypatch.setattr(helpers, "_db_tables", set())
    yield helpers.db_connection()
    helpers.db_connection().close()


def kernels(result: Tensor) -> list[UOp]:
    """The kernels that compute it, not yet lowered."""
    linear, _ = result.linear_with_vars()
    return [call.src[0] for call in linear.src if call.src[0].op is Ops.SINK]


def drawn(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32), device="CPU").realize()


KERNELS = {
    "elementwise": lambda: drawn(5, 7) * 3 + 1,
    "matmul": lambda: drawn(8, 24) @ drawn(24, 12),
    "threads": lambda: drawn(512, 1024) @ drawn(1024, 512),
    "integers": lambda: (drawn(6) > 0).cast("int32"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_what_comes_back_launches_the_same_code_in_the_same_way(name: str, cache: sqlite3.Connection) -> None:
    renderer, own = Device["CPU"].renderer, Counted()
    (ast,) = kernels(KERNELS[name]())
    fresh = Kept(own)(ast, renderer)
    again = Kept(own)(ast, renderer)
    assert len(own.asked) == 1
    assert again.arg == fresh.arg
    assert again.src[2:] == fresh.src[2:]
    assert again.src[0].arg.estimates == fresh.src[0].arg.estimates
    assert [getattr(again.to_elf(), field) for field in ("lib", "name", "target", "signature")] == [
        getattr(fresh.to_elf(), field) for field in ("lib", "name", "target", "signature")
    ]


def test_threads_are_launched_as_before(cache: sqlite3.Connection) -> None:
    (ast,) = kernels(KERNELS["threads"]())
    program = Kept(Counted())(ast, Device["CPU"].renderer)
    assert program.arg.runtimevars, "the kernel that tests several threads has one"


def test_the_numbers_are_the_same(cache: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    own, weight, x = Counted(), drawn(24, 11), drawn(9, 24)
    answers = []
    for _ in range(2):
        monkeypatch.setattr(codegen, "to_program_cache", {})
        monkeypatch.setattr("tinygrad.engine.realize.to_program_cache", codegen.to_program_cache)
        monkeypatch.setattr(codegen, "do_to_program", Kept(own))
        answers.append((x @ weight).exp().numpy())
    assert len(own.asked) == len(set(own.asked)) > 0
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.mark.parametrize("damage", ["{", "{}", "[]", '{"params": [{"slot": 0}]}'])
def test_a_damaged_entry_is_made_anew(damage: str, cache: sqlite3.Connection) -> None:
    renderer, own = Device["CPU"].renderer, Counted()
    (ast,) = kernels(KERNELS["matmul"]())
    fresh = Kept(own)(ast, renderer)
    with cache:
        cache.execute(f"UPDATE {TABLE} SET program = ?", (damage,))
    assert Kept(own)(ast, renderer).src[2:] == fresh.src[2:]
    assert len(own.asked) == 2
    (entry,) = cache.execute(f"SELECT program FROM {TABLE}").fetchone()
    assert json.loads(entry)["source"] == fresh.src[2].arg


def test_another_setting_and_another_tinygrad_lower_anew(cache: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, own = Device["CPU"].renderer, Counted()
    (ast,) = kernels(KERNELS["matmul"]())
    Kept(own)(ast, renderer)
    with Context(NOOPT=1 - NOOPT.value):
        Kept(own)(ast, renderer)
    monkeypatch.setattr(lowered, "_source_digest", lambda: "another")
    Kept(own)(ast, renderer)
    assert len(own.asked) == 3


def test_tinygrad_is_asked_once_however_often_a_device_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Counted()
    monkeypatch.setattr(codegen, "do_to_program", own)
    keep()
    keep()
    assert isinstance(codegen.do_to_program, Kept)
    assert codegen.do_to_program.own is own
    with Context(CACHELEVEL=0):
        assert CACHELEVEL.value == 0
        keep()
    assert codegen.do_to_program is own


def test_a_cache_that_gives_out_is_told(cache: sqlite3.Connection) -> None:
    (ast,) = kernels(KERNELS["matmul"]())
    kept = Kept(Counted())
    cache.close()
    with pytest.raises(EnvironmentUnfit, match=r"cache of kernels .* can't be used"):
        kept(ast, Device["CPU"].renderer)
