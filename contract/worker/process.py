"""The launcher's side of the protocol: starts a worker, asks it, survives its death.

A worker that crashes, hangs or answers nonsense raises a HarnessError on the request at hand; the
next request starts a fresh process. What it wrote to standard error is kept and shown.
"""

from __future__ import annotations

import contextlib
import queue
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from contract.errors import MissingError
from contract.worker import answers, wire
from contract.worker.answers import Answer, HarnessError, NotAnAnswer, ProtocolBroken, RequestFailed, WorkerDied, WorkerHung, check_answer
from contract.worker.files import FileReference
from contract.worker.mutation import Mutation
from contract.worker.pending import Pending, Watch
from contract.worker.pipe import Frame, WorkerPipe

__all__ = [
    "Answer", "HarnessError", "Mutation", "Pending", "ProtocolBroken", "RequestFailed", "StackProcess",
    "TensorOrReference", "WorkerDied", "WorkerHung", "check_answer",
]  # fmt: skip

START_SECONDS = 120.0
REQUEST_SECONDS = 300.0
CLOSE_SECONDS = 5.0
EXIT_SECONDS = 5.0
LOG_LINES = 12

TICK_SECONDS = 0.2
"""How often a watcher is called while nothing comes: so soon it hears of Ctrl-C."""

GREETING = 0
"""Id of the frame that a worker sends unasked once its stack is made."""

Parameters = ParamSpec("Parameters")
Read = TypeVar("Read")

TensorOrReference = np.ndarray | FileReference


@dataclass
class _Process:
    """One start of a worker: its pipes, the requests that it has not answered, the answers that nobody has collected."""

    pipe: WorkerPipe
    unanswered: set[int] = field(default_factory=lambda: {GREETING})
    answered: dict[int, Frame] = field(default_factory=dict)


