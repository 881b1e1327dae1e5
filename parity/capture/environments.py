"""`parity compare-env`: what an upgrade changes. Both environments' stacks are captured, judged alike, and compared bit by bit."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from contract.errors import MissingError, UserError
from contract.worker import discover
from contract.worker.discover import StackInfo
from parity import doctor, selection
from parity.capture import bits, judged, store, take
from parity.capture.upgrade import DefectChange, Side, Upgrade, VerdictChange, VersionChange, exit_code
from parity.mutants import catalogue
from parity.options import Options, Progress
from parity.report.record import Result, Run


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """One environment's captures, by stack, and their verdicts."""

    folders: Mapping[str, Path]
    run: Run

    def index(self, stack: str) -> store.Index:
        """What was asked of a stack."""
        return store.read_index(self.folders[stack])


def compare(old: str, new: str, options: Options, progress: Progress) -> Upgrade:
    """What differs between two environments, each a virtual environment, its Python, or a stack of parity.toml.

    Raises:
        UserError: a usage error, something missing, or an unfit environment.
        HarnessError: a worker did not come up.
    """
    stacks, left_out = _common(old, new, options)
    selection.require_stacks_of_mutants(options.mutants, dict.fromkeys(stacks))
    told = _Stages(progress)
    with tempfile.TemporaryDirectory(prefix="twostack-compare-env-") as folder:
        sides = []
        for name, which in ((old, 0), (new, 1)):
            known = {stack: pair[which] for stack, pair in stacks.items()}
            folders = {stack: _capture(stack, known, Path(folder) / str(which) / stack, options, told.stage(name)) for stack in stacks}
            sides.append(
                _Taken(folders=folders, run=judged.judge(list(folders.values()), told.stage(name), waiver_file=options.waiver_file))
            )
        progress.doing("comparing bit by bit")
        return _upgrade(old, new, sides[0], sides[1], left_out)


class _Stages:
    """One bar for several things that each say how long they are."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._before, self._total = progress, 0, 0

    def stage(self, name: str) -> Progress:
        """The callbacks of the next one."""
        self._before += self._total
        self._total = 0

        def total(examples: int) -> None:
            self._total = examples
            self._progress.total(self._before + examples)

        return Progress(doing=lambda text: self._progress.doing(f"{name}: {text}"), total=total, step=self._progress.step)


def _capture(stack: str, known: Mapping[str, StackInfo], folder: Path, options: Options, progress: Progress) -> Path:
    """One stack of one environment."""
    mutants = catalogue.changing(options.mutants, (stack,))
    devices = {name: device for name, device in (options.devices or {}).items() if name == stack}
    asked = dataclasses.replace(options, stacks=(stack,), devices=devices, mutants=mutants)
    take.take(asked, folder, progress, dict(known))
    return folder


def _common(old: str, new: str, options: Options) -> tuple[dict[str, tuple[StackInfo, StackInfo]], tuple[str, ...]]:
    """Each stack in both environments; and those that neither has, which are left out unless they were asked for."""
    known = discover.discover()
    named = [known[name] for name in (old, new) if name in known]
    labels = options.stacks or tuple(dict.fromkeys(info.stack or info.name for info in named[:1])) or tuple(discover.installed())
    for name in options.devices or {}:
        if name not in labels:
            raise UserError(f"--device names {name}; compared are {', '.join(labels)}")
    found, left_out = {}, []
    for label in labels:
        pair = _in(old, label, known), _in(new, label, known)
        if not options.stacks and all(info.missing_packages() for info in pair):
            left_out.append(label)
            continue
        for info in pair:
            info.require_installed()
        found[label] = pair
    if not found:
        raise MissingError(f"neither {old} nor {new} has a stack's packages; install one, as: pip install 'twostack[torch]'")
    return found, tuple(left_out)


def _in(name: str, label: str, known: Mapping[str, StackInfo]) -> StackInfo:
    """A stack in one environment, under the name that it has in both."""
    if name in known:
        return dataclasses.replace(known[name], name=label)
    if not Path(name).exists():
        raise UserError(f"{name!r} is no stack of parity.toml, and no virtual environment is there; give one, or a Python's path")
    return discover.elsewhere(label, Path(name).absolute())


def _upgrade(old: str, new: str, before: _Taken, after: _Taken, left_out: tuple[str, ...]) -> Upgrade:
    tensors, unmatched = [], []
    for stack, folder in before.folders.items():
        for check_id in store.read_index(folder).checks:
            found = bits.compare(folder, after.folders[stack], check_id, stack)
            tensors += found.tensors
            unmatched += found.unmatched
    run, verdicts, defects = after.run, tuple(_verdicts(before.run, after.run)), tuple(_defects(before, after))
    statuses = Counter(result.status for result in run.results)
    either = {result.status for one in (before, after) for result in one.run.results}
    sides = [Side(name=name, versions={stack: _versions(taken.index(stack)) for stack in taken.folders})
             for name, taken in ((old, before), (new, after))]  # fmt: skip
    return Upgrade(
        twostack=run.twostack, machine=run.machine, tiers=run.tiers, profile=run.profile, seed=run.seed, model=run.model,
        mutants=run.mutants, old=sides[0], new=sides[1], left_out=left_out, versions=tuple(_changed(*sides)), defects=defects,
        verdicts=verdicts, statuses=dict(statuses), tensors=len(tensors), elements=sum(one.elements for one in tensors),
        bits=tuple(one for one in tensors if not one.same), unmatched=tuple(unmatched),
        exit_code=exit_code(verdicts, defects, either, bool(unmatched)),
    )  # fmt: skip


def _versions(index: store.Index) -> dict[str, str]:
    """Versions of the stack's packages, and what its probe says of more."""
    told = index.probe.get("versions", {})
    compiler = index.probe.get("compiler", {})
    found = dict(index.versions) | ({str(name): str(version) for name, version in told.items()} if isinstance(told, dict) else {})
    return found | ({"compiler": f"{compiler.get('kind')} {compiler.get('version')}"} if isinstance(compiler, dict) and compiler else {})


def _changed(old: Side, new: Side) -> Iterator[VersionChange]:
    for stack in old.versions:
        before, after = old.versions[stack], new.versions[stack]
        for package in dict.fromkeys((*before, *after)):
            was, now = before.get(package, "absent"), after.get(package, "absent")
            if was != now:
                yield VersionChange(stack=stack, package=package, old=was, new=now)


def _defects(before: _Taken, after: _Taken) -> Iterator[DefectChange]:
    known = doctor.read_defects()
    for stack in before.folders:
        was, now = (taken.index(stack).probe.get("defects", {}) for taken in (before, after))
        for name in dict.fromkeys((*was, *now)):
            what = known[name].what if name in known else "not in parity/defects.toml"
            yield DefectChange(stack=stack, defect=name, old=was.get(name), new=now.get(name), what=what)


def _verdicts(before: Run, after: Run) -> Iterator[VerdictChange]:
    was, now = ({_cell(result): result for result in run.results} for run in (before, after))
    for cell in dict.fromkeys((*was, *now)):
        one, other = was.get(cell), now.get(cell)
        if one is None or other is None or one.status is not other.status:
            shown = other or one
            yield VerdictChange(
                cell=cell, old="absent" if one is None else one.status, new="absent" if other is None else other.status,
                reason=shown.reason if shown else "",
            )  # fmt: skip


def _cell(result: Result) -> str:
    who = " + ".join(f"{stack} on {device}" for stack, device in zip(result.stacks, result.device, strict=True))
    return f"{result.id} | {result.question} | {result.dtype} | {who}"
