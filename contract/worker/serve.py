"""The worker's side of the protocol: reads requests, asks the stack, answers.

The protocol pipe is the process's standard input and output as they were at the start. From then
on anything printed goes to standard error, so that a library's print can't break a frame.
"""

from __future__ import annotations

import argparse
import importlib
import os
import queue
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO, cast

import numpy as np

from contract.worker import files, mutation, wire
from contract.worker.operations import OPERATIONS
from contract.worker.stack import REQUESTS, NotSupported, Reply, Stack, Tensors

PROTOCOL = 1


class Channel:
    """What a long request needs of its worker: to report progress, and to learn that it is cancelled."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self.request_id: int | None = None
        self._cancelled = threading.Event()

    def progress(self, **values: Any) -> None:
        """Sends a progress frame for the request under way."""
        wire.send(self._pipe, {"id": self.request_id, "status": "progress", "values": values})

    @property
    def cancelled(self) -> bool:
        """True once the launcher asked to stop the request under way."""
        return self._cancelled.is_set()

    def begin(self, request_id: int) -> None:
        self.request_id = request_id
        self._cancelled.clear()

    def cancel(self) -> None:
        self._cancelled.set()


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
        self._requests: queue.Queue[tuple[dict[str, Any], dict[str, np.ndarray]] | None] = queue.Queue()
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
            header, tensors = frame
            wire.send(*self._answer(header, tensors))
            if header.get("request") == "close":
                return

    def _make(self) -> Stack:
        module, attribute = self._factory.split(":")
        return cast(Stack, getattr(importlib.import_module(module), attribute)(self._device, self._channel))

    def _read(self) -> None:
        try:
            while True:
                header, tensors = wire.receive(self._incoming)
                if header.get("request") == "cancel":
                    self._channel.cancel()
                self._requests.put((header, tensors))
        except (wire.WireError, OSError) as error:
            if not isinstance(error, wire.EndOfPipe):
                print(f"worker: {error}", file=sys.stderr)
            self._requests.put(None)

    def _answer(self, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[BinaryIO, dict[str, Any], Tensors]:
        started = time.monotonic_ns()
        answer: dict[str, Any] = {"id": header.get("id")}
        try:
            reply = self._dispatch(header, tensors)
            answer |= {"status": "ok", "values": reply.values}
            out: Tensors = reply.tensors
        except files.FileNeeded as needed:
            answer |= {"status": "need_file", "sha256": needed.sha256}
            out = {}
        except Exception as error:
            answer |= {"status": "error", "error": _describe(error)}
            out = {}
        return self._outgoing, answer | {"busy_ns": [started, time.monotonic_ns()]}, out

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
        self._channel.begin(int(header.get("id", 0)))
        if request == "mutate":
            mutation.plant(self._factory.split(":")[0].rpartition(".")[0], values["module"], values["find"], values["replace"])
            self._stack = self._make()
            return Reply()
        method = getattr(self._stack, request, None)
        if method is None:
            raise NotSupported(f"this stack does not support the request {request!r} yet")
        if request != "compute":
            return cast(Reply, method(**values, **({"tensors": tensors} if tensors else {})))
        if values.get("op") not in OPERATIONS:
            raise NotSupported(f"there is no operation {values.get('op')!r}; allowed: {', '.join(OPERATIONS)}")
        return cast(Reply, method(values["op"], values.get("attrs", {}), tensors))


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
    try:
        Worker(factory, device, incoming, outgoing).run()
    except BrokenPipeError:
        os._exit(1)
