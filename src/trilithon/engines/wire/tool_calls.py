"""Finds tool calls in the output of a model while it is generated: formats of Qwen and Hermes, Llama 3 and Mistral.

Pure. Text that only looks like a call, or is not valid JSON, stays text: no output is lost."""

import json
import re
import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from trilithon.engines.wire.text_stream import held_back

__all__ = ["ToolCall", "ToolCallStream", "parse_tool_calls"]

# What begins a call, and what ends it (only Hermes and Qwen have an end).
_MARKERS = {"<tool_call>": "</tool_call>", "<|python_tag|>": "", "[TOOL_CALLS]": ""}
# Without a marker (Llama 3 writes none for its own tools, and a runtime may drop special tokens), only an answer that
# begins like this may be a call. The type or id may come before the name.
_BARE = re.compile(r'\s*(?:\[\s*)?\{\s*"(?:name|type|function|id|parameters|arguments)"')
_BARE_LONGEST = 40
_JSON_START = re.compile(r'\s*(?:\[\s*(?:\{\s*(?:"[^"]*)?)?|\{\s*(?:"[^"]*)?)?')
_BRACKETS = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'["\\]')
_MOST_FAILURES = 32  # a model in a loop can begin thousands of calls, and each is searched for its end
_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9  # Mistral's template rejects any other length; other templates accept this one


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


Part: TypeAlias = str | ToolCall


def _new_id() -> str:
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


class ToolCallStream:
    """One answer: visible text in; text and complete calls out, in order.

    `names` are the tools of the request: without a marker, only a call of one of them counts as a call."""

    def __init__(self, names: Collection[str], new_id: Callable[[], str] = _new_id):
        self._names = frozenset(names)
        self._new_id = new_id
        self._state: Literal["start", "text", "value", "after"] = "start"
        self._held = ""
        self._lead = ""  # what was removed before a value, for the case that it is not a call
        self._close = ""
        self._marked = False
        self._after_call = False
        self._failures = 0
        self._span = _JsonSpan()

    def feed(self, text: str) -> list[Part]:
        return self._drain(text, final=False)

    def finish(self) -> list[Part]:
        return self._drain("", final=True)

    def _drain(self, text: str, final: bool) -> list[Part]:
        self._held += text
        steps = {"start": self._start, "text": self._text, "value": self._value, "after": self._after}
        parts: list[Part] = []
        while True:
            state, left = self._state, len(self._held)
            parts += [part for part in steps[state](final) if part]
            if (state, left) == (self._state, len(self._held)) or not (self._held or final):
                return parts

    def _start(self, final: bool) -> list[Part]:
        """At the beginning of the answer, where a call may have no marker. White space before a call is dropped."""
        start = self._held.lstrip()
        space = self._held[: len(self._held) - len(start)]
        if marker := next((marker for marker in _MARKERS if start.startswith(marker)), ""):
            self._lead, self._held = space + marker, start.removeprefix(marker)
            self._expect_value(marked=True, close=_MARKERS[marker])
        elif _BARE.match(self._held):
            self._lead, self._held = space, start
            self._expect_value(marked=False, close="")
        elif final or not self._may_be_call(start):
            self._state = "text"
        return []

    @staticmethod
    def _may_be_call(start: str) -> bool:
        if len(start) > _BARE_LONGEST:
            return False
        return bool(_JSON_START.fullmatch(start)) or any(marker.startswith(start) for marker in _MARKERS)

    def _text(self, final: bool) -> list[Part]:
        if self._after_call:
            self._held = self._held.lstrip()
            self._after_call = not self._held
        matches = [(at, marker) for marker in _MARKERS if (at := self._held.find(marker)) >= 0]
        if matches and self._failures < _MOST_FAILURES:
            at, marker = min(matches)
            text, self._lead, self._held = self._held[:at], marker, self._held[at + len(marker) :]
            self._expect_value(marked=True, close=_MARKERS[marker])
            return [text]
        safe = len(self._held) - (0 if final or matches else held_back(self._held, _MARKERS))
        text, self._held = self._held[:safe], self._held[safe:]
        return [text]

    def _expect_value(self, *, marked: bool, close: str) -> None:
        self._state, self._marked, self._close, self._span = "value", marked, close, _JsonSpan()

    def _value(self, final: bool) -> list[Part]:
        end = self._span.end(self._held)
        if end is None and not final:
            return []
        calls = self._calls(self._held[:end]) if end else []
        if not end or not calls:
            self._state, self._after_call, self._failures = "text", False, self._failures + 1
            lead, self._lead = self._lead, ""
            return [lead] if lead else []
        self._held, self._lead, self._state = self._held[end:], "", "after"
        return list(calls)

    def _after(self, final: bool) -> list[Part]:
        """After a call: its closing tag, another call, or text."""
        rest = self._held.lstrip()
        if not rest:
            if final:
                self._held = ""
            return []
        if self._close and rest.startswith(self._close):
            self._held, self._state, self._after_call = rest.removeprefix(self._close), "text", True
            return []
        separator = rest[0] if rest[0] in ";," else ""
        following = rest.removeprefix(separator).lstrip()
        if following[:1] in ("{", "["):
            self._lead, self._held = rest[: len(rest) - len(following)], following
            self._expect_value(marked=self._marked, close=self._close)
        elif final or (following and not (self._close.startswith(rest) and self._close)):
            self._state, self._after_call = "text", True
        return []

    def _calls(self, text: str) -> list[ToolCall]:
        """The calls in a JSON text; empty when one of them is malformed."""
        try:
            value = json.loads(text)
            calls = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        except (ValueError, RecursionError):
            return []
        return [ToolCall(self._new_id(), name, arguments) for name, arguments in calls]

    def _call(self, value: Any) -> tuple[str, str]:
        """Name and arguments. Raises ValueError."""
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            value = value["function"]
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or not name or not (self._marked or name in self._names):
            raise ValueError("not a call")
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(arguments, str):  # JSON within JSON, as in the protocol
            arguments = json.loads(arguments)
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise ValueError("arguments are not an object")
        return name, _json_text(arguments)


