"""`parity doctor`: what is installed, what works here, which known defects show, and what to do."""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from packaging.specifiers import SpecifierSet
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contract.errors import MissingError, UserError
from contract.model import zoo
from contract.worker import discover
from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.discover import StackInfo
from contract.worker.files import cache_folder
from contract.worker.process import StackProcess
from parity.checks import real_weights

_DEFECTS = Path(__file__).with_name("defects.toml")
_AT_ONCE = 2
"""Workers that start at the same time; each loads a framework."""


class Defect(BaseModel):
    """A known defect of a dependency (parity/defects.toml)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: str
    versions: str
    stack: str
    what: str
    guard: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """Whether a stack runs on a device, and what it found there."""

    stack: str
    device: str
    works: bool
    is_default: bool
    probe: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class DefectReport:
    """A known defect of an installed version: whether it shows here (None where no probe could tell)."""

    name: str
    defect: Defect
    version: str
    shows: bool | None


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Everything that the doctor found."""

    machine: str
    stacks: dict[str, StackInfo]
    devices: tuple[DeviceReport, ...]
    defects: tuple[DefectReport, ...]
    model: str
    cache: str
    unfit: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """5 where this machine can't run a stack's default device or write its cache; 4 where something is not installed; else 0."""
        return 5 if self.unfit else 4 if self.missing else 0


def read_defects() -> dict[str, Defect]:
    """The known defects by name."""
    return {name: Defect.model_validate(table) for name, table in tomllib.loads(_DEFECTS.read_text(encoding="utf-8")).items()}


def examine() -> Examination:
    """Starts every installed stack on every device that it declares, and asks it what it finds."""
    stacks = discover.discover()
    absent = {name: _not_installed(info) for name, info in stacks.items()}
    pairs = [(info, device) for name, info in stacks.items() if not absent[name] for device in info.capabilities.devices]
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        devices = tuple(pool.map(lambda pair: _try_device(*pair), pairs))
    model, model_missing = _model()
    cache, cache_unfit = _cache()
    missing = [f"{name}: {problem}" for name, problem in absent.items() if problem]
    here = [one for one in devices if stacks[one.stack].python is None]
    unfit = [f"{one.stack} on {one.device}: {one.problem}" for one in devices if one.is_default and not one.works]
    return Examination(
        machine=f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        stacks=stacks, devices=devices, defects=tuple(_defects(here)), model=model, cache=cache,
        unfit=(*unfit, *cache_unfit), missing=(*missing, *model_missing),
    )  # fmt: skip


def _not_installed(info: StackInfo) -> str:
    """Why a stack is not installed, and what to do; empty where it is."""
    try:
        info.require_installed()
    except MissingError as error:
        return str(error)
    return ""


def show(found: Examination, console: Console) -> int:
    """Prints an examination; returns the exit code."""
    console.print(Text(found.machine))
    console.print(_stack_table(found))
    console.print(_device_table(found))
    console.print(_defect_table(found))
    console.print(Text(f"model   {found.model}\ncache   {found.cache}"))
    for problem in (*found.unfit, *found.missing):
        console.print(Text(f"to do   {problem}", style="bold red"))
    if found.exit_code == 0:
        console.print(Text("ready   parity run --tier A,B", style="bold green"))
    return found.exit_code


def _try_device(info: StackInfo, device: str) -> DeviceReport:
    """Starts the stack there and multiplies two numbers."""
    default = device == info.capabilities.devices[0]
    one = np.ones((1, 1), dtype=np.float32)
    process = StackProcess(info.name, info.command, device)
    try:
        process.start()
        answer = process.compute("matmul", {"dtype": "float32"}, {"a": one, "b": 2 * one})
        probe = process.request("probe").values
    except (RequestFailed, HarnessError) as error:
        problem = error.message if isinstance(error, RequestFailed) else str(error)
        return DeviceReport(stack=info.name, device=device, works=False, is_default=default, problem=problem)
    finally:
        process.close()
    right = bool(answer.tensors["y"][0, 0] == 2)
    problem = "" if right else f"computed 1 x 2 = {answer.tensors['y'][0, 0]}"
    return DeviceReport(stack=info.name, device=device, works=right, is_default=default, probe=probe, problem=problem)


def _defects(devices: Sequence[DeviceReport]) -> Iterator[DefectReport]:
    shown: dict[str, bool] = {}
    for report in devices:
        for name, shows in report.probe.get("defects", {}).items():
            shown[name] = shown.get(name, False) or bool(shows)
    for name, defect in read_defects().items():
        installed = discover.version(defect.package)
        if installed is not None and installed in SpecifierSet(defect.versions):
            yield DefectReport(name=name, defect=defect, version=installed, shows=shown.get(name))


def _model() -> tuple[str, list[str]]:
    try:
        folder = zoo.locate(real_weights.MODEL)
    except UserError as error:
        return "not there, or damaged", [str(error)]
    return f"{real_weights.MODEL} in {folder.path}", []


def _cache() -> tuple[str, list[str]]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    return str(folder), [] if writable else [f"{folder} can't be written; give it to this user, or set XDG_CACHE_HOME"]


def _stack_table(found: Examination) -> Table:
    table = Table("stack", "lane", "packages", title="installed", title_justify="left", box=None, pad_edge=False)
    for name, info in found.stacks.items():
        try:
            packages = ", ".join(f"{package} {version}" for package, version in info.told_versions().items())
        except MissingError:
            packages = "its environment is not there"
        table.add_row(name, info.capabilities.lane, packages if info.python is None else f"{packages} ({info.python})")
    return table


def _device_table(found: Examination) -> Table:
    table = Table("stack", "device", "works", "what", title="\ndevices and compilers", title_justify="left", box=None, pad_edge=False)
    for one in found.devices:
        works = Text("yes", style="green") if one.works else Text("no", style="bold red" if one.is_default else "dim")
        table.add_row(one.stack, one.device, works, Text(_what(one)))
    return table


def _what(one: DeviceReport) -> str:
    if not one.works:
        return one.problem.splitlines()[0] if one.problem else ""
    parts = [str(one.probe.get("name", "")), ", ".join(one.probe.get("dtypes", []))]
    compiler = one.probe.get("compiler")
    if compiler:
        parts.append(f"compiler {compiler['kind']} {compiler['version']}")
    return "; ".join(part for part in (*parts, *one.probe.get("notes", [])) if part)


def _defect_table(found: Examination) -> Table:
    table = Table(
        "defect", "shows here", "what, what is done about it, and what to mind", title="\nknown defects of installed versions",
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for one in found.defects:
        shows = {True: Text("yes", style="yellow"), False: Text("no"), None: Text("not probed", style="dim")}[one.shows]
        text = f"{one.defect.package} {one.version}: {one.defect.what}. Guarded: {one.defect.guard}. Mind: {one.defect.advice}."
        table.add_row(one.name, shows, Text(text))
    return table
