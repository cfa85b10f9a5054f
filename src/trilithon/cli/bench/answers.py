"""`trilithon results show N --answers`: what was asked of each placement, and what it answered."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from trilithon.cli.output import say
from trilithon.errors import UserError
from trilithon.units import format_number

if TYPE_CHECKING:
    from trilithon.measure.records import AnswerRecord, Campaign
    from trilithon.results.phrases import Phrases

__all__ = ["show_answers"]


def show_answers(campaigns: "Sequence[Campaign]", output: str) -> None:
    """As text, or every answer as JSON. Raises UserError for a campaign without answers, and for another output."""
    from trilithon.cli.bench.outcome import phrases_here

    for campaign in campaigns:
        if not any(placement.answers for placement in campaign.placements):
            raise UserError(
                "campaign {id} asked no set of questions; ask one with: trilithon bench --questions standard",
                id=campaign.id,
            )
    if output not in ("table", "json", "jsonl"):
        raise UserError("--answers are printed as text, json or jsonl; leave -o {name} out", name=output)
    if output == "table":
        for line in _lines(campaigns, phrases_here()):
            say(line, wrap=True)
        return
    answers = [
        {"campaign": campaign.id, "placement": placement.name, **asdict(answer)}
        for campaign in campaigns
        for placement in campaign.placements
        for answer in placement.answers
    ]
    if output == "json":
        say(json.dumps(answers, indent=1, ensure_ascii=False))
    for answer in answers if output == "jsonl" else ():
        say(json.dumps(answer, ensure_ascii=False))


def _lines(campaigns: "Sequence[Campaign]", phrases: "Phrases") -> Iterator[str]:
    """Each question once, with the answers of all placements below it."""
    answers: dict[tuple[str, str], list[tuple[str, AnswerRecord]]] = {}
    for campaign in campaigns:
        for placement in campaign.placements:
            name = f"{campaign.id}:{placement.name}" if len(campaigns) > 1 else placement.name
            for answer in placement.answers:
                answers.setdefault((answer.question, answer.text), []).append((name, answer))
    for (question, text), of_placements in answers.items():
        first = of_placements[0][1]
        about = ", ".join(filter(None, (first.kind, first.language)))
        yield f"{question} ({about})" if about else question
        yield from _indented(text, 2)
        if first.expected:
            yield from _indented(phrases("answer_expected", text=first.expected), 2)
        for name, answer in of_placements:
            took = phrases("answer_took", tokens=answer.tokens, seconds=phrases.number(format_number(answer.seconds)))
            verdict = phrases(f"answer_{answer.verdict}")
            yield f"  {name}: {'; '.join(filter(None, (verdict, answer.reason, took if answer.seconds else '')))}"
            yield from _indented(answer.answer, 4)
        yield ""


def _indented(text: str, columns: int) -> Iterator[str]:
    return (f"{' ' * columns}{line}" for line in text.splitlines())
