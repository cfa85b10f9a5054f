"""From runs to statements: one row per placement and figure, and a verdict between two placements."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trilithon.measure.metrics import HEADLINE, METRICS, Metric, fraction_of_bandwidth
from trilithon.measure.questions import score_of
from trilithon.measure.records import Campaign, Failure, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.measure.statistics import Verdict, compare, interval
from trilithon.results.conditions import Conditions, conditions_of
from trilithon.results.llama_bench.rows import rounded_average
from trilithon.results.phrases import ENGLISH, Phrases
from trilithon.results.simulated import SIMULATED, simulation

__all__ = [
    "Comparison",
    "ComparisonRow",
    "Estimate",
    "are_other_models",
    "compare_placements",
    "compare_runs",
    "counted_runs",
    "differences",
    "measured_tests",
    "model_text",
    "placement_of",
    "run_values",
    "runs_note",
    "summarise",
]

_LONGEST_FACT = 40
_SAME_PARAMETERS = 0.02  # files of one model may count its tied embedding once or twice


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median over runs with its 95% bootstrap interval, in the metric's unit; under 3 runs there is none.
    `deviation` is that of a rounded average from a table, which stands in for a median."""

    median: float
    low: float | None
    high: float | None
    runs: int
    deviation: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One figure of one placement in one test. `estimate` is None when no run gave it; `note` then says why
    ("failed 5 of 5: segmentation fault"). `fraction_of_bandwidth` is set for decode on the CPU where it is known; where
    it comes out above 1, which cannot be, it is `implausible_bandwidth` instead."""

    placement: str
    model: str
    test: Test
    metric: Metric
    estimate: Estimate | None
    quality: QualityRecord | None
    fraction_of_bandwidth: float | None = None
    implausible_bandwidth: float | None = None
    note: str = ""
    values: tuple[float, ...] = ()  # one per run
    simulated: str = ""  # `simulated.simulation`: empty for real hardware
    conditions: Conditions | None = None  # of this placement in this test, where its sensors were recorded


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the first placement is beside the second, by one figure. `differs` names the facts in which the two
    experiments are not alike ("kernel 6.1 → 6.12"): the verdict holds for all of them together."""

    test: Test
    metric: Metric
    verdict: Verdict
    differs: tuple[str, ...]


def summarise(campaign: Campaign, phrases: Phrases = ENGLISH) -> list[ComparisonRow]:
    """Per placement, test and metric: the estimate over runs. Failed and skipped runs only appear in `note`. Last of
    all, where a set of questions was put, the percentage of correct answers, whose `runs` are questions."""
    rows = []
    for placement in campaign.placements:
        for test in measured_tests(campaign):
            conditions = conditions_of(campaign, placement.name, test)
            rows += [
                replace(_row(campaign, placement, test, metric, phrases), conditions=conditions)
                for metric in METRICS[test.kind]
            ]
    sets = dict.fromkeys(answer.question_set for placement in campaign.placements for answer in placement.answers)
    test = Test(kind="questions", question=", ".join(sets))
    return rows + [_score_row(campaign, placement, test, phrases) for placement in campaign.placements if sets]


def _score_row(campaign: Campaign, placement: PlacementRecord, test: Test, phrases: Phrases) -> ComparisonRow:
    score, estimate = score_of(placement.answers), None
    note = phrases("not_scored") if placement.answers else phrases("not_measured")
    if score is not None:
        estimate = Estimate(score.share * 100, score.low * 100, score.high * 100, score.count)
        note = phrases("scored", correct=score.correct, count=score.count)
    return ComparisonRow(
        placement=placement.name,
        model=model_text(placement.model),
        test=test,
        metric=METRICS["questions"][0],
        estimate=estimate,
        quality=placement.quality,
        note=note,
        simulated=simulation(campaign, placement),
    )


def compare_placements(
    a: tuple[Campaign, str], b: tuple[Campaign, str], *, every_metric: bool = False, phrases: Phrases = ENGLISH
) -> list[Comparison]:
    """The first placement beside the second in each test that both campaigns have: by the headline figure, or by
    every figure. Raises KeyError for a placement that its campaign lacks."""
    (first, name), (second, other) = a, b
    differs = _differs(first, placement_of(first, name), second, placement_of(second, other), phrases)
    theirs = measured_tests(second)
    return [
        Comparison(test, metric, compare_runs(a, b, test, metric, phrases), differs)
        for test in measured_tests(first)
        if test in theirs
        for metric in METRICS[test.kind]
        if every_metric or metric.name == HEADLINE[test.kind]
    ]


