"""The server's log: a JSON object a line. What people ask, what models answer, and keys are never in it."""

import contextlib
import io
import json
import logging
import re
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from trilithon.errors import TrilithonError
from trilithon.serve.monitoring.log_writer import LogWriter
from trilithon.serve.request_record import RequestRecord, current_record

__all__ = ["JsonLines", "log_request", "logged_to", "without_secrets"]

_log = logging.getLogger("trilithon.request")
_own_log = logging.getLogger("trilithon.log")
_LONGEST_MESSAGE = 1000
_LONGEST_PATH = 200
_MOST_FRAMES = 12
_SECRETS = (
    (re.compile(r"trl-[A-Za-z0-9_-]{8,}"), "trl-…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s,;\"']+"), r"\1 …"),
    (
        re.compile(
            r"(?i)\b((?:x-)?api[-_]?key|token|authorization)([\"']?\s*[:=]\s*[\"']?)(?!bearer|basic)[^\s,;&\"']+"
        ),
        r"\1\2…",
    ),
    (re.compile(r"\bdata:[a-z]+/[a-z0-9.+-]+;base64,\S+"), "data:…"),
)


@contextlib.contextmanager
def logged_to(stream: TextIO, *, level: int = logging.INFO) -> Iterator[LogWriter]:
    """Everything that this process logs meanwhile goes there, and nowhere else. Nobody who logs waits for the reader of
    the stream; one that has no descriptor stands for stderr."""
    stream.flush()
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        descriptor = 2
    writer = LogWriter(descriptor)
    handler = _LineHandler(writer)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    before, level_before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.setLevel(logging.NOTSET)
        logger.propagate = name != "uvicorn.access"  # its lines hold queries; ours say more
    for name in ("httpx", "httpcore"):  # at INFO they write down every address that is asked
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield writer
    finally:
        root.handlers[:] = before
        root.setLevel(level_before)
        writer.close()


class _LineHandler(logging.Handler):
    def __init__(self, writer: LogWriter):
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        if lines := self._writer.take_left_out():
            facts = {"lines": lines}
            _own_log.warning("the log was not read; its next lines were left out", extra={"facts": facts})
        self._writer.write(self.format(record))


class JsonLines(logging.Formatter):
    """`facts` of a record (logging's `extra`) become fields. Of an exception that is not ours the text is left out: it
    may quote what a client sent."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage())[:_LONGEST_MESSAGE],
        }
        request = current_record()
        if request is not None:
            line["request_id"] = request.request_id
        line |= getattr(record, "facts", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= _exception(record.exc_info[1], record.exc_info[2])
        return json.dumps(line, default=str)  # in ASCII: a terminal must take nothing of it for a command


def log_request(record: RequestRecord) -> None:
    """One line for one answered request."""
    facts: dict[str, Any] = {
        "request_id": record.request_id,
        "key": record.key_name or None,
        "method": record.method,
        "path": without_secrets(record.path)[:_LONGEST_PATH],
        "route": record.route or None,
        "status": record.status,
        "whole": record.whole,
        "seconds": round(record.seconds, 6),
        "sent_bytes": record.sent_bytes,
    }
    if record.first_token_seconds is not None:
        facts["first_token_seconds"] = round(record.first_token_seconds, 6)
    if record.generated:
        facts |= _answers(record)
    if record.told_status:
        facts["told_status"] = record.told_status
    if record.retried:
        facts["retried"] = record.retried
    if record.error:
        facts["error"] = record.error
    level = logging.ERROR if record.error else logging.INFO
    _log.log(level, "answered" if record.whole else "broken off", extra={"facts": facts})


def without_secrets(text: str) -> str:
    """A second line of defence: nothing here writes a key into the log, but a library might."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _answers(record: RequestRecord) -> dict[str, Any]:
    last = record.generated[-1]
    guessed = sum(generation.timings.draft_n for generation in record.generated)
    right = sum(generation.timings.draft_accepted for generation in record.generated)
    return {
        "model": last.model,
        "placement": last.placement,
        "prefill_unit": last.prefill_unit,
        "decode_unit": last.decode_unit,
        "prompt_tokens": sum(generation.timings.prompt_n for generation in record.generated),
        "cached_tokens": sum(generation.timings.cache_n for generation in record.generated),
        "generated_tokens": sum(generation.timings.predicted_n for generation in record.generated),
        "prefill_seconds": round(sum(generation.timings.prompt_ms for generation in record.generated) / 1e3, 6),
        "decode_seconds": round(sum(generation.timings.predicted_ms for generation in record.generated) / 1e3, 6),
        **({"guessed_tokens": guessed, "guessed_right_tokens": right} if guessed else {}),
    }


def _exception(error: BaseException, trace: TracebackType | None) -> dict[str, Any]:
    frames = traceback.extract_tb(trace)[-_MOST_FRAMES:]
    exception: dict[str, Any] = {
        "exception": type(error).__name__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(error, TrilithonError | OSError):
        exception["why"] = without_secrets(str(error))[:_LONGEST_MESSAGE]
    return exception
