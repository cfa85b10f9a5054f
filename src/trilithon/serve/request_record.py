"""What is known of one request, gathered for the log and the metrics. Never what was said in it."""

import contextvars
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from trilithon.engines.base import Placement
from trilithon.engines.wire.messages import Timings
from trilithon.errors import RunError
from trilithon.serve.http.keep_alive import KEEP_ALIVES

__all__ = [
    "Generated",
    "RequestRecord",
    "current_record",
    "note_broken",
    "note_first_token",
    "note_generated",
    "note_placed",
    "note_retried",
    "note_told",
    "recording",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One answer of a model: where its prompt was evaluated and its tokens were made, by the engine's own clock."""

    model: str
    placement: str
    prefill_unit: str
    decode_unit: str
    timings: Timings

    @property
    def prompt_tokens(self) -> int:
        """Evaluated now; those from the cache are apart."""
        return self.timings.prompt_n

    @property
    def token_seconds(self) -> float | None:
        """The mean step from one token to the next; None for an answer without one."""
        steps = self.timings.predicted_n - 1
        return self.timings.predicted_ms / 1e3 / steps if steps > 0 and self.timings.predicted_ms > 0 else None


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Times are monotonic. `route` is the route's pattern, empty for a request that reached none; `whole` is whether
    the answer was sent to its end; `told_status` the status of an error that a stream told, whose head says 200;
    `placement` what the request waits for; `retried` how often an engine died before its first word; `error` the kind
    of what went wrong inside, if anything did."""

    request_id: str
    method: str
    path: str
    began_ns: int
    key_name: str = ""
    route: str = ""
    status: int = 0
    told_status: int = 0
    placement: Placement | None = None
    streamed: bool = False
    sent_bytes: int = 0
    first_token_ns: int | None = None
    ended_ns: int | None = None
    whole: bool = False
    retried: int = 0
    error: str = ""
    generated: list[Generated] = field(default_factory=list)

    def sent(self, content: bytes) -> None:
        """A part of the answer's body; of a stream, the first is the first token."""
        self.sent_bytes += len(content)
        if self.first_token_ns is None and content and self.streamed and content not in KEEP_ALIVES:
            self.first_token_ns = time.monotonic_ns()

    @property
    def dialect(self) -> str:
        if self.path.startswith("/api/"):
            return "ollama"
        if self.path.startswith("/v1/messages"):
            return "anthropic"
        return "openai" if self.path.startswith("/v1/") else "plain"

    @property
    def seconds(self) -> float:
        return ((self.ended_ns or time.monotonic_ns()) - self.began_ns) / 1e9

    @property
    def first_token_seconds(self) -> float | None:
        return None if self.first_token_ns is None else (self.first_token_ns - self.began_ns) / 1e9


_current: contextvars.ContextVar[RequestRecord | None] = contextvars.ContextVar("request", default=None)


def current_record() -> RequestRecord | None:
    """Of the request that this task works for; None outside of any."""
    return _current.get()


@contextmanager
def recording(record: RequestRecord) -> Iterator[RequestRecord]:
    token = _current.set(record)
    try:
        yield record
    finally:
        _current.reset(token)


def note_first_token(at_ns: int) -> None:
    """The first piece of an answer came from the engine. What a stream sent before, such as Anthropic's
    `message_start`, was no token. Of several answers the first counts."""
    record = _current.get()
    if record is not None and not record.generated:
        record.first_token_ns = max(record.first_token_ns or 0, at_ns)


def note_broken(error: Exception) -> None:
    """Something went wrong on our side, maybe in the middle of an answer. Its words are left out: an engine's may quote
    what it was asked."""
    record = _current.get()
    if record is not None:
        cause = error.cause if isinstance(error, RunError) else ""
        record.error = f"{type(error).__name__}{': ' * bool(cause)}{cause}"


def note_told(status: int) -> None:
    """A stream that was open told an error."""
    record = _current.get()
    if record is not None:
        record.told_status = status


def note_placed(placement: Placement) -> None:
    """Where the answer will come from, before there is one."""
    record = _current.get()
    if record is not None:
        record.placement = placement


def note_retried() -> None:
    """The engine died before the first word of the answer, and is asked again."""
    record = _current.get()
    if record is not None:
        record.retried += 1


def note_generated(*, model: str, placement: str, prefill_unit: str, decode_unit: str, timings: Timings) -> None:
    """An answer is done. `model` is the name that it has here, never what a client called it."""
    record = _current.get()
    if record is not None:
        record.generated.append(
            Generated(
                model=model, placement=placement, prefill_unit=prefill_unit, decode_unit=decode_unit, timings=timings
            )
        )
