"""Which checks one set of workers is asked in turn."""

from __future__ import annotations

import os
import threading

import pytest

from parity import jobs
from parity.checks import graph, registry


def test_every_check_is_asked_once() -> None:
    found = [check.id for group in jobs.groups(registry.CHECKS) for check in group]
    assert sorted(found) == sorted(check.id for check in registry.CHECKS)


def test_real_checkpoints_are_asked_one_after_another_and_first() -> None:
    first, *others = jobs.groups(registry.CHECKS)
    assert {check.id for check in first} == set(graph.OF_A_MODEL)
    assert not any(check.id in graph.OF_A_MODEL for group in others for check in group)


def test_graphs_of_an_architecture_stay_together() -> None:
    of_llama = [group for group in jobs.groups(registry.CHECKS) if any(check.id == "c.llama" for check in group)]
    assert len(of_llama) == 1
    assert {check.model_types for check in of_llama[0]} == {frozenset({"llama"})}


def test_an_error_of_one_set_is_the_run_s() -> None:
    begun = threading.Event()

    class Sound:
        def run(self, check: object, cells: object) -> list[object]:
            assert begun.wait(60), "the second set was asked nothing"
            return []

    class Broken:
        def run(self, check: object, cells: object) -> list[object]:
            begun.set()
            raise RuntimeError("of the second set")

    checks = [check for check in registry.CHECKS if check.tier == "A"]
    with pytest.raises(RuntimeError, match="of the second set"):
        jobs.ask([Sound(), Broken()], checks, [], lambda text: None)  # type: ignore[list-item]


@pytest.mark.parametrize(("cores", "room", "sets"), [(1, 9, 1), (2, 9, 2), (64, 9, jobs.MOST), (8, 1, 1), (8, 0, 1)])
def test_cores_and_memory_limit_how_many(monkeypatch: pytest.MonkeyPatch, cores: int, room: int, sets: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.setattr(jobs, "_room", lambda: room)
    assert jobs.usual() == sets
