"""What prefill and moving a KV cache cost, learned while they happen, and the cheapest way to a prompt. Pure.

A cost is a line over the number of tokens: a start-up part and a part per token. It is fitted by least squares to
what was measured, every new measurement weighing the older ones down, so that a chip that throttles is noticed.
"""

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Costs", "LinearCost", "Way"]

Way = Literal["decoder", "prefiller", "update"]
"""Who evaluates what is new of a prompt: the decoder itself; the prefiller, on top of what it holds of its own; or
the prefiller after the decoder's cache was brought to it."""

# Weight that a measurement keeps when the next one comes: about the last ten count.
_KEPT = 0.9
# Times what was expected from which on a measurement is doubted, as a start from cold or another program's burst. A
# second one is believed, unless one of like length (within _LIKE times) came between that was as expected.
_ODD = 3.0
_LIKE = 2.0


@dataclass(slots=True)
class LinearCost:
    """Milliseconds for a number of tokens. Unknown (None) until something was learned."""

    _weight: float = 0.0
    _tokens: float = 0.0
    _ms: float = 0.0
    _tokens_squared: float = 0.0
    _product: float = 0.0
    _doubted_tokens: int = 0

    def learn(self, tokens: int, ms: float) -> None:
        if tokens < 1 or ms < 0:
            return
        expected = self.of(tokens)
        odd = self._knows_a_line() and ms > _ODD * (expected or 0.0) > 0
        if odd and not self._doubted_tokens:
            self._doubted_tokens = tokens
            return
        if odd or max(tokens, self._doubted_tokens) <= _LIKE * min(tokens, self._doubted_tokens):
            self._doubted_tokens = 0
        self._weight = _KEPT * self._weight + 1
        self._tokens = _KEPT * self._tokens + tokens
        self._ms = _KEPT * self._ms + ms
        self._tokens_squared = _KEPT * self._tokens_squared + tokens * tokens
        self._product = _KEPT * self._product + tokens * ms

    def of(self, tokens: int) -> float | None:
        if tokens <= 0:
            return 0.0
        if self._weight == 0:
            return None
        start, slope = self._line()
        return start + slope * tokens

    def _spread(self) -> float:
        return self._weight * self._tokens_squared - self._tokens**2

    def _knows_a_line(self) -> bool:
        """Whether lengths that differ were measured: from one length alone nothing can be expected of another."""
        return self._spread() > 1e-9 * self._tokens**2

    def _line(self) -> tuple[float, float]:
        """Neither part is negative: noise in two like measurements must not promise that more costs less."""
        spread = self._spread()
        if self._knows_a_line():
            slope = (self._weight * self._product - self._tokens * self._ms) / spread
            start = (self._ms - slope * self._tokens) / self._weight
            if slope < 0:
                return self._ms / self._weight, 0.0
            if start >= 0:
                return start, slope
        return 0.0, self._product / self._tokens_squared


@dataclass(slots=True)
class Costs:
    """Of the prefiller, of the decoder's own prefill, and of one move (save on one side, restore on the other)."""

    prefiller: LinearCost = field(default_factory=LinearCost)
    decoder: LinearCost = field(default_factory=LinearCost)
    move: LinearCost = field(default_factory=LinearCost)

    def way(self, *, tokens: int, held_by_decoder: int, held_by_prefiller: int) -> Way:
        """The cheapest way to have `tokens` prompt tokens in the decoder's cache. What is unknown is tried once the
        other way is no better known."""
        alone = self.decoder.of(tokens - held_by_decoder)
        over, moved = self.prefiller.of(tokens - held_by_prefiller), self.move.of(tokens)
        if alone is None or over is None or moved is None:
            return "prefiller" if alone is not None and tokens > held_by_decoder else "decoder"
        ways: dict[Way, float] = {"decoder": alone, "prefiller": over + moved}
        back, rest = self.move.of(held_by_decoder), self.prefiller.of(tokens - held_by_decoder)
        if back is not None and rest is not None and held_by_decoder > held_by_prefiller:
            ways["update"] = back + rest + moved
        return min(ways, key=ways.__getitem__)
