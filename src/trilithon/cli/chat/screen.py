"""Reading what the user writes, and showing what the model answers: on a terminal, and through pipes."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from trilithon.cli.chat.conversation import HELP, Subject
from trilithon.cli.output import say
from trilithon.models.store.parameters import Parameter
from trilithon.terminal import plain
from trilithon.units import format_bytes, format_number

__all__ = ["ChatScreen", "shown_lines", "timing_lines", "waiting"]

_MOST_REMEMBERED = 1000
_WORDS = sorted({word for line in HELP.splitlines() for word in line.split() if word.startswith("/") and word[1:]})
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_SILENT_SECONDS = 1.0


class ChatScreen:
    """Answers go to stdout; thinking, and whatever we say ourselves, to stderr. `history` is the file that keeps what
    was written, None to keep nothing."""

    def __init__(self, history: Path | None = None, out: TextIO | None = None, notes: TextIO | None = None):
        self._out = out or sys.stdout
        self._notes = notes or sys.stderr
        self._history = history
        self._column = 0
        self._thinks = False

    @contextlib.contextmanager
    def lines(self) -> Iterator[None]:
        """With line editing and history where there is a terminal."""
        try:
            import readline
        except ImportError:  # a Python without it reads plain lines
            yield
            return
        readline.set_history_length(_MOST_REMEMBERED)
        readline.set_completer(_completed)
        readline.set_completer_delims("\n")
        readline.parse_and_bind("tab: complete")
        with self._remembered(readline):
            yield

    @contextlib.contextmanager
    def _remembered(self, readline: Any) -> Iterator[None]:
        if self._history is not None:
            with contextlib.suppress(FileNotFoundError):
                readline.read_history_file(self._history)
        try:
            yield
        finally:
            if self._history is not None:
                try:
                    self._history.parent.mkdir(parents=True, exist_ok=True)
                    self._history.touch(mode=0o600)
                    readline.write_history_file(self._history)
                except OSError as error:
                    self.tell(f"{self._history} cannot be written: {error.strerror}; the input history is not saved")

    def ask(self, prompt: str) -> str | None:
        """The next line; None at the end of input. Raises KeyboardInterrupt for Ctrl-C."""
        try:
            return input(plain(prompt))
        except EOFError:
            self._out.write("\n")
            return None
        except UnicodeDecodeError:
            self.tell("that is not UTF-8; it was not sent")
            return ""

    def tell(self, text: str) -> None:
        self.end_line()
        self._notes.write(f"{plain(text) if self._notes.isatty() else text}\n")
        self._notes.flush()

    def piece(self, text: str, *, thinking: bool = False) -> None:
        """A part of the answer, shown at once."""
        if not text:
            return
        if thinking != self._thinks:
            self._turn(thinking)
        stream = self._notes if thinking else self._out
        stream.write(plain(text) if stream.isatty() else text)
        stream.flush()
        self._column = 0 if text.endswith("\n") else 1

    def end_line(self) -> None:
        """What follows begins on a line of its own."""
        if self._thinks:
            self._turn(False)
        if self._column:
            self._out.write("\n")
            self._out.flush()
            self._column = 0

    def _turn(self, thinking: bool) -> None:
        self._thinks = thinking
        if self._notes.isatty():
            self._notes.write(_DIM if thinking else _PLAIN)
        if not thinking and self._column:
            self._notes.write("\n")
            self._column = 0
        self._notes.flush()


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says on stderr what is waited for, once it takes long: a line that counts on a terminal, one line elsewhere."""
    over = threading.Event()
    told = threading.Thread(target=_tell_waiting, args=(what, over), name="waiting", daemon=True)
    told.start()
    try:
        yield
    finally:
        over.set()
        told.join()


