"""A request's body as JSON, whatever its sender calls it: bounded in values and depth, and read off the event loop
where it is large.

Ollama and llama-server take JSON under any content type, and their examples are written that way. It lets no web page
in: one that sends a simple POST is known by its origin (see `origins`)."""

import asyncio
import json
import re
import secrets
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from trilithon.serve.http.errors import ApiError
from trilithon.serve.validation import require_sound, wrong

__all__ = ["JsonRoute", "read_json"]

_SMALL_BYTES: Final = 64 << 10
# json's scanner holds the interpreter's lock from the first byte to the last: these bounds and the cutting of long
# strings keep that below 0.1 s. A list costs as much as ten numbers.
_MOST_VALUES: Final = 300_000
_MOST_CONTAINERS: Final = 50_000
_MOST_NAMES: Final = 1000  # of the body itself; what reads its fields takes longer for each than for other values
_LONGEST_STRING: Final = 28 << 20  # a picture of 20 MiB in base64
_LONG_BYTES: Final = 64 << 10
_WINDOW_BYTES: Final = 1 << 20
_MOST_QUOTES: Final = 1 << 20  # a text of 8 MiB that is JSON itself has fewer
_BACKSLASH = ord("\\")
_NAME_FOLLOWS = re.compile(rb"[ \t\r\n]*:")
# A character's escape that goes on, and the first half of a pair.
_UNFINISHED = tuple(map(re.compile, (rb"\\u[0-9a-fA-F]{0,3}\Z", rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")))
_JSON = (b"content-type", b"application/json")
# One at a time: each holds the lock for a while, and the loop has its turn in between.
_READER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="json")


class JsonRoute(APIRoute):
    """For `APIRouter(route_class=JsonRoute)`: bodies are read by `read_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def handle(request: Request) -> Response:
            # In place: what the router writes into the scope is read outside (see `observing`).
            headers = request.scope["headers"]
            request.scope["headers"] = [*(header for header in headers if header[0] != _JSON[0]), _JSON]
            read = _ReadRequest(request.scope, request.receive)
            try:
                await read.read()
            except ClientDisconnect:
                return Response(status_code=400)  # which nobody hears
            return await handler(read)

        return handle


class _ReadRequest(Request):
    _value: Any = None
    _empty = True

    async def read(self) -> None:
        chunks = [chunk async for chunk in self.stream()]
        size = sum(map(len, chunks))
        self._empty = size == 0
        if size > _SMALL_BYTES:
            self._value = await asyncio.get_running_loop().run_in_executor(_READER, _read_chunks, chunks)
        elif size:
            self._value = read_json(b"".join(chunks))

    async def body(self) -> bytes:
        """For FastAPI, which looks whether there is one: the bytes are not kept while the request is answered."""
        return b"" if self._empty else b"{}"

    async def json(self) -> Any:
        return self._value


def _read_chunks(chunks: list[bytes]) -> Any:
    """Empties the list. Joining megabytes takes a while too, and lets go of the interpreter's lock."""
    body = b"".join(chunks)
    chunks.clear()
    return read_json(body)


def read_json(body: bytes) -> Any:
    """Raises ApiError: 413 for too many values, 400 for what is no sound JSON."""
    texts: dict[str, tuple[int, int]] = {}
    skeleton = body if len(body) <= _SMALL_BYTES else _without_long_strings(body, texts)
    try:
        value = json.loads(skeleton)
        restored = _restored(value, lambda name: _text(body, *texts[name]), texts) if texts else value
    except json.JSONDecodeError as error:
        where = "" if texts else f" at character {error.pos}"
        raise wrong("", f"the body is not JSON: {error.msg}{where}") from error
    except UnicodeDecodeError as error:
        raise wrong("", "the body is not JSON: it is not UTF-8") from error
    except RecursionError as error:
        raise wrong("", "the body is nested too deep; flatten it") from error
    except ValueError as error:  # a number of thousands of digits
        raise wrong("", f"the body is not JSON: {error}") from error
    if isinstance(restored, dict) and len(restored) > _MOST_NAMES:
        raise _too_many(_MOST_NAMES, "fields")
    require_sound(restored)
    return restored


def _without_long_strings(body: bytes, texts: dict[str, tuple[int, int]]) -> bytes:
    """With a short string in place of each long one; `texts` is told where those stand between their quotation marks.
    Raises ApiError for too many values."""
    if body.count(b'"') > _MOST_QUOTES:
        raise _too_many(_MOST_QUOTES, "quotation marks")
    kept, values = [], _Values()
    mark = secrets.token_hex(16)
    kept_to = at = quotes = 0
    while (start := body.find(b'"', at)) >= 0:
        end = _string_end(body, start + 1)
        values.add(body, at, start)
        quotes += 1
        if quotes > _MOST_VALUES:
            raise _too_many(_MOST_VALUES, "values")
        if end - start > _LONG_BYTES:
            if _NAME_FOLLOWS.match(body, end + 1):
                raise wrong("", f"a name in the body is over {_LONG_BYTES >> 10} KiB; send a shorter one")
            if end - start > _LONGEST_STRING:
                words = f"a text in the body is over {_LONGEST_STRING >> 20} MiB; send less"
                raise ApiError(words, status=413, kind="request_too_large")
            name = f"{mark}{len(texts)}"
            texts[name] = (start + 1, end)
            kept += [body[kept_to : start + 1], name.encode()]
            kept_to = end
        at = end + 1
    values.add(body, at, len(body))
    values.count()
    return b"".join([*kept, body[kept_to:]])


def _string_end(body: bytes, at: int) -> int:
    """Of the string whose first character is at `at`: where its closing quotation mark is, or the body's end."""
    while (end := body.find(b'"', at)) >= 0:
        if body[end - 1] != _BACKSLASH or not _ends_in_escape(body[at:end]):
            return end
        at = end + 1
    return len(body)


class _Values:
    """Counts values by what stands outside of strings, and raises ApiError once they are too many."""

    def __init__(self) -> None:
        self._values = self._containers = 0
        self._outside = bytearray()

    def add(self, body: bytes, at: int, end: int) -> None:
        for begin in range(at, end, _WINDOW_BYTES):
            self._outside += body[begin : min(begin + _WINDOW_BYTES, end)]
            if len(self._outside) >= _WINDOW_BYTES:
                self.count()

    def count(self) -> None:
        counts = [self._outside.count(mark) for mark in (b"[", b"{", b",", b":")]
        self._outside.clear()
        self._values += sum(counts)
        self._containers += sum(counts[:2])
        if self._values > _MOST_VALUES:
            raise _too_many(_MOST_VALUES, "values")
        if self._containers > _MOST_CONTAINERS:
            raise _too_many(_MOST_CONTAINERS, "lists and objects")


def _too_many(most: int, kind: str) -> ApiError:
    return ApiError(f"the body has more than {most} {kind}; send less at once", status=413, kind="request_too_large")


def _restored(value: Any, text: Callable[[str], str], names: Collection[str]) -> Any:
    """With the long strings in the places of their names."""
    if isinstance(value, str):
        return text(value) if value in names else value
    level = [value]
    while level:
        below = []
        for container in level:
            entries = container.items() if isinstance(container, dict) else enumerate(container)
            for key, entry in list(entries):
                if isinstance(entry, str):
                    if entry in names:
                        container[key] = text(entry)
                elif isinstance(entry, dict | list):
                    below.append(entry)
        level = below
    return value


def _text(content: bytes, at: int, stop: int) -> str:
    """The string whose JSON stands there, without its quotation marks, in pieces that take milliseconds each."""
    pieces = []
    while at < stop:
        end = _piece_end(content, at, stop)
        pieces.append(json.loads(b'"' + content[at:end] + b'"'))
        at = end
    return "".join(pieces)


def _piece_end(content: bytes, at: int, stop: int) -> int:
    """Where a piece that begins at `at` may end: within no character, no escape, and no pair of surrogates."""
    end = at + _WINDOW_BYTES
    if end >= stop:
        return stop
    while content[end] & 0xC0 == 0x80:
        end -= 1
    if _ends_in_escape(content[at:end]):
        end -= 1
    for unfinished in _UNFINISHED:
        begun = unfinished.search(content, max(at, end - 6), end)
        if begun and _ends_in_escape(content[at : begun.start() + 1]):
            end = begun.start()
    return end


def _ends_in_escape(content: bytes) -> bool:
    """Whether the last backslash begins an escape, and does not end one."""
    return (len(content) - len(content.rstrip(b"\\"))) % 2 == 1
