"""What the report of a tune has: a chart of its race, what was tried, and the same settings with the engine alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trilithon.language import Message
from trilithon.measure.records import Campaign
from trilithon.results.phrases import Phrases
from trilithon.results.report.markup import Html, element, joined, rows_of_cells, table
from trilithon.results.tuned.steps import TuneStep, end_of, is_tune, steps

if TYPE_CHECKING:
    from trilithon.results.compare import ComparisonRow
    from trilithon.results.report.charts import Chart

__all__ = ["charts_of", "step_lines", "tuned"]

_RESULTS = {
    "kept": Message("kept"),
    "dropped": Message("dropped"),
    "failed": Message("failed"),
    "wrong": Message("other answers: not run"),
}
_GAIN, _INTERVAL, _ROUNDS = Message("Times as fast"), Message("99% interval"), Message("Rounds")


def charts_of(
    campaign: Campaign, rows: "Sequence[ComparisonRow]", *, source: str, phrases: Phrases
) -> "dict[str, Chart]":
    """Of a tune its race alone: bars of all that ran would show what was lucky."""
    from trilithon.results.report.plots import figures

    if not is_tune(campaign):
        return figures(rows, source=source, phrases=phrases)
    tried = steps(campaign)
    return {"race": _race(tried, source, phrases)} if tried else {}


def _race(tried: Sequence[TuneStep], source: str, phrases: Phrases) -> "Chart":
    from trilithon.results.report.charts import Bar, bar_chart
    from trilithon.results.report.plots import unit_of

    bars = []
    for step in tried:
        result = phrases.text(_RESULTS[step.result])
        bar = Bar(label=step.change, unit=unit_of(step.challenger), note=result, lacking=phrases("no_result"))
        if step.gain is not None:
            interval = None if step.low is None or step.high is None else (step.low, step.high)
            bar = Bar(
                label=step.change,
                unit=unit_of(step.challenger),
                parts=(step.gain,),
                interval=interval,
                values=step.gains,
                number=phrases.number(f"{step.gain:.2f}"),
                aside=_interval(step, phrases),
                tag="" if step.result == "dropped" else result,
            )
        bars.append(bar)
    foot = Message("A dot is one round; the line is the 99% interval.")
    title, subtitle = Message("The race"), Message("times as fast as the best settings until then; higher is better")
    chart = bar_chart(phrases.text(title), phrases.text(subtitle), bars, (phrases.text(foot), source), ceiling=0.0)
    chart.name = "race"
    return chart


def tuned(campaign: Campaign, phrases: Phrases) -> Html:
    """Empty for what is no tune."""
    if not is_tune(campaign):
        return Html("")
    heads = [
        phrases.text(head)
        for head in (Message("Change"), Message("Compared with"), _GAIN, _INTERVAL, _ROUNDS, Message("Result"))
    ]
    rows = [
        (
            step.change,
            step.incumbent,
            "–" if step.gain is None else phrases.number(f"{step.gain:.2f}"),
            _interval(step, phrases) or "–",
            str(len(step.gains)),
            phrases.text(_RESULTS[step.result]),
        )
        for step in steps(campaign)
    ]
    title = phrases.text(Message("What was tried"))
    parts = [element("h2", title), table(title, heads, rows_of_cells(heads, rows))] if rows else []
    end = end_of(campaign)
    if end is not None and end.by_hand:
        about = (
            Message("No engine alone does a handover. These lines start its halves:")
            if len(end.by_hand) > 1
            else Message("This line starts the same settings without Trilithon:")
        )
        parts += [
            element("h2", phrases.text(Message("With the engine alone"))),
            element("p", phrases.text(about)),
            *(element("pre", element("code", line), tabindex="0") for line in end.by_hand),
        ]
    return element("section", *parts) if parts else joined(())


def step_lines(campaign: Campaign, phrases: Phrases) -> list[str]:
    """ "mask=4-7,t=4: 1.31 times as fast (1.22–1.40), kept"."""
    lines = []
    for step in steps(campaign) if is_tune(campaign) else ():
        result = phrases.text(_RESULTS[step.result])
        if step.gain is None:
            lines.append(f"{step.change}: {result}")
            continue
        line = Message(
            "{change}: {ratio} times as fast {interval}, {result}",
            change=step.change,
            ratio=phrases.number(f"{step.gain:.2f}"),
            interval=f"({_interval(step, phrases) or phrases('no_interval')})",
            result=result,
        )
        lines.append(phrases.text(line))
    return lines


def _interval(step: TuneStep, phrases: Phrases) -> str:
    return "" if step.low is None or step.high is None else phrases.number(f"{step.low:.2f}–{step.high:.2f}")
