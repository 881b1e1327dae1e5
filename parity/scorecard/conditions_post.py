"""One HTTP request with a deadline for all of it: connecting, sending, and every byte of the answer.

`http.client` alone has a deadline for each read, which a server that sends a byte a second never meets. No redirect is followed, no
proxy is asked, and an answer has a size.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, Timer
from urllib.parse import urlsplit

from parity.scorecard.conditions import InfraKind

MAX_BODY = 2**24
"""Bytes of an answer."""


@dataclass(frozen=True)
class Broken:
    """No answer. retry_after: seconds, where the server asked for them."""

    error: InfraKind
    message: str
    retry_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What came. retry_after: seconds, where the server gave them as a number."""

    status: int
    body: bytes
    retry_after: float | None


class Line:
    """Where requests go out, from several threads; `cut` ends those that are under way."""

    def __init__(self) -> None:
        self._lock, self._open = Lock(), set[http.client.HTTPConnection]()
        self.is_cut = False

    def cut(self) -> None:
        """Every request that waits for something ends at once, as one whose connection was dropped; so do those that come."""
        with self._lock:
            self.is_cut = True
            for connection in self._open:
                _end(connection)

    @contextmanager
    def taken(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        """While a connection may be cut."""
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)
                connection.close()


class _Deadline:
    """Ends a connection when the time is over, whatever it waits for."""

    def __init__(self, connection: http.client.HTTPConnection, seconds: float) -> None:
        self._connection, self.passed = connection, False
        self._timer = Timer(seconds, self._pass)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _pass(self) -> None:
        self.passed = True
        _end(self._connection)


def _end(connection: http.client.HTTPConnection) -> None:
    """Wakes whoever reads from it or writes to it, in whatever thread."""
    if (found := connection.sock) is not None:
        with suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)


def post(url: str, body: bytes, *, seconds: float, line: Line) -> Answered | Broken:
    """Posts JSON, and reads the answer.

    Args:
        seconds: for all of it.
        line: may be cut meanwhile.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    started = time.monotonic()
    connection = kind(host, parts.port, timeout=seconds)
    with line.taken(connection), _Deadline(connection, seconds) as deadline:
        try:
            connection.connect()
        except TimeoutError:
            return Broken("timeout", f"{host} took over {seconds:g} s to take a connection")
        except (ssl.SSLError, OSError) as error:
            return Broken("refused", f"{host}:{parts.port or ''} takes no connection: {error}")
        if line.is_cut:
            return Broken("dropped", "the run ended")
        try:
            connection.request("POST", parts.path, body=body, headers={"Content-Type": "application/json", "Connection": "close"})
            answer = connection.getresponse()
            content = answer.read(MAX_BODY + 1)
        except (http.client.HTTPException, OSError, ValueError) as error:
            if deadline.passed or isinstance(error, TimeoutError):
                return Broken("timeout", f"no whole answer within {seconds:g} s")
            garbage = isinstance(error, http.client.HTTPException | ValueError) and not isinstance(
                error, http.client.IncompleteRead | http.client.RemoteDisconnected
            )
            told = f"{type(error).__name__}: {error}"[:200]
            return Broken("garbage", f"no HTTP: {told}") if garbage else Broken("dropped", f"the connection ended early: {told}")
    if deadline.passed or time.monotonic() - started > seconds:
        return Broken("timeout", f"no whole answer within {seconds:g} s")
    if not content and answer.status == 200:
        return Broken("dropped", "the connection ended before the answer's body began")
    if len(content) > MAX_BODY:
        return Broken("garbage", f"an answer of over {MAX_BODY:,} bytes")
    if answer.length:  # http.client: what is still to come of the length that was announced
        return Broken("dropped", f"the connection ended with {answer.length} bytes of the answer to come")
    return Answered(status=answer.status, body=content, retry_after=_seconds(answer.getheader("Retry-After")))


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds; its other form, a date, is taken for none."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 7 else None
