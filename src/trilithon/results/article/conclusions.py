"""What the figures say, a paragraph per unit and one per group: ratios to the baseline, and whether answers agree."""

from collections.abc import Iterable, Iterator, Sequence

from trilithon.results.article.arrangement import Arrangement
from trilithon.results.article.subjects import Column, ComparedPlacement, Spread
from trilithon.results.phrases import Phrases

__all__ = ["conclusions", "ratio_of", "ratio_text"]

_UNITS = ("npu", "gpu", "handover", "cpu", "server")


def ratio_of(figure: Spread | None, beside: Spread | None) -> float | None:
    return figure.median / beside.median if figure and beside and beside.median > 0 else None


def ratio_text(ratio: float, phrases: Phrases) -> str:
    """ "×2.8", "×0.71", "×12"."""
    digits = 0 if ratio >= 9.95 else 1 if ratio >= 1.95 else 2
    return phrases.number(f"×{ratio:.{digits}f}")


def conclusions(arrangement: Arrangement, columns: Sequence[Column], phrases: Phrases) -> list[str]:
    """Paragraphs; none where there is nothing to compare."""
    speeds = _speeds(columns)
    by_unit = (_of_unit(unit, arrangement, speeds, phrases) for unit in _UNITS)
    scores = _scores(arrangement, columns, phrases)
    return [*(text for text in by_unit if text), *_of_groups(arrangement, speeds, phrases), *scores]


def _scores(arrangement: Arrangement, columns: Sequence[Column], phrases: Phrases) -> Iterator[str]:
    """A sentence per set of questions, the best first: which is good enough, beside which is fast."""
    for column in columns:
        scored = [(figure, one) for one in arrangement.subjects if (figure := one.figures.get(column.name))]
        if column.digest and scored:
            ranked = sorted(scored, key=lambda pair: -pair[0].median)
            texts = ", ".join(_score(figure, one, arrangement, phrases) for figure, one in ranked)
            yield phrases("article_scores", set=column.test.question, scores=texts)


def _score(figure: Spread, subject: ComparedPlacement, arrangement: Arrangement, phrases: Phrases) -> str:
    names = (subject.value(name) for name in arrangement.varying)
    return phrases(
        "article_score",
        series=" · ".join(filter(None, (*names, arrangement.series(subject)))),
        correct=round(figure.median * figure.runs / 100),
        count=figure.runs,
        low=phrases.number(f"{figure.least:.0f}%"),
        high=phrases.number(f"{figure.most:.0f}%"),
    )


def _speeds(columns: Sequence[Column]) -> list[Column]:
    """Of each kind the first, which is the plainest."""
    first: dict[str, Column] = {}
    for column in columns:
        if column.metric.unit in ("tokens/s", "words/s"):
            first.setdefault(column.test.kind, column)
    return [column for kind, column in first.items() if kind != "pg"]


def _of_unit(unit: str, arrangement: Arrangement, speeds: Sequence[Column], phrases: Phrases) -> str:
    sentences = []
    for series in arrangement.legend:
        members = [one for one in arrangement.subjects if one.unit == unit and arrangement.series(one) == series]
        pairs = [(one, beside) for one in members if (beside := _same_group(arrangement, one)) is not None]
        figures = ", ".join(_compared(pairs, speeds, phrases))
        if figures:
            other = pairs[0][1].placement
            parts = [
                phrases("article_beside", series=series, figures=figures, other=other),
                *_answers(members, phrases),
            ]
            sentences.append("; ".join(parts) + ".")
        elif members and all(one.note for one in members):
            sentences.append(phrases("article_failed", series=series, reason=members[0].note))
    return f"{phrases(f'article_unit_{unit}')}: {' '.join(sentences)}" if sentences else ""


def _same_group(arrangement: Arrangement, subject: ComparedPlacement) -> ComparedPlacement | None:
    beside = arrangement.baseline(subject)
    same = beside is not None and arrangement.series(beside) != arrangement.series(subject)
    return beside if same else None


def _compared(
    pairs: Sequence[tuple[ComparedPlacement, ComparedPlacement]], speeds: Sequence[Column], phrases: Phrases
) -> Iterator[str]:
    """ "prefill ×2.1–2.8", over all pairs."""
    for column in speeds:
        known = [
            (mine, theirs)
            for one, other in pairs
            if (mine := one.figures.get(column.name)) and (theirs := other.figures.get(column.name))
        ]
        ratios = sorted(ratio for mine, theirs in known if (ratio := ratio_of(mine, theirs)) is not None)
        if not ratios:
            continue
        least, most = ratio_text(ratios[0], phrases), ratio_text(ratios[-1], phrases)
        extent = least if least == most else f"{least}–{most[1:]}"
        if all(_overlap(mine, theirs) for mine, theirs in known):
            extent = phrases("article_within_spread", ratio=extent)
        yield phrases("article_figure", metric=phrases(f"article_{column.test.kind}"), ratio=extent)


def _overlap(a: Spread, b: Spread) -> bool:
    return a.least <= b.most and b.least <= a.most


def _answers(subjects: Iterable[ComparedPlacement], phrases: Phrases) -> Iterator[str]:
    verdicts = {one.quality.verdict if one.quality else "unknown" for one in subjects}
    for verdict in ("broken", "degraded", "unknown"):
        if verdict in verdicts:
            yield phrases(f"article_answers_{verdict}")
            return
    if verdicts:
        yield phrases("article_answers_same")


def _of_groups(arrangement: Arrangement, speeds: Sequence[Column], phrases: Phrases) -> Iterator[str]:
    groups = arrangement.groups
    if len(groups) < 2 or arrangement.by in ("engine", "build"):
        return
    first = arrangement.baseline_name if arrangement.baseline_name in groups else groups[0]
    for group in groups:
        pairs = [
            (one, other)
            for one in arrangement.subjects
            if arrangement.group(one) == group
            for other in arrangement.subjects
            if arrangement.group(other) == first and _alike(arrangement, one, other)
        ]
        figures = ", ".join(_compared(pairs, speeds, phrases)) if group != first else ""
        if figures:
            yield phrases("article_beside", series=group, figures=figures, other=first) + "."


def _alike(arrangement: Arrangement, one: ComparedPlacement, other: ComparedPlacement) -> bool:
    places = [(arrangement.panel(subject), arrangement.series(subject)) for subject in (one, other)]
    return places[0] == places[1]
