"""What a server states about its own speed, compared with the times at which its answer arrived."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trilithon.engines.wire.messages import Timings, Token

__all__ = ["Arrivals", "held_against_clock", "is_plausible"]

# Duration in another unit than the API's: RKLLAMA 0.0.74 gives milliseconds where Ollama has nanoseconds.
_FACTORS = {1e6: "in milliseconds, where nanoseconds are meant", 1e3: "in microseconds, where nanoseconds are meant"}
# Fewer tokens take too short to be told from the way there and back.
_LEAST_PROMPT, _LEAST_PIECES = 64, 8
_SLACK_MS = 20.0
# A server also reads the request, applies the template and makes tokens before the first token.
_LEAST_OF_WAIT, _MOST_OF_WAIT = 0.3, 1.05
_LEAST_OF_STREAM, _MOST_OF_STREAM = 0.75, 1.33
# Pieces that arrive within so little of the whole time were kept back by the server, or on the way.
_BURST, _LEAST_OF_BURST = 0.2, 0.01


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Milliseconds by the client's clock: to the first piece, from there to the last, and of the whole request."""

    first_ms: float
    stream_ms: float
    total_ms: float
    pieces: int

    @classmethod
    def of(cls, started_ns: int, tokens: Sequence[Token], finished_ns: int) -> "Arrivals":
        times = [token.at_ns for token in tokens] or [finished_ns]
        return cls(
            (times[0] - started_ns) / 1e6, (times[-1] - times[0]) / 1e6, (finished_ns - started_ns) / 1e6, len(tokens)
        )

    @property
    def in_one_burst(self) -> bool:
        return self.pieces < _LEAST_PIECES or self.stream_ms < _BURST * self.total_ms


def held_against_clock(stated: Timings, arrivals: Arrivals, round_trip_ms: float) -> tuple[Timings, tuple[str, ...]]:
    """The timings to use, and what is to be said about the server's. A duration that cannot be is replaced by the
    clock's, or by itself in another unit where that agrees."""
    slack = _SLACK_MS + 2 * round_trip_ms
    timings, notes = stated, []
    if stated.prompt_n >= _LEAST_PROMPT or not stated.prompt_ms:
        # An answer that came in one piece says no more of its prefill than that it was a part.
        hides = arrivals.in_one_burst and stated.predicted_n >= _LEAST_PIECES
        least = (_LEAST_OF_BURST if hides else _LEAST_OF_WAIT) * arrivals.first_ms - slack
        most = _MOST_OF_WAIT * arrivals.first_ms + slack
        used, note = _checked("prefill", stated.prompt_ms, least, most, arrivals.first_ms)
        timings = replace(timings, prompt_ms=used)
        notes += [note] * bool(note and stated.prompt_n)
    if stated.predicted_n >= _LEAST_PIECES or not stated.predicted_ms:
        if arrivals.in_one_burst:
            least, most, clock = _BURST * arrivals.total_ms - slack, arrivals.total_ms + slack, arrivals.total_ms
        else:
            least = _LEAST_OF_STREAM * arrivals.stream_ms - slack
            most, clock = _MOST_OF_STREAM * arrivals.stream_ms + slack, arrivals.stream_ms
        used, note = _checked("decode", stated.predicted_ms, least, most, clock)
        timings = replace(timings, predicted_ms=used)
        notes += [note] * bool(note and stated.predicted_n > 1)
    return timings, tuple(notes)


def is_plausible(stated_ms: float, elapsed_ms: float, round_trip_ms: float) -> bool:
    """Whether a request of `elapsed_ms` can have taken the server `stated_ms`."""
    slack = _SLACK_MS + 2 * round_trip_ms
    return _LEAST_OF_WAIT * elapsed_ms - slack <= stated_ms <= _MOST_OF_WAIT * elapsed_ms + slack


def _checked(name: str, stated_ms: float, least: float, most: float, clock_ms: float) -> tuple[float, str]:
    """The milliseconds to use, and the note about them."""
    if not stated_ms:
        return clock_ms, f"{name} by the client's clock: the server states no duration"
    if least <= stated_ms <= most:
        return stated_ms, ""
    for factor, unit in _FACTORS.items():
        if least <= stated_ms * factor <= most and stated_ms * factor > _SLACK_MS:
            return stated_ms * factor, f"the server states the duration of {name} {unit}; read as that"
    return clock_ms, (
        f"{name} by the client's clock: the server states a duration that cannot be, "
        f"{stated_ms:.4g} ms where the clock has {clock_ms:.4g} ms"
    )
