"""A server on loopback that speaks chat completions, and misbehaves as the model that is asked for says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Served(ThreadingHTTPServer):
    """The server; requests: the bodies that came, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict[str, Any]] = []
        self.ended = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is nothing to tell of."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Served

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        """Does what the model's name says."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body | {"path": self.path})
        number = len(self.server.requests)
        BEHAVIOUR[body["model"]](self, number)

    def say(self, status: int, body: bytes, **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def raw(self, content: bytes) -> None:
        """Bytes, then the end of the connection."""
        self.wfile.write(content)
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


GOOD = json.dumps(
    {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "one!"}, "finish_reason": "stop"}],
     "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}}
).encode()  # fmt: skip


def _good(handler: _Handler, number: int) -> None:
    handler.say(200, GOOD)


def _hangs(handler: _Handler, number: int) -> None:
    handler.server.ended.wait(30)


def _drips(handler: _Handler, number: int) -> None:
    """A byte now and then: each read gets something."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.ended.wait(0.02):
        handler.wfile.write(b" ")


def _drips_headers(handler: _Handler, number: int) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not handler.server.ended.wait(0.02):
        handler.wfile.write(b"a")


def _limited_once(handler: _Handler, number: int) -> None:
    if number == 1:
        handler.say(429, b"slow down", Retry_After="7")
    else:
        handler.say(200, GOOD)


def _first(behaviour: Callable[[_Handler, int], None]) -> Callable[[_Handler, int], None]:
    return lambda handler, number: (behaviour if number == 1 else _good)(handler, number)


def _answers(status: int, body: bytes, **headers: str) -> Callable[[_Handler, int], None]:
    return lambda handler, number: handler.say(status, body, **headers)


def _raw(content: bytes) -> Callable[[_Handler, int], None]:
    return lambda handler, number: handler.raw(content)


BEHAVIOUR: dict[str, Callable[[_Handler, int], None]] = {
    "good": _good,
    "hangs": _hangs,
    "drips": _drips,
    "drips-headers": _drips_headers,
    "drops": _raw(b""),
    "drops-in-headers": _raw(b"HTTP/1.1 200 OK\r\nContent-"),
    "drops-in-body": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{"),
    "no-http": _raw(b"\x00\xff\x00 what?\r\n\r\n"),
    "no-json": _answers(200, b"<html>welcome</html>"),
    "not-utf-8": _answers(200, b"\xff\xfe"),
    "no-choices": _answers(200, b'{"choices": []}'),
    "null-content": _answers(200, b'{"choices": [{"message": {"content": null}}]}'),
    "number-content": _answers(200, b'{"choices": [{"message": {"content": 3}}]}'),
    "deep": _answers(200, b"[" * 100_000),
    "redirects": _answers(307, b"", Location="http://127.0.0.1:1/"),
    "limited": _answers(429, b"slow down", Retry_After="7"),
    "limited-until": _answers(429, b"slow down", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
    "limited-forever": _answers(429, b"slow down", Retry_After="999999"),
    "limited-once": _limited_once,
    "good-twice": lambda handler, number: (_good if number < 3 else _hangs)(handler, number),
    "drops-once": _first(_raw(b"")),
    "failing": _answers(500, b"oh no"),
    "unavailable": _answers(503, b"", Retry_After="1"),
    "unknown-model": _answers(404, b'{"error": "no such model\x1b[2J"}'),
    "unauthorized": _answers(401, b""),
    "cut-by-length": _answers(200, GOOD.replace(b'"stop"', b'"length"')),
    "no-usage": _answers(200, b'{"choices": [{"message": {"content": "one!"}}]}'),
}


@contextmanager
def serving() -> Iterator[Served]:
    """The server, on a thread of its own."""
    server = Served()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def url_of(server: Served) -> str:
    """As `server_url` of a condition."""
    return f"http://127.0.0.1:{server.server_address[1]}/v1"
