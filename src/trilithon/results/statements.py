"""What a campaign shows of its placements beside each other, a sentence per test and pair."""

from collections import Counter

from trilithon.language import Message, listed
from trilithon.measure.metrics import HEADLINE
from trilithon.measure.records import Campaign, Run
from trilithon.results.compare import Comparison, ComparisonRow, compare_placements, counted_runs, summarise
from trilithon.results.phrases import ENGLISH, Phrases
from trilithon.results.tuned.steps import is_tune

__all__ = ["comparison_lines", "comparison_text", "remark_lines", "warning_lines"]


def comparison_text(name: str, other: str, comparison: Comparison, phrases: Phrases = ENGLISH) -> str:
    """ "tg128, Decode: A beside B: better, 1.312 times (1.280–1.340)"."""
    ratio, answer = comparison.verdict.ratio, comparison.verdict.answer.replace(" ", "_")
    interval = "" if ratio is None or ratio.low is None else phrases.number(f" ({ratio.low:.3f}–{ratio.high:.3f})")
    number = "" if ratio is None else phrases.number(f"{ratio.ratio:.3f}")
    return phrases(
        "comparison",
        test=phrases.test(comparison.test),
        metric=phrases.metric(comparison.metric),
        names=name if name == other else phrases("names", name=name, other=other),
        answer=phrases(answer),
        figures=phrases("figures", ratio=number, interval=interval) if number else "",
        reason=phrases("because", reason=comparison.verdict.reason) if comparison.verdict.reason else "",
        differs=phrases("differs", facts=", ".join(comparison.differs)) if comparison.differs else "",
    )


def comparison_lines(campaign: Campaign, phrases: Phrases = ENGLISH) -> list[str]:
    """Per test, every other placement beside the one with the best median that is not broken."""
    if is_tune(campaign):
        return []  # the race has compared them, see report.tuned
    rows = [row for row in summarise(campaign) if row.metric.name == HEADLINE[row.test.kind] and row.estimate]
    lines = []
    for test in dict.fromkeys(row.test for row in rows):
        of_test = [row for row in rows if row.test == test]
        best = _best(of_test)
        for row in of_test:
            if best is not None and row.placement != best.placement:
                pairs = compare_placements((campaign, row.placement), (campaign, best.placement), phrases=phrases)
                lines += [
                    comparison_text(row.placement, best.placement, pair, phrases) for pair in pairs if pair.test == test
                ]
    return lines


def warning_lines(campaign: Campaign, phrases: Phrases = ENGLISH) -> list[str]:
    """What disturbed the runs, one line per placement: "A: 3 of 5 runs were disturbed, one by this: …"."""
    lines = []
    for placement in campaign.placements:
        runs = _runs(campaign, placement.name)
        disturbed = [run for run in runs if run.warnings]
        if disturbed:
            worst = max(disturbed, key=lambda run: len(run.warnings))
            message = Message(
                "{placement}: {disturbed} of {count} run was disturbed, by this: {warnings}",
                plural="{placement}: {disturbed} of {count} runs were disturbed, one by this: {warnings}",
                placement=placement.name,
                disturbed=len(disturbed),
                count=len(runs),
                warnings=listed(worst.warnings, "; "),
            )
            lines.append(phrases.text(message))
    return lines


def remark_lines(campaign: Campaign, phrases: Phrases = ENGLISH) -> list[str]:
    """What else there is to know of the runs, each once: "A: runs with flash attention off (2 of 5 runs)"; and how much
    of what was guessed ahead was right."""
    lines = []
    for placement in campaign.placements:
        runs = _runs(campaign, placement.name)
        counts = Counter(remark for run in runs for remark in dict.fromkeys(run.remarks))
        for remark, count in counts.items():
            part = Message(" ({part} of {count} runs)", part=count, count=len(runs)) if count < len(runs) else ""
            lines.append(f"{placement.name}: {phrases.text(remark)}{phrases.text(part)}")
        if placement.settings.get("speculation"):
            lines.append(f"{placement.name}: {phrases.text(_guesses(runs))}")
    return lines


def _guesses(runs: list[Run]) -> str:
    marks = [sample.marks for run in runs for sample in run.samples]
    guessed, right = (sum(mark.get(name, 0) for mark in marks) for name in ("guessed_tokens", "guessed_right_tokens"))
    if not guessed:
        return Message("no tokens were drafted")
    return Message(
        "{guessed:,} tokens were drafted, {share:.0%} of them accepted", guessed=guessed, share=right / guessed
    )


def _runs(campaign: Campaign, placement: str) -> list[Run]:
    return [run for run in counted_runs(campaign) if run.placement == placement and run.outcome != "skipped"]


def _best(rows: list[ComparisonRow]) -> ComparisonRow | None:
    sound = [row for row in rows if row.estimate and not (row.quality and row.quality.verdict == "broken")]
    sign = 1 if rows[0].metric.higher_is_better else -1
    return max(sound, key=lambda row: sign * row.estimate.median if row.estimate else 0.0, default=None)