def _tell_waiting(what: str, over: threading.Event) -> None:
    began = time.monotonic()
    terminal = sys.stderr.isatty()
    while not over.wait(_SILENT_SECONDS):
        seconds = round(time.monotonic() - began)
        say(f"\r{plain(what)}, {seconds} s" if terminal else f"{what} …", err=True, nl=not terminal, raw=True)
        if not terminal:
            return
    if terminal and time.monotonic() - began > _SILENT_SECONDS:
        say("\r\x1b[K", err=True, nl=False, raw=True)


def timing_lines(end: Mapping[str, Any], first_token_seconds: float | None) -> list[str]:
    """How fast an answer was, from the last message of Ollama's stream; what is unknown is left out."""
    more = end.get("timings") or {}
    prefill = _rate(end.get("prompt_eval_count"), end.get("prompt_eval_duration"))
    decode = _rate(end.get("eval_count"), end.get("eval_duration"))
    cached = end.get("prompt_cached_count")
    rows = [
        ("total", _seconds(end.get("total_duration"))),
        ("load", _seconds(end.get("load_duration"))),
        ("time to first token", "" if first_token_seconds is None else f"{first_token_seconds:.3f} s"),
        ("prefill", prefill),
        ("from the cache", f"{cached} tokens" if cached else ""),
        ("decode", decode),
        ("handed over", _handed(more)),
        ("ran on", _placement(more)),
    ]
    return [f"{name + ':':<21}{value}" for name, value in rows if value]


def shown_lines(shown: Mapping[str, Any], subject: Subject, parameters: Mapping[str, Parameter]) -> list[str]:
    """What /show prints, from an answer of Ollama's /api/show; `parameters` are those of the conversation."""
    match subject:
        case "info":
            return _info(shown)
        case "parameters":
            own = [f"{name}  {value}" for name, value in parameters.items()]
            theirs = str(shown.get("parameters") or "").splitlines()
            return [
                *(["of the model:", *theirs] if theirs else []),
                *(["of this conversation:", *own] if own else []),
            ] or ["no parameter is set"]
    return [plain(str(shown.get(subject) or "").strip()) or f"the model has no {subject} of its own"]


def _info(shown: Mapping[str, Any]) -> list[str]:
    details = shown.get("details") or {}
    facts = shown.get("model_info") or {}
    context = next((value for name, value in facts.items() if str(name).endswith(".context_length")), None)
    rows = {
        "architecture": details.get("family"),
        "parameters": details.get("parameter_size"),
        "quantization": details.get("quantization_level"),
        "format": details.get("format"),
        "context length": context,
        "capabilities": ", ".join(map(str, shown.get("capabilities") or ())),
    }
    return [f"{name + ':':<16}{plain(str(value))}" for name, value in rows.items() if value] or ["unknown"]


def _rate(count: Any, duration_ns: Any) -> str:
    if not isinstance(count, int) or not isinstance(duration_ns, int | float) or duration_ns <= 0:
        return ""
    return f"{count} tokens in {duration_ns / 1e9:.3f} s, {format_number(count / duration_ns * 1e9)} tokens/s"


def _seconds(duration_ns: Any) -> str:
    return f"{duration_ns / 1e9:.3f} s" if isinstance(duration_ns, int | float) and duration_ns > 0 else ""


def _handed(more: Mapping[str, Any]) -> str:
    count = more.get("transfer_bytes")
    if not count:
        return f"no: {more['reason']}" if more.get("reason") else ""
    return f"{format_bytes(count)} in {more.get('transfer_seconds') or 0:.3f} s"


def _placement(more: Mapping[str, Any]) -> str:
    """With its units where prefill and decode had different ones."""
    units = dict.fromkeys(str(more[name]) for name in ("prefill_unit", "decode_unit") if more.get(name))
    placement = str(more.get("placement", ""))
    return f"{placement} ({' then '.join(units)})" if len(units) > 1 else placement


def _completed(text: str, number: int) -> str | None:
    words = [word for word in _WORDS if text.startswith("/") and word.startswith(text)]
    return words[number] if number < len(words) else None