def compare_runs(
    a: tuple[Campaign, str], b: tuple[Campaign, str], test: Test, metric: Metric, phrases: Phrases = ENGLISH
) -> Verdict:
    """The verdict on one figure. Rounds are paired where one campaign measured both sides in the same rounds."""
    first, second = placement_of(*a), placement_of(*b)
    if are_other_models(first.model, second.model):
        names = {"a": first.model.get("name"), "b": second.model.get("name")}
        return Verdict("not comparable", phrases("other_models", **names))
    ours, theirs = run_values(*a, test, metric), run_values(*b, test, metric)
    for (campaign, name), values in ((a, ours), (b, theirs)):
        if not values:
            note = runs_note(campaign, name, test, 0, phrases)
            return Verdict("not comparable", phrases("failure", placement=name, note=note))
        if rounded_average(campaign, name, test) is not None:
            return Verdict("not comparable", phrases("reason_rounded", placement=name))
    rounds = sorted(number for number, _ in ours)
    paired = (
        _interleaved(a[0], b[0])
        and len(set(rounds)) == len(rounds)
        and rounds == sorted(number for number, _ in theirs)
    )
    return compare(
        [value for _, value in sorted(ours)],
        [value for _, value in sorted(theirs)],
        higher_is_better=metric.higher_is_better,
        paired=paired,
        say=phrases,
    )


def differences(a: PlacementRecord, b: PlacementRecord, phrases: Phrases = ENGLISH) -> tuple[str, ...]:
    """The must-match facts that are not equal, "name before → after". Only where there are none may runs be put
    together. A fact that one side does not have counts as "unknown", but for whether the hardware was real: older
    results lack that, and their build says the same."""
    names = dict.fromkeys((*a.must_match, *b.must_match))
    if not (SIMULATED in a.must_match and SIMULATED in b.must_match):
        names.pop(SIMULATED, None)
    unknown = phrases("unknown")
    pairs = ((name, a.must_match.get(name, unknown), b.must_match.get(name, unknown)) for name in names)
    return tuple(f"{name} {_short(before)} → {_short(after)}" for name, before, after in pairs if before != after)


def measured_tests(campaign: Campaign) -> tuple[Test, ...]:
    """In the order in which they first appear."""
    return tuple(dict.fromkeys(sample.test for run in campaign.runs for sample in run.samples))


def placement_of(campaign: Campaign, name: str) -> PlacementRecord:
    by_name = {placement.name: placement for placement in campaign.placements}
    return by_name[name]


def counted_runs(campaign: Campaign) -> list[Run]:
    """All runs but those that a kill cut off and that a resume made up for."""
    whole = {(run.placement, run.round) for run in campaign.runs if not _cut_off(run)}
    return [run for run in campaign.runs if not _cut_off(run) or (run.placement, run.round) not in whole]


def _cut_off(run: Run) -> bool:
    return run.failure is not None and run.failure.kind == "interrupted"


def runs_note(
    campaign: Campaign, placement: str, test: Test | None = None, given: int | None = None, phrases: Phrases = ENGLISH
) -> str:
    """What became of the placement's runs (those with this test) where all is not well; `given` of them gave a
    value. "failed 2 of 5: segmentation fault"."""
    runs = [run for run in counted_runs(campaign) if run.placement == placement]
    concerned = [run for run in runs if run.outcome != "finished" or test is None or any(_samples(run, test))]
    if not concerned:
        return phrases("not_measured")
    parts = []
    for outcome in ("failed", "skipped"):
        causes = Counter(_cause(run.failure) for run in concerned if run.outcome == outcome)
        if causes:
            told = "; ".join(cause for cause in causes if cause)
            why = phrases("causes", causes=told) if told else ""
            parts.append(phrases(outcome, count=causes.total(), runs=len(concerned), causes=why))
    finished = sum(run.outcome == "finished" for run in concerned)
    if given is not None and given < finished:
        parts.append(phrases("no_value", count=finished - given, runs=len(concerned)))
    return ", ".join(parts)


def _differs(
    a: Campaign, first: PlacementRecord, b: Campaign, second: PlacementRecord, phrases: Phrases
) -> tuple[str, ...]:
    """Two programs keep different facts: between them only what both kept can be held side by side, setting by
    setting."""
    if a.source == b.source:
        return differences(first, second, phrases)
    facts, others = _told(first), _told(second)
    one, other = (
        replace(record, must_match={name: told[name] for name in facts if name in others})
        for record, told in ((first, facts), (second, others))
    )
    return (phrases("measured_by", a=a.source, b=b.source), *differences(one, other, phrases))


