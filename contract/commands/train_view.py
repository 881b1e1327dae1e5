"""How a run goes, on standard error: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from contract.errors import printable
from contract.run.device_memory import format_size

EVERY_SECONDS = 10.0

_STAGES = {
    "wait": "waiting for another run to end in this folder",
    "hash": "hashing the files",
    "rows": "reading rows",
    "pack": "packing rows",
    "load": "loading the model",
    "validate": "validating",
    "save": "saving",
}


class View:
    """What was told so far, as lines.

    values: of the latest step. validation: the losses that were measured, by the step after which they were.
    compile_seconds: of the steps so far; they are in no mean.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.values: dict[str, Any] = {}
        self.validation: dict[int, float] = {}
        self.compile_seconds = 0.0
        self._clock = clock
        self._told = clock()
        self._begun: tuple[float, int] = (clock(), 0)
        self._compiling_steps = 0

    def show(self, values: dict[str, Any]) -> None:
        """A progress frame of contract.training."""
        stage = values.get("stage")
        if stage == "begin":
            self._begun = self._clock(), int(values["step"])
            for note in values["notes"]:
                self.say(f"note: {note}")
        elif stage == "train":
            self.values = values
            step = int(values["step"])
            self.compile_seconds += float(values.get("compile_seconds", 0))
            self._compiling_steps += self._compiled()
            if values.get("validation_loss_before") is not None:
                self.validation[0] = float(values["validation_loss_before"])
            if values.get("validation_loss") is not None:
                self.validation[step] = float(values["validation_loss"])
            self.step(step, int(values["total"]))
        elif stage == "compile":
            self.compiling(str(values["what"]), int(values["calls"]), int(values["of"]))
        elif stage in _STAGES:
            self.stage(_STAGES[str(stage)], values.get("done"), values.get("of"))

    def step(self, step: int, total: int) -> None:
        """A step was done."""
        if step == total:
            self._told = 0.0  # the last one is always told
        self._now_and_then(f"step {step:,} of {total:,}: {self.line()}")

    def compiling(self, what: str, calls: int, of: int) -> None:
        """So many of the first calls at a new shape were made, which compile."""
        if calls == 0:
            self.say(f"compiling {what}: the first {of} calls are slow")

    def stage(self, words: str, done: int | None, of: int | None) -> None:
        """Something else is under way."""
        self._now_and_then(words if done is None or not of else f"{words}: {100 * done // of} %")

    def say(self, words: str) -> None:
        """A line of its own."""
        print(f"finetune: {printable(words)}", file=sys.stderr, flush=True)

    def line(self) -> str:
        """Loss, tokens a second, memory and the time left."""
        values, parts = self.values, []
        loss, memory = values.get("loss"), values.get("memory_bytes")
        parts.append("no loss" if loss is None else f"loss {loss:.4f}")
        if self.validation:
            parts.append(f"validation {self.validation[max(self.validation)]:.4f}")
        if self._compiled():
            parts.append(f"compiled for {_spelt(self.compile_seconds)}")
        else:
            parts.append(f"{values.get('tokens_per_second', 0):,.0f} tokens/s")
        if memory is not None:
            parts.append(format_size(int(memory)))
        left = self.seconds_left()
        if left is not None:
            parts.append(f"{_spelt(left)} left")
        return ", ".join(parts)

    def seconds_left(self) -> float | None:
        """By the mean of this session's steps, what comes between them counted, and those that compiled left out."""
        (since, first), step = self._begun, int(self.values.get("step", 0))
        steps = step - first - self._compiling_steps
        if steps <= 0:
            return None
        return max(0.0, self._clock() - since - self.compile_seconds) / steps * (int(self.values["total"]) - step)

    def _compiled(self) -> bool:
        """Whether the latest step compiled something: its speed is no speed of training."""
        return float(self.values.get("compile_seconds", 0)) > 0

    def _now_and_then(self, words: str) -> None:
        now = self._clock()
        if now - self._told >= EVERY_SECONDS:
            self._told = now
            self.say(words)


class _Bar(View):
    """The same as a bar of rich's."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[words]}", markup=False))
        self.bars = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self.bars.add_task("starting", total=None, words="")

    def step(self, step: int, total: int) -> None:
        self.bars.update(self._task, description=f"{step:,}/{total:,}", completed=step, total=total, words=self.line())

    def stage(self, words: str, done: int | None, of: int | None) -> None:
        if "step" in self.values:  # between two steps the bar stays what it is
            self.bars.update(self._task, words=f"{self.line()} ({words})")
        else:
            self.bars.update(self._task, description=words, completed=done or 0, total=of)

    def compiling(self, what: str, calls: int, of: int) -> None:
        words = f"compiling {what}, call {calls + 1} of {of}" if calls < of else "compiled"
        if "step" in self.values:
            self.bars.update(self._task, words=f"{self.line()} ({words})")
        else:
            self.bars.update(self._task, description=words, total=None)

    def say(self, words: str) -> None:
        self.bars.console.print(f"finetune: {printable(words)}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def view() -> Iterator[View]:
    """A bar where standard error is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield View()
        return
    shown = _Bar()
    with shown.bars:
        yield shown


def _spelt(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
