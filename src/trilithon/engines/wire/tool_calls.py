"""Calls of tools found in what a model writes, while it writes: the formats of Qwen and Hermes, Llama 3 and Mistral.

Pure. What only looks like a call, or is no valid JSON, stays text: nothing that the model wrote is lost."""

import json
import re
import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from trilithon.engines.wire.text_stream import held_back

__all__ = ["ToolCall", "ToolCallStream", "parse_tool_calls"]

# What announces a call, and what closes it (Hermes' and Qwen's alone have an end).
_MARKERS = {"<tool_call>": "</tool_call>", "<|python_tag|>": "", "[TOOL_CALLS]": ""}
# Without a marker (Llama 3 writes none for its own tools, and a runtime may have dropped a special token), only an
# answer that begins like this is looked at; a name may come with the type or the id before it.
_BARE = re.compile(r'\s*(?:\[\s*)?\{\s*"(?:name|type|function|id|parameters|arguments)"')
_BARE_LONGEST = 40
_JSON_START = re.compile(r'\s*(?:\[\s*(?:\{\s*(?:"[^"]*)?)?|\{\s*(?:"[^"]*)?)?')
_BRACKETS = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'["\\]')
_MOST_FAILURES = 32  # a model in a loop can announce a call thousands of times, and each is looked for to the end
_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9  # Mistral's template refuses any other length, and no template minds this one


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
    """One answer: visible text goes in; text and whole calls come out, in their order.

    `names` are the tools that the request offers: without a marker, only a call of one of them is a call."""

    def __init__(self, names: Collection[str], new_id: Callable[[], str] = _new_id):
        self._names = frozenset(names)
        self._new_id = new_id
        self._state: Literal["start", "text", "value", "after"] = "start"
        self._held = ""
        self._lead = ""  # what was taken off before a value, in case that it is none
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
        """Before anything was written: is this a call without a marker? White space before a call is dropped."""
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
        markers = [(at, marker) for marker in _MARKERS if (at := self._held.find(marker)) >= 0]
        if markers and self._failures < _MOST_FAILURES:
            at, marker = min(markers)
            text, self._lead, self._held = self._held[:at], marker, self._held[at + len(marker) :]
            self._expect_value(marked=True, close=_MARKERS[marker])
            return [text]
        kept = 0 if final or markers else held_back(self._held, _MARKERS)
        safe = len(self._held) - kept
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
        """The calls in a JSON text; none when one of them is malformed."""
        try:
            value = json.loads(text)
            calls = [self._call(each) for each in (value if isinstance(value, list) else [value])]
        except (ValueError, RecursionError):
            return []
        return [ToolCall(self._new_id(), *call) for call in calls]

    def _call(self, value: Any) -> tuple[str, str]:
        """Name and arguments. Raises ValueError."""
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            value = value["function"]
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or not name or not (self._marked or name in self._names):
            raise ValueError("no call")
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(arguments, str):  # JSON within JSON, as the wire has it
            arguments = json.loads(arguments)
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise ValueError("arguments that are no object")
        return name, _json_text(arguments)


def parse_tool_calls(text: str, names: Collection[str]) -> tuple[str, list[ToolCall]]:
    """A whole answer: what is not a call, and the calls."""
    stream = ToolCallStream(names)
    parts = stream.feed(text) + stream.finish()
    return "".join(p for p in parts if isinstance(p, str)), [p for p in parts if isinstance(p, ToolCall)]


def _json_text(value: object) -> str:
    """Raises ValueError for what JSON cannot say: an infinity out of 1e999, or a NaN, which Python's reader takes."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can say it with an escape, UTF-8 cannot
        return json.dumps(value, allow_nan=False)
    return text


class _JsonSpan:
    """Where the object or array at the beginning of a growing text ends. Looks at each character once."""

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._quoted = False

    def end(self, text: str) -> int | None:
        """The length of the value; 0 when there is none; None while it goes on. `text` may only have grown."""
        if self._depth == 0 and not self._begin(text):
            return 0 if self._at < len(text) else None
        while match := (_STRING_END if self._quoted else _BRACKETS).search(text, self._at):
            self._at = match.end()
            if match[0] == "\\":
                if self._at == len(text):  # what is escaped is still to come
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
        """Steps over white space; whether a value begins after it."""
        while self._at < len(text) and text[self._at].isspace():
            self._at += 1
        return text[self._at : self._at + 1] in ("{", "[")
