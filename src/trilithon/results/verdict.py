"""The one sentence at the end of a bench: which placement to use, and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trilithon.engines.table import named_only_engines
from trilithon.measure.metrics import HEADLINE
from trilithon.measure.questions import score_of
from trilithon.measure.records import Campaign, PlacementRecord, TestKind
from trilithon.measure.statistics import LEAST_RUNS, Verdict
from trilithon.results.compare import ComparisonRow, Estimate, compare_runs, placement_of, runs_note, summarise
from trilithon.results.phrases import ENGLISH, Phrases
from trilithon.results.tuned.steps import is_tune, tune_sentence
from trilithon.units import format_number

__all__ = ["DECIDES", "Recommendation", "recommended", "unplanned", "verdict_sentence"]

DECIDES: tuple[TestKind, ...] = ("tg", "question", "pg", "pp", "cold")
"""The tests that decide, the one that says most first."""

_SOUND = ("reference", "same")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A placement that is recommended, and on what grounds: `rounds` in which the test `decided_by` was measured;
    `compared` where there were enough of them to compare it with the others."""

    placement: PlacementRecord
    decided_by: TestKind
    rounds: int
    compared: bool

    @property
    def name(self) -> str:
        return self.placement.name


def verdict_sentence(campaign: Campaign, phrases: Phrases = ENGLISH) -> str:
    """One sentence per model. Decode decides where it was measured: it is what a reader waits for. Only a placement
    whose answers are the reference or match it is recommended, and none of an engine that is used only where it is
    named; where there is none of that kind, the fastest is named as not recommended. Of a tune, how it ended."""
    if is_tune(campaign):
        return tune_sentence(campaign, phrases)
    verdicts = _verdicts(campaign, phrases)
    if not campaign.runs or not verdicts:
        return phrases("nothing")
    sentences = {model: f"{verdict.sentence()}." for model, verdict in verdicts.items()}
    if len(sentences) == 1:
        return next(iter(sentences.values()))
    return " ".join(phrases("of_model", model=model, sentence=text) for model, text in sentences.items())


def recommended(campaign: Campaign) -> list[Recommendation]:
    """One for each model of which two or more placements were measured and one is recommended."""
    verdicts = (verdict for verdict in _verdicts(campaign, ENGLISH).values() if len(verdict.names) > 1)
    return [verdict.recommendation() for verdict in verdicts if verdict.is_sound]


def unplanned(campaign: Campaign) -> list[tuple[PlacementRecord, str]]:
    """The fastest placement of each model that none is recommended for, out of two or more, with the reason."""
    verdicts = (verdict for verdict in _verdicts(campaign, ENGLISH).values() if len(verdict.names) > 1)
    leaders = ((verdict, verdict.leader()) for verdict in verdicts if verdict.pool and not verdict.is_sound)
    return [(placement_of(campaign, row.placement), verdict.objection(row)) for verdict, row in leaders]


def _verdicts(campaign: Campaign, phrases: Phrases) -> "dict[str, _Bench]":
    """By the model's name."""
    headlines = [row for row in summarise(campaign) if row.metric.name == HEADLINE[row.test.kind]]
    names: dict[str, list[str]] = {}
    for placement in campaign.placements:
        names.setdefault(str(placement.model.get("name", "")), []).append(placement.name)
    return {model: _Bench(campaign, of_model, headlines, phrases) for model, of_model in names.items()}


