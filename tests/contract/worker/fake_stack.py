"""A small NumPy stack, and workers that misbehave; the device's name picks which. Run: python fake_stack.py --device NAME.

The raw workers speak the protocol with `struct`, `json` and `safetensors` alone, as a third party's would that
shares no code with ours.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from contract.worker.serve import Channel, serve
from contract.worker.stack import Attributes, Reply, Tensors

FOREVER = 600.0


class FakeStack:
    """Computes matmul as NumPy does; `device` says what goes wrong with the answer."""

    def __init__(self, device: str, channel: Channel) -> None:
        self._device, self._channel = device, channel

    def probe(self) -> Reply:
        """What every stack answers, and the process's id."""
        return Reply(values={"device": self._device, "pid": os.getpid()})

    def compute(self, op: str, attrs: Attributes, tensors: Tensors) -> Reply:
        """y = a b, spoilt."""
        return SPOILT.get(self._device, lambda answer: answer)(Reply(tensors={"y": tensors["a"] @ tensors["b"]}))

    def forward(self, tensors: Tensors) -> Reply:
        """Answers what came."""
        return Reply(tensors=dict(tensors))

    def train(self, steps: int, seconds: float) -> Reply:
        """Sleeps `seconds` per step, says so, and stops when cancelled."""
        for step in range(steps):
            if self._channel.cancelled:
                return Reply(values={"steps": step})
            time.sleep(seconds)
            self._channel.progress(step=step)
        return Reply(values={"steps": steps})


def make(device: str, channel: Channel) -> FakeStack:
    """The stack; on the device ABSENT it can't be made."""
    if device == "ABSENT":
        raise ImportError("no module named frobnicate")
    return FakeStack(device, channel)


def _die(answer: Reply) -> Reply:
    print("the heap is on fire", file=sys.stderr, flush=True)
    os._exit(7)


def _crash(answer: Reply) -> Reply:
    os.kill(os.getpid(), signal.SIGSEGV)
    return answer


def _hang(answer: Reply) -> Reply:
    print("waiting for a lock", file=sys.stderr, flush=True)
    subprocess.Popen(["sleep", str(FOREVER)])
    time.sleep(FOREVER)
    return answer


def _print(answer: Reply) -> Reply:
    print("from Python")
    os.write(1, b"from C\n")
    subprocess.run(["echo", "from a child"], check=True)
    return answer


def _raise(answer: Reply) -> Reply:
    raise ArithmeticError("the sum is odd; allowed are even ones")


def _change(**tensors: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Reply], Reply]:
    def changed(answer: Reply) -> Reply:
        values = {name: change(answer.tensors["y"]) for name, change in tensors.items()}
        return Reply(tensors={name: tensor for name, tensor in {**answer.tensors, **values}.items() if tensor is not None})

    return changed


SPOILT: Mapping[str, Callable[[Reply], Reply]] = {
    "DIES": _die,
    "CRASHES": _crash,
    "HANGS": _hang,
    "PRINTS": _print,
    "RAISES": _raise,
    "MISSING": _change(y=lambda y: None),
    "EXTRA": _change(z=lambda y: y),
    "SHAPE": _change(y=lambda y: y.T),
    "DTYPE": _change(y=lambda y: y.astype(np.float64)),
    "NAN": _change(y=lambda y: y * np.float32("nan")),
    "COMPLEX": _change(y=lambda y: y.astype(np.complex64)),
    "NAN_VALUE": lambda answer: Reply(values={"loss": float("nan")}),
    "NOT_JSON": lambda answer: Reply(values={"loss": np.float32(1.0)}),
    "NOTHING": lambda answer: None,
}  # type: ignore[dict-item]


def frame(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """A frame as the design document describes it."""
    text = json.dumps({**header, "payload_bytes": len(payload)}).encode()
    return struct.pack("<I", len(text)) + text + payload


def _request(pipe: BinaryIO) -> dict[str, Any]:
    length = pipe.read(4)
    if len(length) < 4:
        sys.exit(0)
    header: dict[str, Any] = json.loads(pipe.read(struct.unpack("<I", length)[0]))
    pipe.read(header["payload_bytes"])
    return header


def _raw(answer: Callable[[dict[str, Any]], bytes], *, end: bool = False) -> Callable[[], None]:
    """A worker that greets, and answers each request with the bytes that `answer` makes of it."""

    def run() -> None:
        _write(frame({"id": 0, "status": "ok", "values": {"protocol": 1}}))
        while True:
            _write(answer(_request(sys.stdin.buffer)))
            if end:
                sys.exit(3)

    return run


def _greet(content: bytes) -> Callable[[], None]:
    def run() -> None:
        _write(content)
        time.sleep(FOREVER)

    return run


def _write(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _ok(header: Mapping[str, Any], **more: Any) -> bytes:
    return frame({"id": header["id"], "status": "ok", "values": {}, "busy_ns": [1, 2], **more})


GREETING = frame({"id": 0, "status": "ok", "values": {"protocol": 1}})
RAW: Mapping[str, Callable[[], None]] = {
    "RAW_GOOD": _raw(_ok),
    "RAW_GARBAGE": _raw(lambda header: b"\xff\x00\x17" * 50),
    "RAW_TEXT_BEFORE": _raw(lambda header: b"loading weights\n" + _ok(header)),
    "RAW_TEXT_AFTER": _raw(lambda header: _ok(header) + b"done loading\n"),
    "RAW_WRONG_ID": _raw(lambda header: _ok({"id": header["id"] + 1000})),
    "RAW_LIST_ID": _raw(lambda header: _ok({"id": [header["id"]]})),
    "RAW_CUT_SHORT": _raw(lambda header: _ok(header)[:-5], end=True),
    "RAW_HUGE_HEADER": _raw(lambda header: struct.pack("<I", 2**32 - 1)),
    "RAW_DEEP": _raw(lambda header: struct.pack("<I", 10**6) + b"[" * 10**6),
    "RAW_HUGE_PAYLOAD": _raw(lambda header: frame({"id": 1})[:-2] + b"9" * 30 + b"}"),
    "RAW_BAD_PAYLOAD": _raw(lambda header: frame({"id": header["id"], "status": "ok"}, b"no safetensors")),
    "RAW_STATUS": _raw(lambda header: frame({"id": header["id"], "status": "fine"})),
    "RAW_BARE_ERROR": _raw(lambda header: frame({"id": header["id"], "status": "error", "error": "oh"})),
    "RAW_VALUES": _raw(lambda header: _ok(header, values=[1])),
    "RAW_BUSY": _raw(lambda header: _ok(header, busy_ns="long")),
    "RAW_GREEDY": _raw(lambda header: frame({"id": header["id"], "status": "need_file", "sha256": "0" * 64})),
    "RAW_FORGETFUL": _raw(
        lambda header: (
            _ok(header)
            if header["request"] == "file"
            else frame({"id": header["id"], "status": "need_file", "sha256": next(iter(header["references"].values()))["sha256"]})
        )
    ),
    "RAW_DEAF": _greet(GREETING),
    "RAW_MUTE": _greet(b""),
    "RAW_OLD": _greet(frame({"id": 0, "status": "ok", "values": {"protocol": 0}})),
    "RAW_NO_GREETING": _greet(frame({"id": 1, "status": "ok", "values": {"protocol": 1}})),
}


if __name__ == "__main__":
    device = sys.argv[sys.argv.index("--device") + 1]
    if device in RAW:
        RAW[device]()
    else:
        serve("fake_stack:make")
