"""Sets of questions as their users write them, in TOML: `bench --questions FILE`. docs/questions.md describes it."""

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trilithon.errors import UserError
from trilithon.language import Message, listed
from trilithon.measure.questions import RULES, QuestionSet, SetQuestion

__all__ = ["STANDARD", "read_questions"]

STANDARD = "standard"
"""The name of the set that the package brings."""

_MOST_BYTES, _MOST_QUESTIONS, _MOST_TOKENS = 1 << 20, 1000, 100_000
_LONGEST_NAME = 100
_TEXTS = ("name", "text", "kind", "language")
_KEYS = (*_TEXTS, "max_tokens", *RULES)
_A_NUMBER, _A_TEXT = Message("a number"), Message("a text")


def read_questions(name: str) -> QuestionSet:
    """The set of this name that the package brings, or of this file. Raises UserError for a file that cannot be read
    and for the first thing that is wrong in it."""
    path = Path(__file__).with_name("questions.toml") if name == STANDARD else Path(name)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(
            "--questions {name}: {reason}; name a file of questions, or: standard", name=name, reason=error.strerror
        ) from error
    if len(content) > _MOST_BYTES:
        raise UserError("{path} is larger than 1 MiB; split it", path=path)
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError("{path} is not TOML: {reason}; correct it first", path=path, reason=error) from error
    return QuestionSet(name=path.stem if name != STANDARD else STANDARD, questions=_questions(document, path))


def _questions(document: Mapping[str, Any], path: Path) -> tuple[SetQuestion, ...]:
    for key in document:
        if key not in ("max_tokens", "questions", "tools"):
            raise _wrong(path, _unknown(key, ("max_tokens", "questions", "tools")))
    entries = document.get("questions")
    if not isinstance(entries, list) or not entries:
        raise UserError("{path} has no questions; write [[questions]] with a name and a text for each", path=path)
    if len(entries) > _MOST_QUESTIONS:
        raise UserError("{path} has more than {most} questions; split it", path=path, most=_MOST_QUESTIONS)
    try:
        limit, tools = _limit(document.get("max_tokens", 1024)), _tools(document.get("tools", []))
    except _Fault as error:
        raise _wrong(path, error.text) from error
    questions: dict[str, SetQuestion] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            question = _question(entry, limit, tools)
            if question.name in questions:
                raise _Fault(Message("another question is named {name}", name=question.name))
        except _Fault as error:
            raise _wrong(path, Message("question {number}: {reason}", number=number, reason=error.text)) from error
        questions[question.name] = question
    return tuple(questions.values())


class _Fault(Exception):
    def __init__(self, text: str):
        super().__init__(text)
        self.text = text


def _wrong(path: Path, reason: str) -> UserError:
    return UserError("{path}, {reason}", path=path, reason=reason)


def _unknown(key: str, names: Sequence[str]) -> Message:
    return Message("{key} is unknown; there are {names}", key=key, names=listed(names))


def _question(entry: object, limit: int, tools: Sequence[Mapping[str, Any]]) -> SetQuestion:
    if not isinstance(entry, dict):
        raise _Fault(Message("it is no table; write [[questions]] above it"))
    for key in entry:
        if key not in _KEYS:
            raise _Fault(_unknown(key, _KEYS))
    texts = {key: _text(key, entry[key]) for key in _TEXTS if key in entry}
    for key in ("name", "text"):
        if key not in texts:
            raise _Fault(Message("{key} is missing", key=key))
    if len(texts["name"]) > _LONGEST_NAME:
        raise _Fault(Message("its name is longer than {most} characters", most=_LONGEST_NAME))
    rules = [key for key in RULES if key in entry]
    if len(rules) > 1:
        raise _Fault(Message("it has the rules {names}; keep one", names=listed(rules)))
    rule = rules[0] if rules else ""
    expected: Any = _EXPECTED[rule](entry[rule]) if rule else None
    if rule == "tool_call":
        _require_tool(expected["name"], tools)
    return SetQuestion(
        **texts,
        max_tokens=_limit(entry.get("max_tokens", limit)),
        rule=rule,  # type: ignore[arg-type] # one of RULES
        expected=expected,
        tools=tuple(tools) if rule == "tool_call" else (),
    )


def _require_tool(name: str, tools: Sequence[Mapping[str, Any]]) -> None:
    names = [str(tool["name"]) for tool in tools]
    if name not in names:
        text = Message("there is no tool {name}; there are {names}", name=name, names=listed(names))
        raise _Fault(text if names else Message("there are no tools to call; write [[tools]] in the file"))


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Fault(Message("{key} has to be {kind}", key=key, kind=_A_TEXT))
    return value.strip()


def _limit(value: object) -> int:
    if type(value) is not int or not 1 <= value <= _MOST_TOKENS:
        kind = Message("a whole number from 1 to {most}", most=_MOST_TOKENS)
        raise _Fault(Message("{key} has to be {kind}", key="max_tokens", kind=kind))
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type] # it is a number
        raise _Fault(Message("{key} has to be {kind}", key="number", kind=_A_NUMBER))
    return value  # type: ignore[return-value]


def _words(value: object) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    choices = [choice for entry in entries for choice in (entry.split("|") if isinstance(entry, str) else [""])]
    if not choices or not all(re.search(r"\w", choice) for choice in choices):
        kind = Message('a list of words, for example ["Oslo", "one|or another", "begin*"]')
        raise _Fault(Message("{key} has to be {kind}", key="words", kind=kind))
    return [str(entry) for entry in entries]


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not value or not _is_json(value):
        kind = Message("a table of texts, numbers, truth values, lists and tables")
        raise _Fault(Message("{key} has to be {kind}", key="json", kind=kind))
    return value


def _is_json(value: object) -> bool:
    """TOML has dates and times, infinity and NaN besides."""
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    if isinstance(value, list):
        return all(map(_is_json, value))
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _call(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not value.keys() <= {"name", "arguments"} or not _is_json(value):
        value = {}
    name, arguments = value.get("name"), value.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        kind = Message("a table with the name and the arguments of the call")
        raise _Fault(Message("{key} has to be {kind}", key="tool_call", kind=kind))
    return {"name": name, "arguments": arguments}


def _tools(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(map(_is_tool, value)):
        kind = Message("tables with a name, a description and the JSON schema of the parameters")
        raise _Fault(Message("{key} has to be {kind}", key="tools", kind=kind))
    return value


def _is_tool(tool: object) -> bool:
    if not isinstance(tool, dict) or not tool.keys() <= {"name", "description", "parameters"} or not _is_json(tool):
        return False
    return isinstance(tool.get("name"), str) and isinstance(tool.get("parameters", {}), dict)


_EXPECTED: Mapping[str, Callable[[object], Any]] = {
    "number": _number,
    "words": _words,
    "json": _object,
    "tool_call": _call,
}
