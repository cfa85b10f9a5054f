"""The measured cost of prefill and of a transfer, and the cheapest route for a prompt. Pure.

A cost is a linear function of the number of tokens: a constant part and a part per token, fitted by least squares.
Newer measurements have more weight, so that a chip that throttles is noticed."""

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Costs", "LinearCost", "Route"]

Route = Literal["decoder", "prefiller", "update"]
"""Where the new part of a prompt is evaluated: by the decoder; by the prefiller, on top of its own cache; or by the
prefiller, after the decoder's cache was transferred to it."""

# The weight of a measurement shrinks by this factor with every later one: about the last ten count.
_DECAY = 0.9
# A measurement of more than so many times the expected cost is ignored as an outlier (a cold start, a burst of another
# program). A second one in a row counts, unless a normal one of similar length (within this factor) came between.
_OUTLIER = 3.0
_SIMILAR = 2.0


@dataclass(slots=True)
class LinearCost:
    """Milliseconds for a number of tokens; None until a measurement is known."""

    _weight: float = 0.0
    _tokens: float = 0.0
    _ms: float = 0.0
    _tokens_squared: float = 0.0
    _product: float = 0.0
    _outlier_tokens: int = 0

    def learn(self, tokens: int, ms: float) -> None:
        if tokens < 1 or ms < 0:
            return
        expected = self.of(tokens)
        outlier = self._has_spread() and ms > _OUTLIER * (expected or 0.0) > 0
        if outlier and not self._outlier_tokens:
            self._outlier_tokens = tokens
            return
        if outlier or max(tokens, self._outlier_tokens) <= _SIMILAR * min(tokens, self._outlier_tokens):
            self._outlier_tokens = 0
        self._weight = _DECAY * self._weight + 1
        self._tokens = _DECAY * self._tokens + tokens
        self._ms = _DECAY * self._ms + ms
        self._tokens_squared = _DECAY * self._tokens_squared + tokens * tokens
        self._product = _DECAY * self._product + tokens * ms

    def of(self, tokens: int) -> float | None:
        if tokens <= 0:
            return 0.0
        if self._weight == 0:
            return None
        start, slope = self._line()
        return start + slope * tokens

    def _spread(self) -> float:
        return self._weight * self._tokens_squared - self._tokens**2

    def _has_spread(self) -> bool:
        """Whether different lengths were measured: one length says nothing about another."""
        return self._spread() > 1e-9 * self._tokens**2

    def _line(self) -> tuple[float, float]:
        """Constant part and part per token. Neither is negative: with noise, more tokens could seem to cost less."""
        spread = self._spread()
        if self._has_spread():
            slope = (self._weight * self._product - self._tokens * self._ms) / spread
            start = (self._ms - slope * self._tokens) / self._weight
            if slope < 0:
                return self._ms / self._weight, 0.0
            if start >= 0:
                return start, slope
        return 0.0, self._product / self._tokens_squared


@dataclass(slots=True)
class Costs:
    """Of prefill on the prefiller, of prefill on the decoder, and of one transfer (save and restore)."""

    prefiller: LinearCost = field(default_factory=LinearCost)
    decoder: LinearCost = field(default_factory=LinearCost)
    transfer: LinearCost = field(default_factory=LinearCost)

    def cheapest(self, *, tokens: int, cached_by_decoder: int, cached_by_prefiller: int) -> tuple[Route, str]:
        """The cheapest way to have `tokens` prompt tokens in the decoder's cache, and the reason for the decoder.
        A route of unknown cost is tried when the decoder's own cost is known."""
        if tokens <= cached_by_decoder:
            return "decoder", "the prompt is in the decoder's cache"
        decoder = self.decoder.of(tokens - cached_by_decoder)
        if decoder is None:
            return "decoder", "prefill on the decoder is measured first"
        prefiller, transfer = self.prefiller.of(tokens - cached_by_prefiller), self.transfer.of(tokens)
        if prefiller is None or transfer is None:
            return "prefiller", ""
        costs: dict[Route, float] = {"prefiller": prefiller + transfer}
        back, rest = self.transfer.of(cached_by_decoder), self.prefiller.of(tokens - cached_by_decoder)
        if back is not None and rest is not None and cached_by_decoder > cached_by_prefiller:
            costs["update"] = back + rest + transfer
        route = min(costs, key=costs.__getitem__)
        if decoder <= costs[route]:
            return "decoder", f"prefill is expected in {decoder:.0f} ms, and in {costs[route]:.0f} ms with a handover"
        return route, ""
