"""What a tune did, read from its campaign: how it ended, and each challenger beside the best settings until then."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any, Literal

from trilithon.engines.placement_spec import parse_placement
from trilithon.errors import PlacementError
from trilithon.language import Message
from trilithon.measure.records import Campaign, Run
from trilithon.measure.statistics import RUNS_FOR_AN_INTERVAL, ratio
from trilithon.results.compare import counted_runs
from trilithon.results.phrases import ENGLISH, Phrases

__all__ = [
    "TUNE_SOURCE",
    "TuneEnd",
    "TuneStep",
    "changed_half",
    "end_of",
    "end_sentence",
    "is_tune",
    "steps",
    "tune_sentence",
    "units_of",
]

TUNE_SOURCE = "tune"
"""The source of a tune's campaign in the store, so that `bench --resume` does not go on with it."""
_THROTTLED = "throttled:"
_NUMBER = int | float | None
_KINDS: Mapping[str, Any] = {
    "defaults": str,
    "best": str,
    "by_hand": list,
    "rounds": int,
    "fresh_from": int | None,
    **dict.fromkeys(("ratio", "low", "high"), _NUMBER),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneEnd:
    """Names of placements, and how many times as fast `best` is as `defaults`, `low` to `high` at 99%, in `rounds`
    fresh rounds, of which `fresh_from` is the first; None where nothing was left to compare. `by_hand` are command
    lines that start `best` without Trilithon, of a handover one per half."""

    defaults: str
    best: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    fresh_from: int | None = None
    by_hand: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"by_hand": list(self.by_hand)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneStep:
    """`change` is what `challenger` has and `incumbent` has not. `gains` are the incumbent's times divided by the
    challenger's, one per round, `gain` their median, `low` to `high` at 99%. "wrong" gave other answers, and did not
    run; "failed" at its comparison of answers, or in a round."""

    challenger: str
    incumbent: str
    change: str
    result: Literal["kept", "dropped", "failed", "wrong"]
    gains: tuple[float, ...] = ()
    gain: float | None = None
    low: float | None = None
    high: float | None = None


def is_tune(campaign: Campaign) -> bool:
    return campaign.source == TUNE_SOURCE


def end_of(campaign: Campaign) -> TuneEnd | None:
    """None where the tune has not ended, and where an import is no tune's."""
    stored = campaign.plan.get("end")
    if not isinstance(stored, dict) or stored.keys() != {field.name for field in fields(TuneEnd)}:
        return None
    if not all(isinstance(stored[name], kind) for name, kind in _KINDS.items()):
        return None
    return TuneEnd(**stored | {"by_hand": tuple(map(str, stored["by_hand"]))})


def end_sentence(end: TuneEnd, phrases: Phrases = ENGLISH) -> str:
    """Only the ratio of the fresh rounds, with its interval."""
    if end.best == end.defaults or None in (end.ratio, end.low, end.high):
        return phrases.text(Message("the defaults are as good: {placement}", placement=end.defaults))
    return phrases.text(
        Message(
            "{best} takes the workload {ratio} times as fast as {defaults} "
            "({low} to {high} at 99%, {rounds} fresh rounds)",
            best=end.best,
            defaults=end.defaults,
            ratio=phrases.number(f"{end.ratio:.2f}"),
            low=phrases.number(f"{end.low:.2f}"),
            high=phrases.number(f"{end.high:.2f}"),
            rounds=end.rounds,
        )
    )


def tune_sentence(campaign: Campaign, phrases: Phrases = ENGLISH) -> str:
    end = end_of(campaign)
    if end is None:
        return phrases.text(Message("The tune has not ended: there is no result yet."))
    return end_sentence(end, phrases)


def steps(campaign: Campaign) -> list[TuneStep]:
    """In the order in which they were begun."""
    end = end_of(campaign)
    best = _words(end.best) if end is not None else frozenset[str]()
    contests: dict[tuple[str, str], list[float | None]] = {}
    for incumbent, *challengers in _rounds(campaign, end):
        for run in challengers:
            first, second = _seconds(incumbent), _seconds(run)
            gain = first / second if first and second else None
            contests.setdefault((incumbent.placement, run.placement), []).append(gain)
    raced = [_step(*names, gains, best) for names, gains in contests.items()]
    tried = {name for step in raced for name in (step.challenger, step.incumbent)}
    refused = {p.name: p.quality for p in campaign.placements if p.quality and p.quality.verdict != "same"}
    return raced + [
        TuneStep(
            challenger=name,
            incumbent=quality.reference,
            change=_change(name, quality.reference),
            result="failed" if quality.verdict == "unknown" else "wrong",
        )
        for name, quality in refused.items()
        if name not in tried and not any(other != name and name in _halves_of(other) for other in refused)
    ]


def _rounds(campaign: Campaign, end: TuneEnd | None) -> list[list[Run]]:
    """The runs of the race's whole rounds, the best settings until then first: every other round ran backwards. A round
    in which these failed, or the machine throttled, was void."""
    rounds: dict[int, list[Run]] = {}
    for run in counted_runs(campaign):
        if run.outcome in ("finished", "failed"):
            rounds.setdefault(run.round, []).append(run)
    last = end.fresh_from if end is not None and end.fresh_from is not None else max(rounds, default=0) + 1
    if campaign.status != "finished":
        last -= 1
    ordered = [runs if number % 2 else runs[::-1] for number, runs in sorted(rounds.items()) if number < last]
    return [
        runs
        for runs in ordered
        if _seconds(runs[0]) is not None
        and not any(warning.startswith(_THROTTLED) for run in runs for warning in run.warnings)
    ]


def _seconds(run: Run) -> float | None:
    if run.outcome != "finished" or not run.samples:
        return None
    return (run.samples[0].finished_ns - run.samples[0].started_ns) / 1e9


def _step(incumbent: str, challenger: str, gains: Sequence[float | None], best: frozenset[str]) -> TuneStep:
    known = [gain for gain in gains if gain is not None and gain > 0]
    change = _words(challenger) - _words(incumbent)
    result: Literal["kept", "dropped", "failed"] = "kept" if change and change <= best else "dropped"
    if not known:
        return TuneStep(
            challenger=challenger, incumbent=incumbent, change=_change(challenger, incumbent), result="failed"
        )
    interval = ratio(known, [1.0] * len(known)) if len(known) >= RUNS_FOR_AN_INTERVAL else None
    return TuneStep(
        challenger=challenger,
        incumbent=incumbent,
        change=_change(challenger, incumbent),
        result="failed" if len(known) < len(gains) else result,
        gains=tuple(known),
        gain=median(known) if interval is None else interval.ratio,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
    )


def units_of(name: str) -> str:
    """A placement's engines and units, without settings."""
    return "+".join(base for base, _ in _halves(name))


def changed_half(step: TuneStep) -> tuple[str, bool]:
    """The challenger's engines and units, and whether the change is one of a handover's prefilling half."""
    first, *rest = _halves(step.challenger)
    return units_of(step.challenger), bool(rest) and first != _halves(step.incumbent)[0]


def _halves_of(name: str) -> list[str]:
    """The names of a handover's halves."""
    try:
        spec = parse_placement(name)
    except PlacementError:
        return []
    return [] if spec.prefill is None else [spec.prefill.text, spec.text]


def _halves(name: str) -> list[tuple[str, list[str]]]:
    """Engine and unit of each half, and its settings."""
    try:
        spec = parse_placement(name)
    except PlacementError:  # of an import
        return [(name, [])]
    return [
        (half.text.partition(":")[0], [f"{option}={value}" for option, value in half.options.items()])
        for half in (spec.prefill, spec)
        if half is not None
    ]


def _words(name: str) -> frozenset[str]:
    """Each setting with its half before it."""
    halves = _halves(name)
    return frozenset([base for base, _ in halves] + [f"{base} {word}" for base, words in halves for word in words])


def _change(challenger: str, incumbent: str) -> str:
    """The settings alone where the engines and units are the same, else the whole placement."""
    pairs = list(zip(_halves(challenger), _halves(incumbent), strict=False))
    if [base for base, _ in _halves(challenger)] != [base for base, _ in _halves(incumbent)]:
        return challenger
    more = [word for (_, new), (_, old) in pairs for word in new if word not in old]
    fewer = [word for (_, new), (_, old) in pairs for word in old if word not in new]
    return ", ".join(more) or f"− {', '.join(fewer)}"
