"""Parts of llama-server's request and answer bodies: fields, timings, usage and metrics. Pure functions.

Field names and messages as the server of llama.cpp b11434 gave them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from trilithon.engines.wire.http import WireError
from trilithon.engines.wire.messages import Timings

__all__ = ["NUMBER_LIMIT", "Totals", "field_of", "metrics_text", "timings_body", "usage_body"]

_T = TypeVar("_T")

NUMBER_LIMIT: Final = 1e9
"""Larger than any meaningful number in a request."""

_METRICS: Final = (
    ("counter", "prompt_tokens_total", "Prompt tokens evaluated"),
    ("counter", "prompt_tokens_cached_total", "Prompt tokens from the KV cache"),
    ("counter", "prompt_seconds_total", "Time spent on prompts"),
    ("counter", "tokens_predicted_total", "Tokens generated"),
    ("counter", "tokens_predicted_seconds_total", "Time spent generating"),
    ("counter", "n_tokens_max", "Longest sequence so far"),
    ("gauge", "prompt_tokens_seconds", "Mean prompt rate in tokens per second"),
    ("gauge", "predicted_tokens_seconds", "Mean generation rate in tokens per second"),
    ("gauge", "requests_processing", "Requests under way"),
    ("gauge", "requests_deferred", "Requests that wait"),
)


@dataclass(slots=True)
class Totals:
    """Counters since the start of the process; `longest` is the most tokens that a KV cache held."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_ms: float = 0.0
    generated: int = 0
    predicted_ms: float = 0.0
    longest: int = 0

    def add(self, timings: Timings) -> None:
        """Adds one finished request, without its generated tokens: these are counted one by one."""
        self.prompt_tokens += timings.prompt_n
        self.cached_tokens += timings.cache_n
        self.prompt_ms += timings.prompt_ms
        self.predicted_ms += timings.predicted_ms
        # As llama-server counts: what the KV cache held. The last token was sampled, but not evaluated.
        sequence = timings.cache_n + timings.prompt_n + max(timings.predicted_n - 1, 0)
        self.longest = max(self.longest, sequence)


def field_of(body: Mapping[str, Any], name: str, kind: type[_T], default: _T) -> _T:
    """The value of `name`, or `default` where it is absent or null. Raises WireError for another type."""
    value = body.get(name)
    if value is None:
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < NUMBER_LIMIT else math.copysign(math.inf, 1 if value > 0 else -1)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise WireError(400, f'"{name}" must be of type {kind.__name__}')
    return value


def timings_body(timings: Timings) -> dict[str, float]:
    drafted = {"draft_n": timings.draft_n, "draft_n_accepted": timings.draft_accepted} if timings.draft_n else {}
    steps = max(timings.predicted_n - 1, 0)
    return {
        "cache_n": timings.cache_n,
        "prompt_n": timings.prompt_n,
        "prompt_ms": timings.prompt_ms,
        "prompt_per_token_ms": timings.prompt_ms / timings.prompt_n if timings.prompt_n else 0.0,
        "prompt_per_second": timings.prompt_n / timings.prompt_ms * 1e3 if timings.prompt_ms else 0.0,
        "predicted_n": timings.predicted_n,
        "predicted_ms": timings.predicted_ms,
        "predicted_per_token_ms": timings.predicted_ms / steps if steps else 0.0,
        "predicted_per_second": steps / timings.predicted_ms * 1e3 if timings.predicted_ms else 0.0,
        **drafted,
    }


def usage_body(timings: Timings) -> dict[str, Any]:
    prompt = timings.cache_n + timings.prompt_n
    return {
        "completion_tokens": timings.predicted_n,
        "prompt_tokens": prompt,
        "total_tokens": prompt + timings.predicted_n,
        "prompt_tokens_details": {"cached_tokens": timings.cache_n},
    }


def metrics_text(totals: Totals, *, processing: int, waiting: int) -> str:
    """Prometheus' text format, with llama-server's names."""
    prompt_seconds, predicted_seconds = totals.prompt_ms / 1e3, totals.predicted_ms / 1e3
    values: dict[str, float] = {
        "prompt_tokens_total": totals.prompt_tokens,
        "prompt_tokens_cached_total": totals.cached_tokens,
        "prompt_seconds_total": prompt_seconds,
        "tokens_predicted_total": totals.generated,
        "tokens_predicted_seconds_total": predicted_seconds,
        "n_tokens_max": totals.longest,
        "prompt_tokens_seconds": totals.prompt_tokens / prompt_seconds if prompt_seconds else 0,
        "predicted_tokens_seconds": totals.generated / predicted_seconds if predicted_seconds else 0,
        "requests_processing": int(processing),
        "requests_deferred": waiting,
    }
    return "".join(
        f"# HELP llamacpp:{name} {help_text}\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {values[name]}\n"
        for kind, name, help_text in _METRICS
    )
