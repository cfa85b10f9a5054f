"""Errors that an engine's libraries only print while it goes on: they make an error of the answer, and its end is held
back, because a client takes an answer with an end for a good one."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from trilithon.engines.vendor_log import VendorErrors
from trilithon.errors import EngineError, TaintedAnswer
from trilithon.runtime.diagnostics import Diagnosis, diagnose
from trilithon.runtime.engine_errors import engine_error

__all__ = ["EVENTS", "AnswerGuard", "ErrorWatch", "meaning_of"]

EVENTS = "text/event-stream"


class ErrorWatch:
    """Reads what is appended to the log of a child while the block runs; None for no log. All requests that are open
    meanwhile see the same errors: a log does not say whose they are."""

    def __init__(self, log: Path | None) -> None:
        self._log = log
        self._errors = VendorErrors(None)

    def __enter__(self) -> "ErrorWatch":
        if self._log is not None:
            with suppress(FileNotFoundError):  # removed with its folder, when the child has ended
                self._errors = VendorErrors(os.open(self._log, os.O_RDONLY | os.O_CLOEXEC))
        return self

    def __exit__(self, *_: object) -> None:
        self._errors.close()

    @property
    def error(self) -> str:
        """The first line that is an error; empty as long as there is none."""
        return self._errors.first()

    def check(self) -> None:
        """Raises TaintedAnswer."""
        if line := self.error:
            meaning = meaning_of(line)
            raise TaintedAnswer(line, "; ".join(filter(None, (meaning.cause, meaning.advice))))


def meaning_of(line: str) -> Diagnosis:
    """The known cause of an error line, empty for an unknown one."""
    return diagnose(None, line, killed_by_us=False, oom_kills_before=None, oom_kills_after=None)


class AnswerGuard:
    """The bytes of one answer on their way to a client; a stream passes by whole lines. After an error that the watch
    sees, no event passes that ends the answer; after one that the engine sends, nothing. Of an answer that is no stream
    nothing passes after an error."""

    def __init__(self, watch: ErrorWatch) -> None:
        self._watch = watch
        self._held = False
        self._rest = b""
        self._error: EngineError | None = None

    def passed(self, content: bytes, *, is_stream: bool, is_last: bool) -> bytes:
        """What of it may be sent now."""
        if not is_stream:
            return b"" if self._watch.error else content
        lines, end, rest = (self._rest + content).rpartition(b"\n")
        lines, self._rest = (lines + end + rest, b"") if is_last else (lines + end, rest)
        if self._held or self._watch.error or b'"error"' in lines or b"error:" in lines:
            return b"".join([line for line in lines.splitlines(keepends=True) if self._passes(line)])
        return lines

    def check(self) -> None:
        """At the end of the answer. Raises EngineError: TaintedAnswer, or what the engine sent."""
        if self._error is not None:
            raise self._error
        self._watch.check()

    def _passes(self, line: bytes) -> bool:
        name, _, value = line.strip().partition(b":")
        if not self._held and name in (b"data", b"error"):
            message = _json(value)
            if name == b"error" or message.get("error"):
                self._error, self._held = engine_error(500, value), True
            elif self._watch.error:
                self._held = _is_end(message)
        return not self._held


def _is_end(message: dict[str, Any]) -> bool:
    """The last event in either form of llama-server, or OpenAI's mark after it, which is no JSON."""
    choices = message.get("choices") or []
    return not message or message.get("stop") is True or any(choice.get("finish_reason") for choice in choices)


def _json(value: bytes) -> dict[str, Any]:
    try:
        message = json.loads(value)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
