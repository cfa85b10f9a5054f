"""The attacks of attack.py, a function for each family: it takes a server and yields one `Attempt` for each attack.

An attack is held when the server answers as it should, and goes on answering. To add a family, write its function and a
line in `FAMILIES`; models that it needs are made from `TEMPLATES`."""

import contextlib
import resource
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from _server import Server

__all__ = ["FAMILIES", "TEMPLATES", "Attempt"]

_PATIENCE_SECONDS = 200.0
_MODEL = "tiny"
_FEW_FILES, _CONNECTIONS = 128, 300

_TURNS = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
_TALL = "{% for a in range(999999999) %}{% for b in range(999999999) %}{% endfor %}{% endfor %}"
_LONG = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
_DOUBLED = "{% set ns = namespace(x='aaaa') %}{% for i in range(34) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
_AGAIN = "{% macro again() %}{{ again() }}{% endmacro %}"
TEMPLATES = {
    _MODEL: _TURNS,
    "tall": _TALL + _TURNS,
    "long": _LONG + _TURNS,
    "doubled": _DOUBLED + _TURNS,
    "recursive": _AGAIN + "{{ again() }}" + _TURNS,
    "late-tall": "{% if messages|length > 3 %}" + _TALL + "{% endif %}" + _TURNS,
    "late-recursive": _AGAIN + "{% if tools %}{{ again() }}{% endif %}" + _TURNS,
}
"""Chat templates by the name of the tiny model that has them; the first is the one that works."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """`words` say what was answered, for an attack that was not held."""

    name: str
    held: bool
    words: str = ""


def _asked(server: Server, path: str, **request: Any) -> tuple[int, str]:
    """Status and body; status 0 for a connection that broke."""
    try:
        with httpx.Client(base_url=server.url, timeout=_PATIENCE_SECONDS) as client:
            answer = client.post(path, **request)
            return answer.status_code, answer.text
    except httpx.HTTPError as error:
        return 0, repr(error)


def _chat(server: Server, model: str = _MODEL, **fields: Any) -> tuple[int, str]:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **fields}
    return _asked(server, "/v1/chat/completions", json=body)


def _answers(server: Server) -> bool:
    return _chat(server)[0] == 200


def _templates(server: Server) -> Iterator[Attempt]:
    """Chat templates without end, in files and through /api/create."""
    for name, template in list(TEMPLATES.items())[1:]:
        for twice in ("", " again"):
            status, text = _chat(server, name)
            yield Attempt(
                f"template {name}{twice}", status >= 400 and "chat template" in text, f"{status} {text[:200]}"
            )
        made = f"made-{name}"
        _asked(server, "/api/create", json={"model": made, "from": _MODEL, "template": template, "stream": False})
        status, text = _chat(server, made)
        yield Attempt(f"created {name}", status >= 400 and _answers(server), f"{status} {text[:200]}")


def _grammars(server: Server) -> Iterator[Attempt]:
    """Patterns and grammars that take an engine minutes."""
    many = "^" + "(a|b)*" * 600 + "$"
    text = {"type": "string", "pattern": many}
    forms = {"pattern": text, "inner pattern": {"type": "object", "properties": {"x": text}, "required": ["x"]}}
    bodies: dict[str, dict[str, Any]] = {
        name: {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
        for name, schema in forms.items()
    }
    bodies["grammar"] = {"grammar": "root ::= " + '("a" | "b")* ' * 600}
    for name, body in bodies.items():
        status, said = _chat(server, **body)
        # A grammar that takes no time is as good as one that is refused.
        yield Attempt(f"grammar: {name}", status in (200, 400) and _answers(server), f"{status} {said[:200]}")


def _connections(server: Server) -> Iterator[Attempt]:
    """More idle connections than descriptors."""
    before = resource.prlimit(server.process, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process, resource.RLIMIT_NOFILE, (_FEW_FILES, before[1]))
    try:
        for head in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
            with contextlib.ExitStack() as idle:
                for _ in range(_CONNECTIONS):
                    idle.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60)).send(head)
                yield Attempt(f"{_CONNECTIONS} connections that send {len(head)} bytes", _answers_when_tried(server))
    finally:
        resource.prlimit(server.process, resource.RLIMIT_NOFILE, before)


def _answers_when_tried(server: Server, times: int = 3) -> bool:
    """A connection may be closed to make room before its request is read, and clients try such a one again."""
    for _ in range(times):
        with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
            return httpx.get(f"{server.url}/health", timeout=60).status_code == 200 and _answers(server)
    return False


def _bodies(server: Server) -> Iterator[Attempt]:
    """Bodies that are small and cost much."""
    bodies = {
        "deep": b"[" * 200_000,
        "many": b'{"model": "tiny", "messages": [' + b"[]," * 2_000_000 + b"[]]}",
        "huge number": b'{"model": "tiny", "max_tokens": ' + b"9" * 100_000 + b"}",
    }
    for name, content in bodies.items():
        headers = {"Content-Type": "application/json"}
        status, text = _asked(server, "/v1/chat/completions", content=content, headers=headers)
        yield Attempt(f"body: {name}", 400 <= status < 500 and _answers(server), f"{status} {text[:200]}")


FAMILIES: dict[str, Callable[[Server], Iterator[Attempt]]] = {
    "templates": _templates,
    "grammars": _grammars,
    "connections": _connections,
    "bodies": _bodies,
}
