"""The one sentence at the end of a bench: which placement to use, and why."""

from collections.abc import Iterator, Sequence

from trilithon.measure.metrics import HEADLINE
from trilithon.measure.records import Campaign, PlacementRecord, TestKind
from trilithon.measure.statistics import Verdict
from trilithon.results.compare import ComparisonRow, Estimate, compare_runs, placement_of, runs_note, summarise
from trilithon.results.phrases import ENGLISH, Phrases
from trilithon.units import format_number

__all__ = ["recommended", "verdict_sentence"]

_DECIDES: tuple[TestKind, ...] = ("tg", "question", "pg", "pp", "cold")


def verdict_sentence(campaign: Campaign, phrases: Phrases = ENGLISH) -> str:
    """One sentence per model. Decode decides where it was measured: it is what a reader waits for. A broken
    placement is never recommended, a degraded one only where there is no sound one."""
    models = dict.fromkeys(str(placement.model.get("name", "")) for placement in campaign.placements)
    if not campaign.runs or not models:
        return phrases("nothing")
    headlines = [row for row in summarise(campaign) if row.metric.name == HEADLINE[row.test.kind]]
    sentences = []
    for model in models:
        names = [placement.name for placement in campaign.placements if placement.model.get("name", "") == model]
        told = _Bench(campaign, names, headlines, phrases).sentence() + "."
        sentences.append(phrases("of_model", model=model, sentence=told) if len(models) > 1 else told)
    return " ".join(sentences)


def recommended(campaign: Campaign) -> list[PlacementRecord]:
    """The placement to use of each model that the campaign recommends one for, out of two or more that worked."""
    headlines = [row for row in summarise(campaign) if row.metric.name == HEADLINE[row.test.kind]]
    placements = []
    for model in dict.fromkeys(str(placement.model.get("name", "")) for placement in campaign.placements):
        names = [placement.name for placement in campaign.placements if placement.model.get("name", "") == model]
        bench = _Bench(campaign, names, headlines, ENGLISH)
        if len(bench.pool) > 1:
            placements.append(placement_of(campaign, bench.leader().placement))
    return placements


class _Bench:
    """What one model's placements did, for one sentence about them. `decisive` are the rows of the test that
    decides, `pool` those of them that may be recommended, best first."""

    def __init__(self, campaign: Campaign, names: Sequence[str], headlines: Sequence[ComparisonRow], phrases: Phrases):
        self.say = phrases
        self.campaign = campaign
        self.names = names
        self.rows = [row for row in headlines if row.placement in names and row.estimate]
        self.decisive = self._ranked(self._decides())
        self.pool = [row for row in self.decisive if _quality(row) not in ("broken", "degraded")]
        self.pool = self.pool or [row for row in self.decisive if _quality(row) == "degraded"]

    def sentence(self) -> str:
        if not self.decisive:
            return self.say("none_worked", told="; ".join(self._failures(self.names)))
        if not self.pool:
            return self.say("none_usable", told="; ".join(self._left_out(None)))
        leader = self.leader()
        lost = runs_note(self.campaign, leader.placement, phrases=self.say)
        alone = len(self.names) == 1 and _quality(leader) == "reference"
        answers = self.say("answers_unheld" if alone else f"answers_{_quality(leader)}")
        head = self._head(leader) + self._bandwidth(leader)
        head += self.say("answers_alone" if alone else "answers", answers=answers)
        head += self.say("though", note=lost) if lost else ""
        return "; ".join([head, *self._prefill(leader), *self._left_out(leader)])

    def _decides(self) -> TestKind:
        """The question, where it was put to all that decoded and to others besides, as to those that speculate."""
        kinds = [kind for kind in _DECIDES if self._of(kind)] or ["tg"]
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
        others = [(row, self._beside(leader, row)) for row in self.pool if row is not leader]
        likely = others and all(verdict.answer == "not comparable" for _, verdict in others)
        head = self.say("likely" if likely else "use", placement=leader.placement, leading=leading)
        return head + self._against(leader, others)

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
        recommended = {row.placement for row in self.pool}
        for row in self.decisive:
            if row.placement in recommended:
                continue
            faster = leader is not None and self._beside(row, leader).answer == "better"
            yield self.say(f"{'faster_but' if faster else 'out'}_{_quality(row)}", placement=row.placement)
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
            told = [self.say("figure_of", placement=row.placement, figure=self._figure(row)) for row in ties]
            return self.say("tie", others=self.say("and").join(told))
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
