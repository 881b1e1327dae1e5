"""What `finetune generate` reads, shows while a stack writes, and says at the end."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from contract.commands.two_interrupts import TwoInterrupts, Watch
from contract.data.tokenizers import Tokenizer
from contract.errors import ContractError, ContractErrors, Interrupted, UserError, printable
from contract.reading import bytes_of, validated
from contract.run.generation import REQUEST, Asked, Prepared
from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.generation import Answer, Generated
from contract.worker.process import StackProcess

MAX_BYTES = 2**24
"""Of a prompt file."""

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for a letter of which a part is still to come."""


def prompts_of(given: list[str], path: Path | None) -> list[str]:
    """The prompts of the command line, then those of a file, a line each; empty lines are left out.

    Raises:
        ContractError: the file is not there, too large, or not UTF-8.
    """
    if path is None:
        return given
    content = _standard_input() if str(path) == "-" else bytes_of(path, limit=MAX_BYTES, remedy="give a file of prompts")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte {content[error.start]:#04x} at offset {error.start}"
        raise ContractError(str(path), got=got, allowed="UTF-8", remedy="save it as UTF-8") from None
    return given + [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def _standard_input() -> bytes:
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ContractError("standard input", got=f"over {MAX_BYTES:,} bytes", allowed="no more", remedy="give fewer prompts at a time")
    return content


_NO_MEMORY = "no memory is left ({message}); give fewer prompts at a time, lower --max-new-tokens, or hold the base with --base nf4"
_WORDS = {"EnvironmentUnfit": "{message}", "MemoryError": _NO_MEMORY, "OutOfMemory": _NO_MEMORY}
"""What a user can put right, by the class of a worker's error."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of it. interrupted: Ctrl-C ended it early. streamed: the text was shown already."""

    answer: Answer
    interrupted: bool
    streamed: bool


def run(prepared: Prepared, *, stream: bool) -> Done:
    """Has a stack answer; tells meanwhile how far it is.

    Args:
        stream: the text of a single prompt goes to standard output as it comes.

    Raises:
        Exit: the stack refuses the request, and said why.
        UserError: it failed, or its worker did.
        Interrupted: a second Ctrl-C came.
    """
    stack = prepared.stack
    try:
        with StackProcess(stack.name, stack.command, prepared.device) as process, _View(prepared, stream=stream) as view:
            with TwoInterrupts() as interrupts:
                watch = Watch(process, interrupts, show=view.show)
                answer = process.submit(REQUEST, prepared.request.model_dump(mode="json")).result(watch)
            view.finish()
            found = _answer(answer.values, stack.name)
            return Done(answer=found, interrupted=watch.cancelled, streamed=view.streamed)
    except KeyboardInterrupt:
        raise Interrupted("ended at once") from None
    except RequestFailed as error:
        if error.error_class in ("ContractError", "ContractErrors", "MissingError", "NotSupported"):
            for line in error.message.splitlines():
                typer.echo(f"finetune: {printable(line)}", err=True)
            raise typer.Exit(2) from None
        raise UserError(_WORDS.get(error.error_class, "{error}").format(error=error, message=error.message)) from None
    except HarnessError as error:
        raise UserError(str(error)) from None


def _answer(values: Mapping[str, Any], stack: str) -> Answer:
    try:
        return validated(Answer, values, f"the answer of {stack}", remedy="see to the stack")
    except (ContractError, ContractErrors) as error:  # no fault of the user's
        raise UserError(str(error)) from None


class TextStream:
    """Text that grows with its ids: what is settled of it, so that no letter is shown in halves."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""

    def add(self, ids: list[int], *, last: bool = False) -> str:
        """The text that came to be settled with these ids."""
        self._ids += ids
        text = self._tokenizer.decode(self._ids)
        settled = text if last else text.rstrip(_UNFINISHED)
        if not settled.startswith(self._shown):
            return ""
        new, self._shown = settled[len(self._shown) :], settled
        return new


class _View:
    """What is seen while a stack writes: a bar on standard error, and of a single sequence its text on standard output as it comes."""

    def __init__(self, prepared: Prepared, *, stream: bool) -> None:
        request = prepared.request
        self._text = TextStream(prepared.tokenizer) if stream and len(request.prompts) == 1 else None
        self._stop, self._most, self._new = frozenset(request.stop), request.max_new_tokens * len(request.prompts), 0
        self._exits = ExitStack()
        self._bar: Callable[[str, int, int], None] | None = None
        self.streamed = False

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def show(self, values: Mapping[str, Any]) -> None:
        """A progress frame."""
        for stage, name in (("weights", "loaded"), ("kernels", "compiled")):
            if name in values and not self.streamed:
                self._report(stage, values[name], values["of"])
        new = values.get("new", ())
        self._new += len(new)
        if new and self._text is None:
            self._report("tokens", self._new, self._most)
        elif new and self._text is not None:
            self._exits.close()  # a bar and a text on one terminal would write over each other
            self.streamed = True
            write(self._text.add([token for _, token in new if token not in self._stop]))

    def finish(self) -> None:
        """What was held back of the text, for it might have gone on."""
        if self._text is not None and self.streamed:
            write(self._text.add([], last=True))

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = self._exits.enter_context(counts())
        self._bar(stage, done, total)


@contextmanager
def counts() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage on standard error, with what is done a second and the time left; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


def write(text: str) -> None:
    """A model's text on standard output at once; to a terminal without what is no text to it, such as escape sequences."""
    if sys.stdout.isatty():
        text = "".join(letter if letter in "\n\t" else printable(letter) for letter in text)
    sys.stdout.write(text)  # typer.echo takes some escape sequences out of what is no terminal's: a file gets the text as it is
    sys.stdout.flush()


def tell(asked: Asked, prepared: Prepared, answer: Answer, *, as_json: bool, streamed: bool) -> None:
    """The texts, unless they were shown already, and what can be said of them, on standard error; or all of it as JSON."""
    if as_json:
        typer.echo(json.dumps(_report(asked, prepared, answer), indent=2, ensure_ascii=False))
        return
    texts = [_text(prepared, one) for one in answer.sequences]
    if streamed:
        typer.echo("")
    else:
        for number, (text, prompt) in enumerate(zip(texts, asked.prompts, strict=True), start=1):
            if len(texts) > 1:
                typer.echo(f"--- {number}: {printable(prompt.splitlines()[0][:60])}")
            write(text + "\n")
    for note in (*prepared.left_out, *answer.notes):
        typer.echo(f"note: {printable(note)}", err=True)
    typer.echo(_summary(answer), err=True)


def _summary(answer: Answer) -> str:
    new = sum(len(one.ids) for one in answer.sequences)
    ended = Counter(one.finish for one in answer.sequences)
    how = ", ".join(f"{count} ended by {reason}" for reason, count in sorted(ended.items()))
    rate = f", {new / answer.seconds:.1f} tokens/s" if answer.seconds > 0 else ""
    compiling = f"; making kernels took {answer.compile_seconds:.1f} s" if answer.compile_seconds else ""
    return f"{new} tokens in {answer.seconds:.1f} s{rate}; loading took {answer.load_seconds:.1f} s{compiling}; {how}"


def _text(prepared: Prepared, one: Generated) -> str:
    """The text of a sequence's new ids, without the one that ended it."""
    ids = one.ids[:-1] if one.finish == "stop" else one.ids
    return prepared.tokenizer.decode(ids)


def _report(asked: Asked, prepared: Prepared, answer: Answer) -> dict[str, Any]:
    request, new = prepared.request, sum(len(one.ids) for one in answer.sequences)
    return {
        "model": asked.model,
        "adapter": request.adapter,
        "base": request.base,
        "stack": prepared.stack.name,
        "device": prepared.device,
        "dtype": request.dtype,
        "template": asked.template,
        "tokenizer": asked.tokenizer,
        "max_new_tokens": request.max_new_tokens,
        "sampling": request.sampling.model_dump(),
        "load_seconds": answer.load_seconds,
        "compile_seconds": answer.compile_seconds,
        "seconds": answer.seconds,
        "tokens_per_second": new / answer.seconds if answer.seconds > 0 else None,
        "notes": [*prepared.left_out, *answer.notes],
        "sequences": [
            {"prompt": prompt, "prompt_tokens": len(ids), "ids": list(one.ids), "text": _text(prepared, one), "finish": one.finish}
            for prompt, ids, one in zip(asked.prompts, request.prompts, answer.sequences, strict=True)
        ],
    }