class StackProcess:
    """A stack in a process of its own.

    Args:
        name: the stack's name, for messages.
        command: what starts the worker; `--device DEVICE` is appended.
        mutations: bugs to plant each time a worker starts.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        device: str,
        *,
        request_seconds: float = REQUEST_SECONDS,
        start_seconds: float = START_SECONDS,
        mutations: Sequence[Mutation] = (),
    ) -> None:
        self.name, self.command, self.device = name, tuple(command), device
        self.request_seconds, self.start_seconds = request_seconds, start_seconds
        self.mutations = tuple(mutations)
        self._process: _Process | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._next_id = GREETING
        self._starts = 0
        self._ends: dict[int, str] = {}
        self.graph: str | None = None
        """What the caller knows the worker to have open (contract.worker.graph); forgotten when the worker ends."""
        self.training: str | None = None
        """The same of a training session (contract.training.stepwise)."""
        self.busy: list[tuple[int, int]] = []
        """When workers were busy with what they answered (monotonic clock, nanoseconds)."""

    def __enter__(self) -> StackProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Starts the worker, unless it runs; plants its mutations.

        Raises:
            HarnessError: it did not come up.
            RequestFailed: it came up and could not make its stack (a package is missing, say), or a mutation failed.
        """
        if self._process is not None:
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix=f"twostack-{self.name}-")
        self._starts += 1
        try:
            pipe = WorkerPipe([*self.command, "--device", self.device], self._log())
        except OSError as error:
            raise WorkerDied(f"{self.name}: could not start {self.command[0]}: {error.strerror}; check its command") from None
        self._process = _Process(pipe)
        try:
            self._greet()
            for mutation in self.mutations:
                self.request("mutate", asdict(mutation))
        except BaseException:
            self.kill()  # one without all of its mutations must never answer
            raise

    def request(
        self, request: str, values: Mapping[str, Any] | None = None, tensors: Mapping[str, TensorOrReference] | None = None
    ) -> Answer:
        """One request and its answer (see Pending.result for what is raised)."""
        return self.submit(request, values, tensors).result()

    def compute(self, op: str, attrs: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Answer:
        """One operation on arrays, its answer checked against `contract.worker.operations`.

        Raises:
            ProtocolBroken: a tensor of the answer is missing, extra, of the wrong shape or dtype.
        """
        answer = self.request("compute", {"op": op, "attrs": dict(attrs)}, tensors)
        check_answer(self.name, op, attrs, tensors, answer.tensors)
        return answer

    def submit(
        self,
        request: str,
        values: Mapping[str, Any] | None = None,
        tensors: Mapping[str, TensorOrReference] | None = None,
        *,
        seconds: float | None = None,
    ) -> Pending:
        """Sends a request without waiting for its answer; the worker answers in the order of requests.

        Args:
            seconds: how long the worker may be silent; each progress frame starts the time anew.

        Raises:
            HarnessError: the worker died, or did not take the request in time.
            WireError: the request itself can't travel; nothing was sent.
        """
        self.start()
        self._next_id += 1
        seconds = self.request_seconds if seconds is None else seconds
        for tensor_name, tensor in (tensors or {}).items():
            if not isinstance(tensor, TensorOrReference):
                raise TypeError(f"{tensor_name} is a {type(tensor).__name__}; allowed: a NumPy array (also of shape []) or a FileReference")
        arrays = {name: tensor for name, tensor in (tensors or {}).items() if isinstance(tensor, np.ndarray)}
        references = {name: tensor.fields() for name, tensor in (tensors or {}).items() if isinstance(tensor, FileReference)}
        header = {"id": self._next_id, "request": request, "values": dict(values or {}), "references": references}
        pending = Pending(self, self._next_id, header, arrays, seconds, self._starts)
        self._send(pending)
        return pending

    def collect(self, pending: Pending, watch: Watch | None = None) -> Answer:
        """Waits for the answer to `pending` (Pending.result); pending requests may be collected in any order."""
        sent: set[str] = set()
        while True:
            header, tensors = self._wait(pending, watch)
            if header["status"] == "ok":
                answer = self._read(answers.answer_of, header, tensors)
                self.busy.append(answer.busy_ns)
                return answer
            sha256 = str(header.get("sha256"))
            if sha256 in sent:
                raise self._broken(f"asked again for the file with SHA-256 {sha256}, which it was sent")
            self._send_file(sha256, pending.header["references"])
            sent.add(sha256)
            self._send(pending)

    def log_tail(self) -> str:
        """The last lines that the worker wrote to standard error."""
        if self._folder is None or not self._log().exists():
            return ""
        return "\n".join(self._log().read_text(errors="replace").splitlines()[-LOG_LINES:])

    def kill(self) -> None:
        """Ends the worker and its children at once."""
        self.graph = self.training = None
        if self._process is not None:
            process, self._process = self._process, None
            process.pipe.kill()

    def close(self) -> None:
        """Asks the worker to end, and ends it; its log goes too. A later request starts a new one."""
        if self._process is not None and not self._process.unanswered:
            with contextlib.suppress(HarnessError, RequestFailed):
                self.submit("close", seconds=CLOSE_SECONDS).result()
        self.kill()
        if self._folder is not None:
            folder, self._folder = self._folder, None
            folder.cleanup()

    def _log(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"worker-{self._starts}.log"

    def _greet(self) -> None:
        """The worker's first frame says that its stack is made, and which protocol it speaks."""
        header, _ = self._wait(Pending(self, GREETING, {"request": "start"}, {}, self.start_seconds, self._starts))
        values = header.get("values")
        protocol = values.get("protocol") if isinstance(values, dict) else None
        if header["status"] != "ok" or protocol != wire.PROTOCOL:
            raise self._broken(f"speaks protocol {protocol!r}, allowed is {wire.PROTOCOL}; install matching versions on both sides")

    def _send(self, pending: Pending) -> None:
        assert self._process is not None
        parts = wire.encode(pending.header, pending.tensors)
        self._process.unanswered.add(pending.request_id)
        try:
            self._process.pipe.write(parts, pending.seconds)
        except TimeoutError:
            raise self._hung(pending.seconds, f"to take the request {pending.header['request']}") from None
        except OSError:
            raise self._gone() from None
        except BaseException:
            self.kill()  # half a frame is in the pipe
            raise

    def _send_file(self, sha256: str, references: Mapping[str, Mapping[str, str]]) -> None:
        paths = [reference["path"] for reference in references.values() if reference["sha256"] == sha256]
        if not paths:
            raise self._broken(f"asked for a file with SHA-256 {sha256}, which the request does not name")
        try:
            content = np.fromfile(paths[0], dtype=np.uint8)
        except OSError as error:
            raise MissingError(
                f"{self.name} has no file with SHA-256 {sha256}, and {paths[0]} can't be read here ({error.strerror}); put the file there"
            ) from None
        self.request("file", {"sha256": sha256}, {"content": content})

    def _wait(self, pending: Pending, watch: Watch | None = None) -> Frame:
        """The answer to one request: `ok` or `need_file`; anything else raises."""
        process = self._process
        if process is None or pending.start != self._starts:
            what = f"the worker was ended before it could answer {pending.header['request']}"
            raise WorkerDied(self._ends.get(pending.start, f"{self.name}: {what}"))
        while pending.request_id not in process.answered:
            if pending.request_id not in process.unanswered:
                raise ValueError(f"the answer to request {pending.request_id} was collected before; keep it, or ask again")
            header, tensors = self._receive(process, pending, watch)
            if header.get("status") == "progress":
                if watch is not None and header.get("id") == pending.request_id:
                    watch(self._read(answers.progress_of, header))
                continue
            answered = header.get("id")
            if not isinstance(answered, int) or answered not in process.unanswered:
                raise self._broken(f"answered request {answered!r}, waiting for one of {sorted(process.unanswered)}")
            process.unanswered.discard(answered)
            process.answered[answered] = header, tensors
        header, tensors = process.answered.pop(pending.request_id)
        if header.get("status") == "error":
            raise self._read(answers.failure_of, self.name, header)
        if header.get("status") not in ("ok", "need_file"):
            raise self._broken(f"answered with status {header.get('status')!r}; allowed: ok, error, progress, need_file")
        return header, tensors

    def _receive(self, process: _Process, pending: Pending, watch: Watch | None) -> Frame:
        deadline, frame = time.monotonic() + pending.seconds, None
        while frame is None:
            left = deadline - time.monotonic()
            try:
                frame = process.pipe.frames.get(timeout=max(0.0, left if watch is None else min(left, TICK_SECONDS)))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise self._hung(pending.seconds, f"to answer {pending.header['request']}") from None
                if watch is not None:
                    watch(None)
        if isinstance(frame, Exception):
            raise self._at_an_end(frame)
        return frame

    def _gone(self) -> HarnessError:
        """Why a worker takes no more. What it answered before may be no frame: its pipe is closed then, and it dies of that."""
        assert self._process is not None
        frame: Frame | Exception = {}, {}
        with contextlib.suppress(queue.Empty):
            while not isinstance(frame, Exception):
                frame = self._process.pipe.frames.get(timeout=EXIT_SECONDS)
        return self._at_an_end(frame if isinstance(frame, Exception) else wire.EndOfPipe())

    def _at_an_end(self, error: Exception) -> HarnessError:
        """What became of a worker whose pipe gives nothing but this error any more."""
        return self._died() if isinstance(error, wire.EndOfPipe | wire.CutShort | OSError) else self._broken(str(error))

    def _read(self, read: Callable[Parameters, Read], *given: Parameters.args, **named: Parameters.kwargs) -> Read:
        try:
            return read(*given, **named)
        except NotAnAnswer as error:
            raise self._broken(str(error)) from None

    def _hung(self, seconds: float, what: str) -> WorkerHung:
        return WorkerHung(self._ended(f"{self.name}: took over {seconds:g} s {what}, and was killed"))

    def _died(self) -> WorkerDied:
        assert self._process is not None
        return WorkerDied(self._ended(f"{self.name}: the worker {self._process.pipe.how_it_ended(EXIT_SECONDS)}"))

    def _broken(self, why: str) -> ProtocolBroken:
        return ProtocolBroken(self._ended(f"{self.name}: broke the protocol: {why}"))

    def _ended(self, message: str) -> str:
        """Kills the worker; the message with its last words, kept for requests that were still on their way to it."""
        self.kill()
        tail = self.log_tail()
        self._ends[self._starts] = f"{message}; its last words:\n{tail}" if tail else message
        return self._ends[self._starts]
