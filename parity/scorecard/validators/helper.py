"""The process that judges SQL and JSON: what takes too long or too much memory there ends that process, and the answer has failed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

from parity.scorecard.sandbox.limits import Limits
from parity.scorecard.sandbox.peer import Ended, Peer
from parity.scorecard.validators.judged import BrokenValidator, Judged
from parity.scorecard.validators.spec import JsonValidator, SqlValidator

MODULE = "parity.scorecard.validators.worker"
START_SECONDS = 120.0
"""For a slow disk: it imports sqlglot and jsonschema before the first answer's time begins."""


class Helper:
    """Started when it is first asked, and again after it had to be killed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._peer: Peer | None = None

    def judge(self, validator: SqlValidator | JsonValidator, answer: str) -> Judged:
        """Judges one answer.

        Raises:
            BrokenValidator: the validator itself is wrong.
        """
        peer = self._peer or self._start()
        peer.deadline = time.monotonic() + self._limits.seconds
        peer.forget_printed()
        try:
            peer.send({"validator": validator.model_dump(mode="json"), "answer": answer})
            said = peer.receive()
        except Ended as error:
            self.close()
            return Judged.failed(f"judging: {error}", syntax=False)
        if "broken" in said:
            raise BrokenValidator(said["broken"])
        if said["semantics"]:
            return Judged.passed()
        return Judged.failed(*said["errors"], syntax=said["syntax"])

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None and self._peer is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._peer.close()
        self._process = self._peer = None

    def _start(self) -> Peer:
        requests, answers, printed = os.pipe(), os.pipe(), os.pipe()
        peer = Peer(requests[1], answers[0], printed[0], limits=self._limits, deadline=time.monotonic() + START_SECONDS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(self._limits.memory)],
                stdin=requests[0], stdout=answers[1], stderr=printed[1], start_new_session=True,
            )  # fmt: skip
        finally:
            for number in (requests[0], answers[1], printed[1]):
                os.close(number)
        self._peer = peer
        try:
            peer.receive()
        except Ended as error:
            self.close()
            raise RuntimeError(f"{MODULE} doesn't start: {error}: {peer.kept.decode(errors='replace')}") from error
        return peer