def parse_tool_calls(text: str, names: Collection[str]) -> tuple[str, list[ToolCall]]:
    """For a complete answer: the text without calls, and the calls."""
    stream = ToolCallStream(names)
    parts = stream.feed(text) + stream.finish()
    text = "".join(part for part in parts if isinstance(part, str))
    return text, [part for part in parts if isinstance(part, ToolCall)]


def _json_text(value: object) -> str:
    """Raises ValueError for values that are not JSON: infinity (1e999) and NaN, which Python's reader accepts."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: possible as an escape in JSON, not in UTF-8
        return json.dumps(value, allow_nan=False)
    return text


class _JsonSpan:
    """Finds the end of the object or array at the beginning of a growing text. Reads each character once."""

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._quoted = False

    def end(self, text: str) -> int | None:
        """The length of the value; 0 when there is none; None while it is incomplete. `text` may only grow."""
        if self._depth == 0 and not self._begin(text):
            return 0 if self._at < len(text) else None
        while match := (_STRING_END if self._quoted else _BRACKETS).search(text, self._at):
            self._at = match.end()
            if match[0] == "\\":
                if self._at == len(text):  # the escaped character is still to come
                    self._at -= 1
                    return None
                self._at += 1
            elif match[0] == '"':
                self._quoted = not self._quoted
            else:
                self._depth += 1 if match[0] in "{[" else -1
                if self._depth == 0:
                    return self._at
        self._at = len(text)
        return None

    def _begin(self, text: str) -> bool:
        """Skips white space; whether a value begins after it."""
        while self._at < len(text) and text[self._at].isspace():
            self._at += 1
        return text[self._at : self._at + 1] in ("{", "[")