class _Bench:
    """What one model's placements did, for one sentence about them. `decisive` are the rows of the test that
    decides, `pool` those of them that may lead, best first: the sound ones, or where there is none (then `is_sound` is
    False), all that are not broken."""

    def __init__(self, campaign: Campaign, names: Sequence[str], headlines: Sequence[ComparisonRow], phrases: Phrases):
        self.say = phrases
        self.campaign = campaign
        self.names = names
        self.rows = [row for row in headlines if row.placement in names and row.estimate]
        self.decisive = self._ranked(self._decides())
        self.pool = [row for row in self.decisive if self._standing(row) in _SOUND]
        self.is_sound = bool(self.pool)
        self.pool = self.pool or [row for row in self.decisive if self._standing(row) != "broken"]

    def sentence(self) -> str:
        if not self.decisive:
            return self.say("none_worked", failures="; ".join(self._failures(self.names)))
        if not self.pool:
            return self.say("none_usable", reasons="; ".join(self._left_out(None)))
        leader = self.leader()
        lost = runs_note(self.campaign, leader.placement, phrases=self.say)
        alone = len(self.names) == 1 and _quality(leader) == "reference"
        answers = self.say("answers_unheld" if alone else f"answers_{_quality(leader)}")
        head = self._head(leader) + self._bandwidth(leader)
        head += self.say("answers_alone" if alone else "answers", answers=answers)
        head += self.say("though", note=lost) if lost else ""
        named = [self.say("named")] * (len(self.names) > 1 and self._standing(leader) == "named")
        return "; ".join([head, *named, *self._prefill(leader), *self._left_out(leader), *self._scores()])

    def _scores(self) -> Iterator[str]:
        """Of all that answered a set of questions."""
        scores = [(name, score_of(placement_of(self.campaign, name).answers)) for name in self.names]
        texts = [
            self.say(
                "score",
                placement=name,
                correct=score.correct,
                count=score.count,
                low=self.say.number(f"{score.low:.0%}"),
                high=self.say.number(f"{score.high:.0%}"),
            )
            for name, score in scores
            if score is not None
        ]
        if texts:
            yield self.say("scores", scores=", ".join(texts))

    def recommendation(self) -> Recommendation:
        leader = self.leader()
        runs = _estimate(leader).runs
        compared = runs >= LEAST_RUNS and not self._is_likely([verdict for _, verdict in self._others(leader)])
        return Recommendation(placement_of(self.campaign, leader.placement), leader.test.kind, runs, compared)

    def objection(self, row: ComparisonRow) -> str:
        """Why the placement is not recommended."""
        standing = self._standing(row)
        reasons = row.quality.reasons if standing == "unknown" and row.quality else ()
        return "; ".join([self.say("named" if standing == "named" else f"answers_{standing}"), *reasons])

    def _standing(self, row: ComparisonRow) -> str:
        """The verdict on its answers, or "named" for what is sound and used only where the user names it."""
        verdict = _quality(row)
        record = placement_of(self.campaign, row.placement)
        engines = {record.engine, record.must_match.get("prefill build", "").partition(" ")[0]}
        return "named" if verdict != "broken" and engines & named_only_engines() else verdict

    def _decides(self) -> TestKind:
        """The question, where it was put to all that decoded and to others besides, as to those that speculate."""
        kinds = [kind for kind in DECIDES if self._of(kind)] or ["tg"]
        first, asked = ({row.placement for row in self._of(kind)} for kind in (kinds[0], "question"))
        return "question" if first < asked else kinds[0]

    def _of(self, kind: TestKind) -> list[ComparisonRow]:
        """The rows of the first test of this kind, which is the plainest one."""
        rows = [row for row in self.rows if row.test.kind == kind]
        return [row for row in rows if row.test == rows[0].test]

    def _ranked(self, kind: TestKind) -> list[ComparisonRow]:
        rows = self._of(kind)
        return sorted(rows, key=_median, reverse=bool(rows) and rows[0].metric.higher_is_better)

    def _beside(self, a: ComparisonRow, b: ComparisonRow) -> Verdict:
        return compare_runs((self.campaign, a.placement), (self.campaign, b.placement), a.test, a.metric, self.say)

    def leader(self) -> ComparisonRow:
        """The best; among those that tie with it, the one whose prefill is clearly faster."""
        best, *others = self.pool
        prefill = {row.placement: row for row in self._of("pp")}
        leader = best
        for row in others:
            if leader.placement in prefill and row.placement in prefill and self._beside(best, row).answer == "same":
                faster = self._beside(prefill[row.placement], prefill[leader.placement]).answer == "better"
                leader = row if faster else leader
        return leader

    def _head(self, leader: ComparisonRow) -> str:
        metric = self.say.metric(leader.metric).lower()
        leading = self.say("leading", metric=metric, figure=self._figure(leader))
        if len(self.names) == 1:
            return self.say("only", placement=leader.placement, leading=leading)
        if len(self.decisive) == 1:
            return self.say("only_worked", placement=leader.placement, leading=leading)
        others = self._others(leader)
        likely = "likely" if self._is_likely([verdict for _, verdict in others]) else "use"
        head = self.say(likely if self.is_sound else "fastest", placement=leader.placement, leading=leading)
        return head + self._against(leader, others)

    def _others(self, leader: ComparisonRow) -> list[tuple[ComparisonRow, Verdict]]:
        return [(row, self._beside(leader, row)) for row in self.pool if row is not leader]

    def _is_likely(self, verdicts: Sequence[Verdict]) -> bool:
        """Whether too little was measured to say more."""
        return bool(verdicts) and all(verdict.answer == "not comparable" for verdict in verdicts)

    def _prefill(self, leader: ComparisonRow) -> Iterator[str]:
        """Where prefill is faster, if not on the leader."""
        usable = {row.placement for row in self.pool}
        ranked = [row for row in self._ranked("pp") if row.placement in usable]
        own = next((row for row in ranked if row.placement == leader.placement), None)
        if own is None or own.test == leader.test:
            return
        verdict = self._beside(ranked[0], own)
        if verdict.answer == "better":
            yield self.say("prefill_elsewhere", placement=ranked[0].placement, times=self._times(verdict, own))
        elif len(ranked) > 1 and all(self._beside(own, row).answer == "better" for row in ranked if row is not own):
            yield self.say("prefill_too", figure=self._figure(own))

    def _left_out(self, leader: ComparisonRow | None) -> Iterator[str]:
        """The placements that are not in question, each with its reason."""
        leading = {row.placement for row in self.pool}
        for row in self.decisive:
            if row.placement in leading:
                continue
            faster = leader is not None and self._beside(row, leader).answer == "better"
            yield self.say(f"{'faster_but' if faster else 'out'}_{self._standing(row)}", placement=row.placement)
        worked = {row.placement for row in self.decisive}
        yield from self._failures([name for name in self.names if name not in worked])

    def _failures(self, names: Sequence[str]) -> Iterator[str]:
        for name in names:
            broken = placement_of(self.campaign, name).quality
            note = runs_note(self.campaign, name, phrases=self.say)
            is_broken = broken is not None and broken.verdict == "broken"
            yield self.say("failure_broken" if is_broken else "failure", placement=name, note=note)

    def _against(self, leader: ComparisonRow, others: Sequence[tuple[ComparisonRow, Verdict]]) -> str:
        """What the leader is beside the next best, or beside all that it ties with."""
        if not others:
            return ""
        ties = [row for row, verdict in others if verdict.answer == "same"]
        if ties:
            figures = [self.say("figure_of", placement=row.placement, figure=self._figure(row)) for row in ties]
            return self.say("tie", others=self.say("and").join(figures))
        other, verdict = others[0]
        if verdict.answer == "not comparable":
            figure = self._figure(other)
            return self.say("beside", figure=figure, placement=other.placement, reason=verdict.reason)
        times = self._times(verdict, leader)
        extent = self.say.number(_range(verdict, leader)) or self.say("no_interval")
        return self.say("as_fast", times=times, placement=other.placement, range=extent)

    def _figure(self, row: ComparisonRow) -> str:
        return f"{self.say.number(format_number(_median(row)))} {self.say.unit(row.metric)}"

    def _bandwidth(self, row: ComparisonRow) -> str:
        if row.implausible_bandwidth is not None:
            percent = self.say.number(f"{row.implausible_bandwidth:.1%}")
            return self.say("bandwidth_implausible", percent=percent)
        fraction = row.fraction_of_bandwidth
        return "" if fraction is None else self.say("bandwidth", percent=self.say.number(f"{fraction:.0%}"))

    def _times(self, verdict: Verdict, row: ComparisonRow) -> str:
        times = 1.0 if verdict.ratio is None else verdict.ratio.ratio
        ratio = _digits(times if row.metric.higher_is_better else 1 / times)
        return self.say("times", ratio=self.say.number(ratio))


def _estimate(row: ComparisonRow) -> Estimate:
    if row.estimate is None:
        raise ValueError(f"{row.placement} has no estimate")
    return row.estimate


def _median(row: ComparisonRow) -> float:
    return _estimate(row).median


def _quality(row: ComparisonRow) -> str:
    return row.quality.verdict if row.quality else "unknown"


def _range(verdict: Verdict, row: ComparisonRow) -> str:
    if verdict.ratio is None or verdict.ratio.low is None or verdict.ratio.high is None:
        return ""
    low, high = verdict.ratio.low, verdict.ratio.high
    return "–".join(map(_digits, (low, high) if row.metric.higher_is_better else (1 / high, 1 / low)))


def _digits(times: float) -> str:
    return f"{times:.2f}" if times < 10 else f"{times:.1f}"
