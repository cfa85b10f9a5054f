"""Tests at a depth that would take too long, or do not fit the context: left out of a sweep, and said."""

from trilithon.bench.workloads import tokens_needed
from trilithon.engines.base import Placement
from trilithon.measure.records import Test

__all__ = ["Pace"]


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
