"""What is sent in a stream while the answer is not there yet: proxies and clients give up on a silent connection (nginx
after 60 s, Node's fetch after 300 s)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trilithon.serve.http.errors import ApiError

__all__ = ["BLANK", "COMMENT", "EVENTS", "KEEP_ALIVES", "NDJSON", "PING", "StreamForm", "StreamTimes"]

EVENTS: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"

COMMENT: Final = b": keep-alive\n\n"
"""Of server-sent events: every reader leaves out a line that begins with a colon."""
PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
"""Anthropic's."""
BLANK: Final = b" "
"""Of JSON lines: white space before the next object. An empty line would be an error for Ollama's Python client, which
parses every line (ollama 0.6.3, _client.py)."""
KEEP_ALIVES: Final = frozenset({COMMENT, PING, BLANK})


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTimes:
    """When the head of a stream is sent, though there is no answer yet: what is refused before has a status of its own.
    That is later, up to `silent_seconds`, where the placement is not known yet. And how long a stream is silent."""

    open_after_seconds: float = 0.5
    silent_seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamForm:
    """How an API streams. `broken` has its words for what goes wrong once the head is sent; `keep_alive` may be sent
    where `boundary` ends what was sent before."""

    broken: Callable[[ApiError], bytes]
    content_type: str = EVENTS
    keep_alive: bytes = COMMENT
    boundary: bytes = b"\n\n"
