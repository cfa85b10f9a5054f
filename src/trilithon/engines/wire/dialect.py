"""How a server that does not speak the wire is spoken to: its requests and answers are translated at the connection, so
that everything above sees llama-server's formats alone."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Ask", "Dialect", "Translation", "Translator"]

Ask = Callable[[str, Mapping[str, Any]], Awaitable[bytes]]
"""Sends a body to a path of the server, untranslated, and gives the body of the answer. Raises RunError."""


class Translator(Protocol):
    """Translates one answer while it arrives, from bytes to bytes."""

    def feed(self, content: bytes, *, is_stream: bool) -> bytes:
        """What can be passed on now. `is_stream` is true for server-sent events. Raises EngineError."""

    def finish(self) -> bytes:
        """The rest, once the answer is complete. Raises EngineError."""


@dataclass(frozen=True, slots=True)
class Translation:
    """What the server is sent in place of a request; `translator` is None for an answer that is passed on as it is.
    `content_type` is that of the translated answer, where it is another."""

    path: str
    body: Mapping[str, Any] | None
    translator: Translator | None = None
    content_type: str = ""


class Dialect(Protocol):
    """The dialect of one build."""

    async def translation(self, path: str, body: Mapping[str, Any] | None, ask: Ask) -> Translation:
        """Raises RunError where the build has to be asked about itself first, and that fails."""
