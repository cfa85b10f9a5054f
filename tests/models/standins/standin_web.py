"""A real HTTP server on loopback that misbehaves on demand: ranges, redirects, cuts, silence, other files meanwhile."""

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

__all__ = ["Asked", "Content", "Fault", "WebStandIn", "as_json"]

# known(documentation): RFC 9110: ranges, 206, 416, Content-Range, ETag, Last-Modified
# known(guess): the ways in which servers cut, stall, spoil or change a file while it is fetched
_PIECE_BYTES = 16 << 10


@dataclass(kw_only=True)
class Content:
    """What lies under a path. `etag` None is one made of the content, "" is none at all."""

    data: bytes
    etag: str | None = None
    modified: str = ""
    ranges: bool = True
    says_length: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return f'"{hashlib.md5(self.data).hexdigest()}"' if self.etag is None else self.etag


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with one answer. `after` bytes of its body the connection is cut, or goes silent for
    `silent_seconds`; `pace` bytes a second at most; `spoil` changes the bytes that are sent."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    after: int | None = None
    silent_seconds: float = 0.0
    pace: float | None = None
    spoil: bool = False


@dataclass(frozen=True)
class Asked:
    """A request: the `number`th of all, from 1. `span` is the range that it asks for."""

    path: str
    headers: Mapping[str, str]
    number: int

    @property
    def span(self) -> tuple[int, int | None] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) if match[2] else None) if match else None

    @property
    def is_look(self) -> bool:
        return self.span == (0, 0)


class WebStandIn:
    """A context manager; `fault` is asked about every request. `asked` are all that came."""

    def __init__(self) -> None:
        self.files: dict[str, Content] = {}
        self.fault: Callable[[Asked], Fault | None] = lambda _: None
        self.asked: list[Asked] = []
        self.sent_bytes = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        stand_in = self

        class Handler(_Handler):
            owner = stand_in

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that went away
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def put(self, path: str, data: bytes, **more: Any) -> str:
        """Its address."""
        self.files[path] = Content(data=data, **more)
        return self.url + path

    def paths(self) -> list[str]:
        return [each.path for each in self.asked]

    def respond(self, asked: Asked) -> Content | Fault | None:
        """What is there; a stand-in of something particular answers its own paths here."""
        return self.files.get(asked.path)

    def noticed(self, path: str, headers: Mapping[str, str]) -> Asked:
        with self._lock:
            asked = Asked(path, headers, len(self.asked) + 1)
            self.asked.append(asked)
        return asked

    def sent(self, count: int) -> None:
        with self._lock:
            self.sent_bytes += count

    def wait(self, seconds: float) -> None:
        """Silence, which ends with the server."""
        self._closing.wait(seconds)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: WebStandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = self.owner.noticed(unquote(urlsplit(self.path).path), headers)
        fault = self.owner.fault(asked) or Fault()
        if fault.status:
            self._plain(fault)
            return
        found = self.owner.respond(asked)
        if found is None:
            self._plain(Fault(status=404, body=b"not found"))
        elif isinstance(found, Fault):
            self._plain(found)
        else:
            self._content(found, asked, fault)

    def _plain(self, fault: Fault) -> None:
        self.send_response(fault.status)
        for name, value in fault.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in fault.headers:
            self.send_header("Content-Length", str(len(fault.body)))
        self.end_headers()
        self.wfile.write(fault.body)

    def _content(self, content: Content, asked: Asked, fault: Fault) -> None:
        total, span = len(content.data), asked.span if content.ranges else None
        start, end = 0, total
        if span is not None:
            if span[0] >= total:
                self._plain(Fault(status=416, headers={"Content-Range": f"bytes */{total}"}))
                return
            start, end = span[0], min(total, total if span[1] is None else span[1] + 1)
        self.send_response(200 if span is None else 206)
        if span is not None:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        if content.version:
            self.send_header("ETag", content.version)
        if content.modified:
            self.send_header("Last-Modified", content.modified)
        for name, value in {**content.headers, **fault.headers}.items():
            self.send_header(name, value)
        if content.says_length:
            if "Content-Length" not in fault.headers:
                self.send_header("Content-Length", str(end - start))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        data = content.data[start:end]
        self._send(bytes(byte ^ 0xFF for byte in data) if fault.spoil else data, fault)

    def _send(self, data: bytes, fault: Fault) -> None:
        stop = len(data) if fault.after is None else min(fault.after, len(data))
        for at in range(0, stop, _PIECE_BYTES if fault.pace is None else max(int(fault.pace // 20), 1)):
            piece = data[at : min(at + (_PIECE_BYTES if fault.pace is None else max(int(fault.pace // 20), 1)), stop)]
            self.wfile.write(piece)
            self.owner.sent(len(piece))
            if fault.pace is not None:
                time.sleep(len(piece) / fault.pace)
        if fault.after is not None:
            self.wfile.flush()
            self.owner.wait(fault.silent_seconds)
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


def as_json(value: object) -> Content:
    return Content(data=json.dumps(value).encode(), etag="", headers={"Content-Type": "application/json"})
