"""A replayed failure on the terminal: one screen, what is wrong, how sure that is, and what to do next."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from contract.errors import printable
from parity.find.replay import Outcome, Replayed
from parity.find.stored import StackThen

_STYLES = {Outcome.SAME: "bold red", Outcome.OTHER: "bold magenta", Outcome.PASSES: "bold green"}
_MOST_OTHERS = 3


def show(replayed: Replayed, console: Console) -> None:
    """Prints it."""
    for line in _lines(replayed):
        console.print(line, soft_wrap=True)


def _lines(one: Replayed) -> list[Text]:
    record = one.record
    who = " and ".join(_who(stack.name, stack.device) for stack in record.stacks)
    lines = [
        Text(f"{record.check}: {one.title}", style="bold"),
        Text(f"  {record.question} in {record.dtype}, {who}; {printable(one.case)}"),
        *([Text(f"  planted: {', '.join(one.mutants)}")] if one.mutants else []),
        *_values(one),
        Text(f"  bound: {printable(record.bound_source)}"),
        *_others(one),
        *(Text(f"  {line}") for stack in record.stacks for line in _of_stack(one, stack)),
        *([Text(f"  twostack {printable(record.twostack)} then, {_own()} now")] if record.twostack != _own() else []),
        Text(f"  {_neighbour(one)}"),
        Text.assemble((_verdict(one), _STYLES[one.outcome])),
        *(Text(f"  {line}") for line in _next(one)),
    ]
    return [*lines, Text("")]


def _values(one: Replayed) -> list[Text]:
    """Where it differs most: then, and now."""
    record, now = one.record, one.found
    names = [stack.name for stack in record.stacks]
    first, second = names if len(names) == 2 and " of " not in record.failed.tensor else ("got", "wanted")
    lines = []
    for word, place, where, got, wanted, observed, bound in (
        ("then", record.place, record.where, record.got, record.wanted, record.observed, record.bound),
        *([("now", now.place or now.tensor, now.where, now.got, now.wanted, now.observed, now.bound)] if now else []),
    ):
        values = "" if got is None else f"{first} {got:.9g}, {second} {'nothing' if wanted is None else f'{wanted:.9g}'}; "
        at = f"{list(where)}" if where else ""
        lines.append(Text(f"  {word:4}  {printable(place)}{at}: {values}{record.failed.unit} {observed:.4g}, allowed {bound:.4g}"))
    return [*lines, *([Text(f"  now   {printable(one.trouble.splitlines()[0])}")] if one.trouble else [])]


def _others(one: Replayed) -> list[Text]:
    word = "also" if one.outcome is Outcome.SAME else "now"
    lines = [
        Text(f"  {word} wrong: {other.place or other.tensor}: {other.unit} {other.observed:.4g}, allowed {other.bound:.4g}")
        for other in one.others[:_MOST_OTHERS]
    ]
    more = len(one.others) - _MOST_OTHERS
    return [*lines, *([Text(f"  and {more} others")] if more > 0 else [])]


def _of_stack(one: Replayed, stack: StackThen) -> list[str]:
    """How a stack was asked, and with which packages."""
    if stack.name not in one.devices:
        guilt = "; the reference found these wrong" if stack.suspect and len(one.record.stacks) > 1 else ""
        return [f"{stack.name} was not asked: its answers are the file's ({_spelt(stack.versions)}){guilt}"]
    now, device = one.versions[stack.name], one.devices[stack.name]
    changed = [
        f"{package} {printable(then)} then, {now.get(package, 'not among its packages')} now"
        for package, then in stack.versions.items()
        if now.get(package) != then
    ]
    versions = "; ".join(changed) or f"the same packages as then: {_spelt(now)}"
    moved = f" ({stack.device} then)" if device != stack.device else ""
    same = {True: "answers bit for bit as then; ", False: "answers otherwise than then; ", None: ""}[one.as_then.get(stack.name)]
    return [f"{_who(stack.name, device)}{moved}: {same}{versions}"]


def _spelt(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {printable(version)}" for package, version in versions.items())


def _neighbour(one: Replayed) -> str:
    if one.record.neighbour is None:
        return f"no passing input beside it: {one.record.no_neighbour or 'none was stored'}"
    name = printable(str(one.record.neighbour.fields.get("name", "an input beside it")))
    if one.neighbour is None:
        return f"the input beside it was not asked ({name})"
    return f"passed then, {'FAILS now' if one.neighbour else 'passes now'}: {name}{': ' if one.neighbour else ''}{one.neighbour}"


def _verdict(one: Replayed) -> str:
    told = f"\n{one.outcome.upper()}" + (f", on {len(one.devices)} stack{'s' * (len(one.devices) > 1)} asked" if one.devices else "")
    beside = ", BUT ITS NEIGHBOUR FAILS" if one.neighbour and one.outcome is Outcome.PASSES else ""
    return f"{told}{beside}; exit {one.exit_code}"


def _next(one: Replayed) -> list[str]:
    if one.exit_code == 0:
        then = "" if one.mutants == tuple(one.record.mutants) else ", with the bugs planted as then"
        return [f"to ask all of the check{then}: {one.record.again}"]
    lines = [f"what this means: parity explain {one.record.check}"]
    if one.record.case.kind == "graph":
        planted = "".join(f" --mutant {name}" for name in one.mutants)
        model = f" --model {shlex.quote(one.record.model)}" if one.record.model else ""
        stacks = ",".join(stack.name for stack in one.record.stacks if stack.suspect)
        question = f" --question {one.record.question}"
        lines.append(
            f"which operation:  parity bisect {one.record.check}{question} --stacks {stacks} --seed {one.record.seed}{planted}{model}"
        )
    return [*lines, f"all of the check: {one.record.again}"]


def _who(stack: str, device: str) -> str:
    return stack if device == "CPU" else f"{stack} on {device}"


def _own() -> str:
    return importlib.metadata.version("twostack")
