"""The rules of scored answers, and the score."""

from typing import Any

import pytest

from trilithon.measure.questions import QuestionSet, Rule, SetQuestion, expected_text, fault, score_of
from trilithon.measure.records import AnswerRecord

CALL = {"name": "get_weather", "arguments": {"city": "Oslo"}}


def fault_of(rule: Rule, expected: Any, answer: str, calls: tuple[tuple[str, str], ...] = ()) -> str:
    return fault(SetQuestion(name="q", text="?", rule=rule, expected=expected), answer, calls)


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        (408, "408"),
        (408, "17 * 24 = 408."),
        (408, "The product is **408**, since 17 times 20 is 340."),
        (408, r"\boxed{408} (checked with 17 and 24)"),
        (408, "It is 408.0 exactly"),
        (1024, "1,024"),
        (1024, "1.024"),
        (1024, "1 024"),
        (1024, "1\u202f024 байта"),
        (1234567.5, "1,234,567.5"),
        (1234567.5, "1.234.567,5"),
        (2.8, "2,80 €"),
        (2.8, "$2.80"),
        (0.5, ".5"),
        (-3, "−3"),
        (-3, "x = -3"),
        (7, "10-3 is 7"),
        (1500, "1.5e3"),
        (5, "a,5"),
        (2026, "30.11.2026"),
    ],
)
def test_numbers_that_are_right(expected: float, answer: str) -> None:
    assert fault_of("number", expected, answer) == ""


@pytest.mark.parametrize(
    ("expected", "answer", "reason"),
    [
        (408, "forty", "no number"),
        (408, "", "no number"),
        (408, "408 or 409", "the number is 409"),
        (408, "4080", "the number is 4080"),
        (3, "10-7 = -3", "the number is -3"),
        (1024, "10,24", "the number is 10,24"),
        (8, "a model of the name B8", "no number"),
    ],
)
def test_numbers_that_are_wrong(expected: float, answer: str, reason: str) -> None:
    assert fault_of("number", expected, answer) == reason


@pytest.mark.parametrize(
    ("expected", "answer", "reason"),
    [
        (["Oslo"], "It is oslo!", ""),
        (["Oslo"], "Oslofjord", "without Oslo"),
        (["Толст*"], "Лев Николаевич Толстой", ""),
        (["ещё"], "Еще раз", ""),
        (["New York|NYC"], "in new\nYork", ""),
        (["New York|NYC"], "nyc", ""),
        (["cat", "table"], "The cat sleeps", "without table"),
        (["東京"], "日本の首都は東京です", ""),
        (["ﬁne"], "fine", ""),
        (["a.c"], "abc", "without a.c"),
    ],
)
def test_words(expected: list[str], answer: str, reason: str) -> None:
    assert fault_of("words", expected, answer) == reason


PERSON = {"name": "Anna Berg", "age": 31, "tags": ["a", {"b": True}]}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"name": "anna  berg", "age": 31.0, "tags": ["A", {"b": true}]}', ""),
        ('```json\n{"name": "Anna Berg", "age": 31, "tags": ["a", {"b": true}]}\n```', ""),
        ('Here: {"name": "Anna Berg"}', "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"name": "Anna Berg", "tags": ["a", {"b": true}]}', "age is missing"),
        ('{"name": "Anna Berg", "age": "31", "tags": []}', 'age is "31"'),
        ('{"name": "Anna Berg", "age": 31, "tags": ["a", {"b": 1}]}', 'tags is ["a", {"b": 1}]'),
        ('{"name": "Anna Berg", "age": 31, "tags": ["a", {"b": true}], "x": 1}', "x is not wanted"),
    ],
)
def test_json(answer: str, reason: str) -> None:
    assert fault_of("json", PERSON, answer) == reason


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([("get_weather", '{"city": "oslo"}')], ""),
        ([], "no tool was called"),
        ([("get_weather", '{"city": "Oslo"}')] * 2, "2 tools were called"),
        ([("set_timer", '{"city": "Oslo"}')], "the tool is set_timer"),
        ([("get_weather", '{"city": "Bergen"}')], 'arguments: city is "Bergen"'),
        ([("get_weather", "")], "arguments: city is missing"),
        ([("get_weather", '{"city":')], "arguments: not JSON"),
    ],
)
def test_tool_calls(calls: list[tuple[str, str]], reason: str) -> None:
    assert fault_of("tool_call", CALL, "", tuple(calls)) == reason


def test_what_is_expected_in_words() -> None:
    def text(rule: Rule, expected: Any) -> str:
        return expected_text(SetQuestion(name="q", text="?", rule=rule, expected=expected))

    assert text("", None) == ""
    assert text("number", 2.8) == "2.8"
    assert text("words", ["cat|кот", "table"]) == "cat|кот, table"
    assert text("json", {"product": "лампа"}) == '{"product": "лампа"}'
    assert text("tool_call", CALL) == 'get_weather({"city": "Oslo"})'


def answers(*verdicts: str) -> list[AnswerRecord]:
    return [
        AnswerRecord(question_set="s", set_digest="d", question=str(number), text="?", verdict=verdict)  # type: ignore[arg-type]
        for number, verdict in enumerate(verdicts)
    ]


def test_a_score_has_wilsons_interval() -> None:
    score = score_of(answers(*["correct"] * 8, *["wrong"] * 2, "unscored"))
    assert score is not None
    assert (score.correct, score.count, score.share) == (8, 10, 0.8)
    assert (score.low, score.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    none, every = score_of(answers("wrong")), score_of(answers("correct"))
    assert none is not None
    assert every is not None
    assert (none.low, every.high) == (0.0, 1.0)
    assert 0 < none.high < 1
    assert score_of(answers("unscored")) is None


def test_sets_of_one_name_are_told_apart_by_their_questions() -> None:
    one, same, other = (
        QuestionSet(name="mine", questions=(SetQuestion(name="q", text=text),)) for text in ("a", "a", "b")
    )
    assert one.digest == same.digest != other.digest
