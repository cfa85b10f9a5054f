"""Questions whose answers a rule can check, the rules, and the score of a set. Pure functions."""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from trilithon.measure.records import AnswerRecord

__all__ = ["RULES", "QuestionSet", "Rule", "Score", "SetQuestion", "expected_text", "fault", "score_of"]

Rule = Literal["", "number", "words", "json", "tool_call"]
RULES = tuple(rule for rule in get_args(Rule) if rule)

_NORMAL_95 = 1.959964  # the 97.5% quantile of the normal distribution
_GROUPED = r"\d{1,3}(?:[ \u00a0\u2009\u202f'’]\d{3})+(?!\d)(?:[.,]\d+)?"
_NUMBER = re.compile(rf"(?<!\w)(?<!\d[.,])([-−+](?<![\w)].))?({_GROUPED}|\d+(?:[.,]\d+)*|[.,]\d+)((?:[eE][-+]?\d+)?)")
_MARKED = re.compile(r"\*\*(.+?)\*\*|\\boxed\{([^{}]*)\}", re.DOTALL)
_FENCED = re.compile(r"\A```\w*\s*\n(.*?)\n?\s*```\Z", re.DOTALL)
# Thai, Lao, Burmese, Khmer, Japanese and Chinese are written without spaces between words.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetQuestion:
    """One question of a set. `kind` and `language` are for the reader. `expected` is what its `rule` wants: a number;
    texts ("one word|or another", "begin*" is the beginning of a word); the members of a JSON object; or the "name" and
    the "arguments" of a tool call. Without a rule the answer is shown and not scored. `tools` are offered with it, in
    the form of OpenAI's functions."""

    name: str
    text: str
    kind: str = ""
    language: str = ""
    max_tokens: int = 1024
    rule: Rule = ""
    expected: Any = None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    name: str
    questions: tuple[SetQuestion, ...]

    @property
    def digest(self) -> str:
        """Tells sets of one name apart: 12 hex digits of the SHA-256 of the questions."""
        content = json.dumps([asdict(question) for question in self.questions], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Score:
    """`correct` of `count` scored answers; `low` and `high` are the 95% interval of the share (Wilson, 1927)."""

    correct: int
    count: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.correct / self.count


def score_of(answers: Iterable[AnswerRecord]) -> Score | None:
    """None where no answer was scored."""
    verdicts = [answer.verdict for answer in answers if answer.verdict != "unscored"]
    if not verdicts:
        return None
    count, correct = len(verdicts), verdicts.count("correct")
    share, square = correct / count, _NORMAL_95**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = _NORMAL_95 * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return Score(correct, count, max(middle - half, 0.0), min(middle + half, 1.0))


def fault(question: SetQuestion, answer: str, calls: Sequence[tuple[str, str]] = ()) -> str:
    """What is wrong with the answer by the question's rule; empty where it is right. `calls` are the name and the
    arguments, as JSON, of each tool call. Raises KeyError for a question without a rule."""
    return _CHECKS[question.rule](question.expected, answer, calls)


def expected_text(question: SetQuestion) -> str:
    """What the rule wants, for the reader; empty where there is no rule."""
    if question.rule == "words":
        return ", ".join(question.expected)
    if question.rule == "tool_call":
        return f"{question.expected['name']}({_json(question.expected['arguments'])})"
    return _json(question.expected) if question.rule else ""


def _number_fault(expected: float, answer: str, calls: Sequence[tuple[str, str]]) -> str:
    """The last number of the answer, or of what is printed bold or framed, in English or in Continental notation."""
    marked = ["".join(match) for match in _MARKED.findall(answer)][-1:]
    numbers = [number for text in (*marked, answer) for number in _NUMBER.findall(text)[-1:]]
    if not numbers:
        return "no number"
    if any(expected in _readings(*number) for number in numbers):
        return ""
    return f"the number is {''.join(numbers[-1])}"


def _readings(sign: str, digits: str, exponent: str) -> set[float]:
    """What a number can mean: "1,024" is one from English and another from Russian."""
    digits = re.sub(r"[^\d.,]", "", digits)
    marks = re.findall("[.,]", digits)
    forms = {digits}
    if len(marks) > 1:
        decimal = marks[-1] if marks[-1] != marks[0] else ""
        whole, _, part = digits.rpartition(decimal) if decimal else (digits, "", "")
        grouped = re.fullmatch(r"\d{1,3}(?:[.,]\d{3})+", whole)
        # Otherwise it is a date, a version or a list, which ends in a number.
        forms = {re.sub("[.,]", "", whole) + f".{part or 0}" if grouped else re.split("[.,]", digits)[-1]}
    elif marks and re.fullmatch(r"\d{1,3}[.,]\d{3}", digits):
        forms.add(re.sub("[.,]", "", digits))
    factor = -1 if sign in ("-", "−") else 1
    return {factor * float(form.replace(",", ".") + exponent) for form in forms}


def _words_fault(expected: Sequence[str], answer: str, calls: Sequence[tuple[str, str]]) -> str:
    text = _plain(answer)
    missing = [entry for entry in expected if not any(_contains(text, choice) for choice in entry.split("|"))]
    return f"without {', '.join(missing)}" if missing else ""


def _contains(text: str, words: str) -> bool:
    words = _plain(words)
    if _UNSPACED.search(words):
        return words.strip() in text
    parts = (re.escape(word.rstrip("*")) + (r"\w*" if word.endswith("*") else "") for word in words.split())
    pattern = r"\W+".join(parts)
    return re.search(rf"(?<!\w){pattern}(?!\w)", text) is not None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("ё", "е").split())


def _json_fault(expected: Mapping[str, Any], answer: str, calls: Sequence[tuple[str, str]]) -> str:
    """The whole answer has to be the object; the fence of a code block is allowed."""
    fenced = _FENCED.match(answer.strip())
    return _object_fault(expected, fenced[1] if fenced else answer)


def _object_fault(expected: Mapping[str, Any], text: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(value, dict):
        return "not a JSON object"
    unknown = [name for name in value if name not in expected]
    if unknown:
        return f"{unknown[0]} is not wanted"
    for name, part in expected.items():
        if name not in value:
            return f"{name} is missing"
        if not _is_same(part, value[name]):
            return f"{name} is {_json(value[name])}"
    return ""


def _is_same(expected: Any, value: Any) -> bool:
    """Of texts, case, spaces and Unicode's forms do not matter; 31 and 31.0 are one number."""
    if isinstance(expected, bool) or isinstance(value, bool):
        return expected is value
    if isinstance(expected, str) and isinstance(value, str):
        return _plain(expected) == _plain(value)
    if isinstance(expected, Mapping) and isinstance(value, dict):
        return expected.keys() == value.keys() and all(_is_same(expected[name], value[name]) for name in expected)
    if isinstance(expected, list | tuple) and isinstance(value, list):
        return len(expected) == len(value) and all(map(_is_same, expected, value))
    return bool(expected == value)


def _call_fault(expected: Mapping[str, Any], answer: str, calls: Sequence[tuple[str, str]]) -> str:
    if len(calls) != 1:
        return f"{len(calls)} tools were called" if calls else "no tool was called"
    name, arguments = calls[0]
    if name != expected["name"]:
        return f"the tool is {name}"
    wrong = _object_fault(expected["arguments"], arguments or "{}")
    return f"arguments: {wrong}" if wrong else ""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_CHECKS: Mapping[str, Callable[[Any, str, Sequence[tuple[str, str]]], str]] = {
    "number": _number_fault,
    "words": _words_fault,
    "json": _json_fault,
    "tool_call": _call_fault,
}
