"""The answers to a set of questions, in a report: each question with what every placement answered, and the scores."""

from collections.abc import Iterator

from trilithon.language import Message
from trilithon.measure.questions import score_of
from trilithon.measure.records import AnswerRecord, Campaign
from trilithon.results.phrases import Phrases
from trilithon.results.report.markup import Html, element, joined, rows_of_cells, table

__all__ = ["questions"]

_BADGES = {"correct": "same", "wrong": "broken", "unscored": "unknown"}


def questions(campaign: Campaign, phrases: Phrases) -> Html:
    """Empty where no set was asked."""
    answers: dict[str, list[tuple[str, AnswerRecord]]] = {}
    for placement in campaign.placements:
        for answer in placement.answers:
            answers.setdefault(answer.question, []).append((placement.name, answer))
    if not answers:
        return Html("")
    parts = [_matrix(campaign, answers, phrases)]
    parts += [_question(name, records, phrases) for name, records in answers.items()]
    title = element("h2", phrases.text(Message("Questions")))
    return element("section", title, "\n", joined(parts, "\n"))


def _matrix(campaign: Campaign, answers: dict[str, list[tuple[str, AnswerRecord]]], phrases: Phrases) -> Html:
    """A line per question and a column per placement; the scores last."""
    names = [placement.name for placement in campaign.placements if placement.answers]
    rows = []
    for question, records in answers.items():
        verdicts = {name: _badge(answer, phrases) for name, answer in records}
        rows.append([question, records[0][1].kind, *(verdicts.get(name, "–") for name in names)])
    scores = [score_of(placement.answers) for placement in campaign.placements if placement.answers]
    score_cells = [phrases("scored", correct=score.correct, count=score.count) if score else "–" for score in scores]
    heads = [phrases.text(Message("Question")), phrases.text(Message("Kind")), *names]
    rows.append([phrases.text(Message("Score")), "", *score_cells])
    sets = ", ".join(dict.fromkeys(answer.question_set for records in answers.values() for _, answer in records))
    caption = phrases.text(Message("Answers to the set {name}", name=sets))
    return table(caption, heads, rows_of_cells(heads, rows))


def _badge(answer: AnswerRecord, phrases: Phrases) -> Html:
    return element("span", phrases(f"answer_{answer.verdict}"), class_=f"badge {_BADGES[answer.verdict]}")


def _question(name: str, answers: list[tuple[str, AnswerRecord]], phrases: Phrases) -> Html:
    first = answers[0][1]
    parts = [element("p", element("q", first.text, dir="auto"))]
    if first.expected:
        expected = phrases.text(Message("Expected: {text}", text=first.expected))
        parts.append(element("p", expected, class_="muted", dir="auto"))
    for placement, answer in answers:
        parts += _answer(placement, answer, phrases)
    return element("details", element("summary", name), *parts)


def _answer(placement: str, answer: AnswerRecord, phrases: Phrases) -> Iterator[Html]:
    yield element("h3", placement, " ", _badge(answer, phrases))
    if answer.reason:
        yield element("p", answer.reason, class_="muted", lang="en")
    if answer.thinking:
        thinking = element("div", answer.thinking, class_="said", dir="auto")
        yield element("details", element("summary", phrases.text(Message("Thinking"))), thinking)
    if answer.answer:
        yield element("div", answer.answer, class_="said", dir="auto")