def _told(record: PlacementRecord) -> dict[str, str]:
    settings = {
        name.replace("_", " "): str(value)
        for name, value in record.settings.items()
        if value is not None and not isinstance(value, Mapping | list | tuple)
    }
    return settings | dict(record.must_match)


def _row(campaign: Campaign, placement: PlacementRecord, test: Test, metric: Metric, phrases: Phrases) -> ComparisonRow:
    values = [value for _, value in run_values(campaign, placement.name, test, metric)]
    estimate = _estimate(values) if values else None
    note = runs_note(campaign, placement.name, test, len(values), phrases)
    fraction = _fraction(placement, test, metric, estimate)
    deviation = rounded_average(campaign, placement.name, test)
    if estimate is not None and deviation is not None:
        estimate, note = replace(estimate, deviation=deviation), phrases("rounded_average")
    if estimate is not None and placement.unit == "server":
        note = "; ".join(filter(None, (phrases("through_http"), note)))
    return ComparisonRow(
        placement=placement.name,
        model=model_text(placement.model),
        test=test,
        metric=metric,
        estimate=estimate,
        quality=placement.quality,
        fraction_of_bandwidth=fraction if fraction is None or fraction <= 1 else None,
        implausible_bandwidth=fraction if fraction is not None and fraction > 1 else None,
        note=note,
        values=tuple(values),
        simulated=simulation(campaign, placement),
    )


def _estimate(values: list[float]) -> Estimate:
    estimate = interval(values)
    return Estimate(estimate.median, estimate.low, estimate.high, len(values))


def run_values(campaign: Campaign, placement: str, test: Test, metric: Metric) -> list[tuple[int, float]]:
    """One value per finished run, with its round: the median over the run's samples of this test."""
    medians = []
    for run in campaign.runs:
        if run.placement == placement and run.outcome == "finished":
            values = [value for sample in _samples(run, test) if (value := metric.of(sample)) is not None]
            if values:
                medians.append((run.round, statistics.median(values)))
    return medians


def _samples(run: Run, test: Test) -> Iterator[Sample]:
    return (sample for sample in run.samples if sample.test == test)


def _fraction(placement: PlacementRecord, test: Test, metric: Metric, estimate: Estimate | None) -> float | None:
    """The bandwidth is measured by the CPU, and says nothing of another unit. At a depth there is no fraction: a step
    then reads the KV cache too, and `bytes_per_token` counts the weights. With speculation a step gives several
    tokens."""
    bytes_per_token = placement.model.get("bytes_per_token")
    bandwidth = placement.bandwidth_bytes_per_second
    if placement.unit != "cpu" or placement.settings.get("speculation"):
        return None
    if test.kind != "tg" or test.depth or metric.name != HEADLINE["tg"] or estimate is None:
        return None
    if not (bytes_per_token and bandwidth and min(bytes_per_token, bandwidth) > 0):
        return None
    return fraction_of_bandwidth(estimate.median, bytes_per_token, bandwidth)


def _cause(failure: Failure | None) -> str:
    return (failure.cause or failure.message or failure.kind) if failure else ""


def model_text(model: Mapping[str, Any]) -> str:
    """Name and quantization, once where the name has it already."""
    name, quantization = str(model.get("name", "")), str(model.get("quantization") or "")
    known = quantization.casefold() in name.casefold()
    return name if known else f"{name} {quantization}"


def are_other_models(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two files are not the same model at all, whatever their quantization.

    A file's parameter count says more than its name, which is the publisher's; the name decides where a count is
    missing."""
    if a.get("sha256") and a.get("sha256") == b.get("sha256"):
        return False
    if len({model["architecture"] for model in (a, b) if model.get("architecture") not in (None, "", "unknown")}) > 1:
        return True
    if a.get("parameters") and b.get("parameters"):
        fewer, more = sorted((a["parameters"], b["parameters"]))
        return bool(more > fewer * (1 + _SAME_PARAMETERS))
    return str(a.get("name", "")).casefold() != str(b.get("name", "")).casefold()


def _interleaved(a: Campaign, b: Campaign) -> bool:
    """Whether a round of one is the same stretch of time as that round of the other. An import's rounds are not:
    other tools finish one configuration before they begin the next."""
    return (a.id, a.started) == (b.id, b.started) and a.source == b.source == "trilithon"


def _short(fact: str) -> str:
    return fact if len(fact) <= _LONGEST_FACT else fact[: _LONGEST_FACT - 1] + "…"
