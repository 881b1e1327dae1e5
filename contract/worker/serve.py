"""The worker's side of the protocol: reads requests, asks the stack, answers.

The protocol pipe is the process's standard input and output as they were at the start. From then
on anything printed goes to standard error, so that a library's print can't break a frame.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any, BinaryIO, cast

import numpy as np

from contract.worker import files, mutation, wire
from contract.worker.operations import OPERATIONS
from contract.worker.stack import REQUESTS, NotSupported, Reply, Stack

PROTOCOL = wire.PROTOCOL


class Channel:
    """What a long request needs of its worker: to report progress, and to learn that it is cancelled."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._request_id: object = None
        self._turn = 0
        self._cancelled_through: float = 0

    def progress(self, **values: Any) -> None:
        """Sends a progress frame for the request under way."""
        wire.send(self._pipe, {"id": self._request_id, "status": "progress", "values": values})

    @property
    def cancelled(self) -> bool:
        """True once the launcher asked to stop the request under way, or is gone."""
        return self._turn <= self._cancelled_through

    def begin(self, request_id: object, turn: int) -> None:
        """The request that came as number `turn` is under way now."""
        self._request_id, self._turn = request_id, turn

    def cancel_through(self, turn: float) -> None:
        """Cancels every request up to number `turn`: also one that was read, and has not begun."""
        self._cancelled_through = turn


class Worker:
    """One stack on one device, behind one pipe.

    Args:
        factory: `module:attribute` of a callable (device, channel) -> Stack; imported here, so that a
            failing import is an answer and not a crash.
    """

    def __init__(self, factory: str, device: str, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._factory, self._device = factory, device
        self._incoming, self._outgoing = incoming, outgoing
        self._channel = Channel(outgoing)
        # Simple, since `end` is called by a signal handler: it may interrupt a `get` of this same thread.
        self._requests: queue.SimpleQueue[tuple[int, dict[str, Any], dict[str, np.ndarray]] | None] = queue.SimpleQueue()
        self._stack: Stack | None = None

    def run(self) -> None:
        """Answers requests until `close` or the end of the pipe."""
        try:
            self._stack = self._make()
        except Exception as error:
            wire.send(self._outgoing, {"id": 0, "status": "error", "error": _describe(error)})
            return
        wire.send(self._outgoing, {"id": 0, "status": "ok", "values": {"protocol": PROTOCOL, "pid": os.getpid()}})
        threading.Thread(target=self._read, daemon=True).start()
        while (frame := self._requests.get()) is not None:
            turn, header, tensors = frame
            self._channel.begin(header.get("id"), turn)
            for part in self._answer(header, tensors):
                self._outgoing.write(part)
            self._outgoing.flush()
            if header.get("request") == "close":
                return

    def _make(self) -> Stack:
        module, attribute = self._factory.split(":")
        return cast(Stack, getattr(importlib.import_module(module), attribute)(self._device, self._channel))

    def _read(self) -> None:
        turn = 0
        try:
            while True:
                header, tensors = wire.receive(self._incoming)
                turn += 1
                if header.get("request") == "cancel":
                    self._channel.cancel_through(turn)
                self._requests.put((turn, header, tensors))
        except Exception as error:
            if not isinstance(error, wire.EndOfPipe):
                print(f"worker: {error}", file=sys.stderr)
            self.end()

    def end(self) -> None:
        """Has the request under way end early, and then the worker."""
        self._channel.cancel_through(math.inf)
        self._requests.put(None)

    def _answer(self, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[bytes, bytes]:
        """The frame that answers a request; whatever goes wrong, also in writing the answer down, is an answer too."""
        started = time.monotonic_ns()
        answer: dict[str, Any] = {"id": header.get("id")}
        try:
            reply = self._dispatch(header, tensors)
            busy = [started, time.monotonic_ns()]
            return wire.encode({**answer, "status": "ok", "values": reply.values, "busy_ns": busy}, reply.tensors)
        except files.FileNeeded as needed:
            answer |= {"status": "need_file", "sha256": needed.sha256}
        except Exception as error:
            answer |= {"status": "error", "error": _describe(error)}
        return wire.encode({**answer, "busy_ns": [started, time.monotonic_ns()]})

    def _dispatch(self, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> Reply:
        request, values = header.get("request"), header.get("values", {})
        for name, reference in header.get("references", {}).items():
            tensors[name] = files.load(files.FileReference(**reference))
        if request in ("close", "cancel"):
            return Reply()
        if request == "file":
            files.receive(str(values["sha256"]), tensors["content"].tobytes())
            return Reply()
        if request not in REQUESTS:
            raise NotSupported(f"there is no request {request!r}; allowed: {', '.join(REQUESTS)}")
        if request == "mutate":
            own = self._factory.split(":")[0].rpartition(".")[0]
            if str(values["module"]).startswith(f"{mutation.CONTRACT}."):
                mutation.plant(mutation.CONTRACT, **values, importers=(own,))
            else:
                mutation.plant(own, **values)
            self._stack = None  # if the changed source fails, the unchanged stack must not answer in its place
            self._stack = self._make()
            return Reply()
        if self._stack is None:
            raise RuntimeError("there is no stack since a mutation failed; start a fresh worker")
        if request == "policy":
            from contract.training import policy  # here, since a mutation may have dropped it; and few workers are asked

            return policy.answer(**values, tensors=tensors)
        method = getattr(self._stack, request, None)
        if method is None:
            raise NotSupported(f"this stack does not support the request {request!r} yet")
        if request != "compute":
            return cast(Reply, method(**values, **({"tensors": tensors} if tensors else {})))
        if values.get("op") not in OPERATIONS:
            raise NotSupported(f"there is no operation {values.get('op')!r}; allowed: {', '.join(OPERATIONS)}")
        for name, dtype in values.get("widen", {}).items():
            tensors[name] = _widened(name, tensors[name], dtype)
        return cast(Reply, method(values["op"], values.get("attrs", {}), tensors))


def _widened(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor that travelled in a narrower dtype than it is wanted in: the same values, exactly."""
    if not np.can_cast(tensor.dtype, dtype, "safe"):
        raise ValueError(f"{name} travelled as {tensor.dtype.name}, which does not widen to {dtype}; send it as {dtype}")
    return tensor.astype(dtype)


def _describe(error: BaseException) -> dict[str, str]:
    return {"class": type(error).__name__, "message": str(error), "traceback": "".join(traceback.format_exception(error))}


def serve(factory: str) -> None:
    """Runs a worker over this process's standard input and output; `--device NAME` picks its device."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    device = parser.parse_args().device
    incoming, outgoing = os.fdopen(os.dup(0), "rb", buffering=2**20), os.fdopen(os.dup(1), "wb", buffering=2**20)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    worker = Worker(factory, device, incoming, outgoing)
    _mind_signals(worker)
    try:
        worker.run()
    except BrokenPipeError:
        os._exit(1)


def _mind_signals(worker: Worker) -> None:
    """Ctrl-C is the launcher's to hear; whoever ends a whole group of processes (systemd, Slurm) leaves a run the time to be saved."""

    def ask_to_end(number: int, frame: FrameType | None) -> None:
        worker.end()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ask_to_end)
