"""Which production paths a run takes, by the memory that it may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from contract.run import device_memory, memory
from contract.run.device_memory import DeviceMemory
from contract.run.survey import declared_memory
from contract.training.inputs import Run
from stacks.torch_qlora import paths
from tests.stacks.torch_qlora.tiny_torch_run import run_in

NF4: dict[str, dict[str, Any]] = {"adapter": {"method": "qlora"}, "quant": {"base": "nf4"}, "exec": {"max_vram_fraction": 0.5}}
PLAIN: dict[str, dict[str, Any]] = {"exec": {"max_vram_fraction": 0.5}}
ALWAYS = ("chunked_loss", "fused_attention", "fused_lora", "fused_elementwise")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


def needed(run: Run) -> int:
    """Bytes at the peak, on the usual paths."""
    declared = declared_memory(paths._capabilities(), "CPU")
    assert declared is not None
    return memory.estimate(run.layout, run.contract, declared).total


def chosen(run: Run, found: DeviceMemory | None, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[str, ...], str]:
    monkeypatch.setattr(device_memory, "measure", lambda device: found)
    plan, notes = paths.chosen(run, torch.device("cpu"))
    (note,) = notes
    return plan.paths, note


def of(total: int, available: int | None = None) -> DeviceMemory:
    return DeviceMemory(total=total, available=available, source="a test")


def test_nf4_weights_are_dequantised_once_where_they_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(folder, **NF4)
    room = 2 * (needed(run) + 4 * memory.linear_values(run.layout))
    got, note = chosen(run, of(room), monkeypatch)
    assert got == ALWAYS
    assert note == "paths: " + ", ".join(ALWAYS) + " (NF4 weights are dequantised once: there is memory for it)"
    assert chosen(run, of(room - 2), monkeypatch) == ((*ALWAYS, "nf4_linear"), "paths: " + ", ".join((*ALWAYS, "nf4_linear")))
    assert chosen(run, of(room, available=room // 2 - 1), monkeypatch)[0] == (*ALWAYS, "nf4_linear")
    assert chosen(run, None, monkeypatch)[0] == (*ALWAYS, "nf4_linear")


@pytest.mark.parametrize(("fields", "more"), [(NF4, ("nf4_linear",)), (PLAIN, ())], ids=["nf4", "plain"])
def test_blocks_are_computed_again_only_where_the_run_does_not_fit(
    folder: Path, fields: dict[str, dict[str, Any]], more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(folder, **fields)
    assert chosen(run, of(2 * needed(run)), monkeypatch)[0] == (*ALWAYS, *more)
    assert chosen(run, of(2 * needed(run) - 2), monkeypatch)[0] == (*ALWAYS, *more, "checkpoint")
