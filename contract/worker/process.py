"""The launcher's side of the protocol: starts a worker, asks it, survives its death.

A worker that crashes, hangs or answers nonsense raises a HarnessError on the request at hand; the
next request starts a fresh process. What it wrote to standard error is kept and shown.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np

from contract.worker import wire
from contract.worker.files import FileReference
from contract.worker.operations import OPERATIONS, expected_answer

START_SECONDS = 120.0
REQUEST_SECONDS = 300.0
LOG_LINES = 12

TensorOrReference = np.ndarray | FileReference


class HarnessError(Exception):
    """The worker died, hung, or broke the protocol: no statement about its arithmetic."""


class WorkerDied(HarnessError):
    """The worker's process ended."""


class WorkerHung(HarnessError):
    """The worker did not answer in time, and was killed."""


class ProtocolBroken(HarnessError):
    """The worker answered something that is no answer."""


class RequestFailed(Exception):
    """The stack answered with an error; the worker lives on."""

    def __init__(self, stack: str, error_class: str, message: str, trace: str) -> None:
        super().__init__(f"{stack}: {error_class}: {message}")
        self.error_class, self.message, self.trace = error_class, message, trace


@dataclass(frozen=True)
class Answer:
    """What a worker answered, and when it was busy with it (monotonic clock, nanoseconds)."""

    values: dict[str, Any]
    tensors: dict[str, np.ndarray]
    busy_ns: tuple[int, int] = (0, 0)


@dataclass
class Mutation:
    """A bug to plant in the worker (see contract.worker.mutation)."""

    module: str
    find: str
    replace: str


@dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    log: Path
    frames: queue.Queue[tuple[dict[str, Any], dict[str, np.ndarray]] | Exception] = field(default_factory=queue.Queue)


