"""How far a campaign is: what it measured, whether that is enough, how long it will still take, and what of a sweep
would take too long."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from trilithon.bench.setup import CampaignSetup
from trilithon.bench.workloads import tokens_needed
from trilithon.engines.base import Placement
from trilithon.measure.metrics import HEADLINE, metrics_of
from trilithon.measure.records import Run, Test
from trilithon.measure.statistics import narrow_enough

__all__ = ["FAILURES", "MOST_ROUNDS", "CampaignStep", "Observer", "Pace", "StoppingRule"]

FEWEST_ROUNDS = 5
MOST_ROUNDS = 30
BUDGET_SECONDS = 100.0
FAILURES = 2
"""A placement that failed this often in a row is not tried again in this campaign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignStep:
    """What happens now, for whoever watches. `runs_planned` is an estimate while the rounds are not fixed;
    `remaining_seconds` is None while nothing is known."""

    text: str
    runs_done: int
    runs_planned: int
    remaining_seconds: float | None


Observer = Callable[[CampaignStep], None]


class StoppingRule:
    """Counts runs, those of before a resume too. Time runs from its making."""

    def __init__(self, plan: CampaignSetup, placements: int):
        self._plan = plan
        self._placements = placements
        self._started = time.monotonic()
        self._values: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._failures: Counter[str] = Counter()
        self._done: set[tuple[str, int]] = set()
        self._seconds: list[float] = []

    def note(self, run: Run, *, seconds: float | None = None) -> None:
        """A run is over; `seconds` is what it took in all, where it was measured now."""
        self._done.add((run.placement, run.round))
        if seconds is not None:
            self._seconds.append(seconds)
        if run.outcome == "finished":
            self._failures[run.placement] = 0
            self._keep_values(run)
        else:
            self._failures[run.placement] += 1 if run.outcome == "failed" else FAILURES

    def _keep_values(self, run: Run) -> None:
        by_test: dict[str, list[float]] = defaultdict(list)
        for sample in run.samples:
            figure = metrics_of(sample).get(HEADLINE[sample.test.kind])
            if figure is not None:
                by_test[sample.test.name].append(figure)
        for test, values in by_test.items():
            self._values[run.placement, test].append(median(values))

    def is_done(self, placement: str, round: int) -> bool:  # noqa: A002 - the measuring term
        return (placement, round) in self._done

    def given_up(self, placement: str) -> bool:
        return self._failures[placement] >= FAILURES

    def has_measured(self, placement: str) -> bool:
        return any(name == placement for name, _ in self._values)

    def forgive(self, placement: str) -> None:
        """Let one that is given up go on, with other settings."""
        self._failures[placement] = 0

    @property
    def first_run(self) -> bool:
        return not self._seconds

    def enough(self, rounds: int) -> bool:
        """Whether to stop after this many whole rounds: every interval narrow, or no time for another round."""
        if self._plan.rounds is not None or rounds < FEWEST_ROUNDS:
            return False
        next_round = sum(self._seconds[-self._placements :])
        return self._elapsed + next_round > self._budget or all(
            narrow_enough(values) for (placement, _), values in self._values.items() if not self.given_up(placement)
        )

    def spent(self, rounds: int) -> bool:
        """A budget that the user gave holds between runs too, but for the first round: no answer helps nobody."""
        given = self._plan.budget_seconds
        return given is not None and rounds > 0 and self._elapsed > given

    def step(self, text: str) -> CampaignStep:
        rounds = self._plan.rounds or FEWEST_ROUNDS
        planned = max(rounds * self._placements, len(self._done) + 1)
        remaining = None
        if self._seconds:
            remaining = (planned - len(self._done)) * median(self._seconds)
            if self._plan.rounds is None:  # it goes on until the budget is spent, or before
                remaining = max(remaining, self._budget - self._elapsed)
            if self._plan.budget_seconds is not None:
                remaining = min(remaining, max(self._budget - self._elapsed, 0.0))
        return CampaignStep(text=text, runs_done=len(self._done), runs_planned=planned, remaining_seconds=remaining)

    @property
    def _budget(self) -> float:
        return BUDGET_SECONDS if self._plan.budget_seconds is None else self._plan.budget_seconds

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started


class Pace:
    """The seconds per token of each placement's deepest test so far. Without `limit_seconds` nothing is left out."""

    def __init__(self, limit_seconds: float | None):
        self._limit = limit_seconds
        self._slowest: dict[str, float] = {}
        self._measured: set[tuple[str, str]] = set()

    def note(self, placement: Placement, test: Test, seconds: float) -> None:
        """What is once measured is measured in every round."""
        tokens = test.depth + test.prompt_tokens
        self._measured.add((placement.name, test.name))
        if tokens:
            self._slowest[placement.name] = max(self._slowest.get(placement.name, 0.0), seconds / tokens)

    def objection(self, placement: Placement, test: Test) -> str:
        """Why the test is left out; empty where it is not."""
        if self._limit is None or not test.depth or (placement.name, test.name) in self._measured:
            return ""
        context = placement.settings.context
        if context and tokens_needed(test) > context:
            return f"it takes {tokens_needed(test)} tokens, and the context has {context}"
        seconds = self._slowest.get(placement.name, 0.0) * (test.depth + test.prompt_tokens)
        return f"it would take about {seconds:.0f} s, more than {self._limit:g} s" if seconds > self._limit else ""