@dataclass(frozen=True)
class Pending:
    """A request on its way; `result` waits for the answer."""

    process: StackProcess
    request_id: int
    header: dict[str, Any]
    tensors: dict[str, np.ndarray]
    seconds: float

    def result(self) -> Answer:
        """Waits for the answer.

        Raises:
            HarnessError: the worker died, hung, or broke the protocol.
            RequestFailed: the stack answered with an error.
        """
        return self.process.collect(self)


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
        self._folder = tempfile.TemporaryDirectory(prefix=f"twostack-{name}-")
        self._next_id = 0
        self._starts = 0

    def __enter__(self) -> StackProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Starts the worker, unless it runs; plants its mutations.

        Raises:
            HarnessError: it did not come up.
            RequestFailed: it came up and could not make its stack (a package is missing, say).
        """
        if self._process is not None:
            return
        self._starts += 1
        log = Path(self._folder.name) / f"worker-{self._starts}.log"
        with open(log, "wb") as stderr:
            try:
                popen = subprocess.Popen(
                    [*self.command, "--device", self.device],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True, bufsize=2**20,
                )  # fmt: skip
            except OSError as error:
                raise WorkerDied(f"{self.name}: could not start {self.command[0]}: {error.strerror}; check its command") from None
        self._process = _Process(popen, log)
        threading.Thread(target=_read_frames, args=(self._process,), daemon=True).start()
        self._wait(0, self.start_seconds, "to start")
        for mutation in self.mutations:
            self.request("mutate", asdict(mutation))

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
        """Sends a request without waiting for its answer; answers come in the order of requests."""
        self.start()
        self._next_id += 1
        arrays = {name: tensor for name, tensor in (tensors or {}).items() if isinstance(tensor, np.ndarray)}
        references = {name: asdict(tensor) for name, tensor in (tensors or {}).items() if isinstance(tensor, FileReference)}
        header = {"id": self._next_id, "request": request, "values": dict(values or {}), "references": references}
        self._send(header, arrays)
        return Pending(self, self._next_id, header, arrays, self.request_seconds if seconds is None else seconds)

    def collect(self, pending: Pending) -> Answer:
        """Waits for the answer to `pending` (Pending.result)."""
        what = f"to answer {pending.header['request']}"
        header, tensors = self._wait(pending.request_id, pending.seconds, what)
        if header.get("status") == "need_file":
            self._send_file(str(header.get("sha256")), pending.header["references"])
            self._send(pending.header, pending.tensors)
            header, tensors = self._wait(pending.request_id, pending.seconds, what)
        busy = header.get("busy_ns", [0, 0])
        return Answer(header.get("values", {}), tensors, (int(busy[0]), int(busy[1])))

    def log_tail(self) -> str:
        """The last lines that the worker wrote to standard error."""
        if self._starts == 0:
            return ""
        log = Path(self._folder.name) / f"worker-{self._starts}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:]) if log.exists() else ""

    def kill(self) -> None:
        """Ends the worker and its children at once."""
        if self._process is None:
            return
        popen, self._process = self._process.popen, None
        try:
            os.killpg(popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        popen.wait()
        for pipe in (popen.stdin, popen.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass

    def close(self) -> None:
        """Asks the worker to end, and ends it; its log goes too."""
        if self._process is not None:
            try:
                self.submit("close", seconds=5.0).result()
            except (HarnessError, RequestFailed):
                pass
        self.kill()
        self._folder.cleanup()

    def _send(self, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        assert self._process is not None
        try:
            wire.send(cast(BinaryIO, self._process.popen.stdin), header, tensors)
        except OSError:
            raise self._died() from None

    def _send_file(self, sha256: str, references: Mapping[str, Mapping[str, str]]) -> None:
        paths = [reference["path"] for reference in references.values() if reference["sha256"] == sha256]
        if not paths:
            raise self._broken(f"asked for a file with SHA-256 {sha256}, which the request does not name")
        content = np.fromfile(paths[0], dtype=np.uint8)
        self.request("file", {"sha256": sha256}, {"content": content})

    def _wait(self, request_id: int, seconds: float, what: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        if self._process is None:
            raise WorkerDied(f"{self.name}: the worker was ended before it could answer")
        while True:
            try:
                frame = self._process.frames.get(timeout=seconds)
            except queue.Empty:
                tail = self.log_tail()
                self.kill()
                raise WorkerHung(_with_log(f"{self.name}: took over {seconds:g} s {what}, and was killed", tail)) from None
            if isinstance(frame, wire.EndOfPipe | OSError):
                raise self._died()
            if isinstance(frame, Exception):
                raise self._broken(str(frame))
            header, tensors = frame
            if header.get("status") == "progress":
                continue
            if header.get("id") != request_id:
                raise self._broken(f"answered request {header.get('id')!r}, asked was {request_id}")
            if header.get("status") == "error":
                error = header.get("error")
                if not isinstance(error, dict) or not {"class", "message", "traceback"} <= set(error):
                    raise self._broken("answered an error without class, message and traceback")
                if request_id == 0:
                    self.kill()
                raise RequestFailed(self.name, str(error["class"]), str(error["message"]), str(error["traceback"]))
            if header.get("status") not in ("ok", "need_file"):
                raise self._broken(f"answered with status {header.get('status')!r}; allowed: ok, error, progress, need_file")
            return header, tensors

    def _died(self) -> WorkerDied:
        assert self._process is not None
        popen = self._process.popen
        try:
            code: int | None = popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        tail = self.log_tail()
        self.kill()
        how = "closed its pipe" if code is None else f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        return WorkerDied(_with_log(f"{self.name}: the worker {how}", tail))

    def _broken(self, why: str) -> ProtocolBroken:
        tail = self.log_tail()
        self.kill()
        return ProtocolBroken(_with_log(f"{self.name}: broke the protocol: {why}", tail))


def check_answer(
    stack: str, op: str, attrs: Mapping[str, Any], tensors: Mapping[str, np.ndarray], answered: Mapping[str, np.ndarray]
) -> None:
    """Holds an answer against the operation's table.

    Raises:
        ProtocolBroken: a tensor is missing, extra, of the wrong shape or dtype.
    """
    expected = expected_answer(OPERATIONS[op], attrs, tensors)
    got = {name: (tensor.shape, tensor.dtype.name) for name, tensor in answered.items()}
    for name in sorted(set(expected) | set(got)):
        if got.get(name) != expected.get(name):
            raise ProtocolBroken(
                f"{stack}: broke the protocol: {op} answered {name} as {_spell(got.get(name))}, must be {_spell(expected.get(name))}"
            )


def _spell(tensor: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if tensor is None else f"{tensor[1]}{list(tensor[0])}"


def _with_log(message: str, tail: str) -> str:
    return f"{message}; its last words:\n{tail}" if tail else message


def _read_frames(process: _Process) -> None:
    pipe = cast(BinaryIO, process.popen.stdout)
    try:
        while True:
            process.frames.put(wire.receive(pipe))
    except (wire.WireError, OSError, ValueError) as error:
        process.frames.put(error if isinstance(error, wire.WireError | OSError) else OSError(str(error)))
