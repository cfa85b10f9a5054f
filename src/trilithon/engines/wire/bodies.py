"""What the bodies of llama-server's API have in common for the servers that are written in Python: pure functions.

Field names and messages as the server of llama.cpp b11434 was seen to give them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from trilithon.engines.wire.http import WireError
from trilithon.engines.wire.messages import Timings

__all__ = [
    "NUMBER_LIMIT",
    "Probability",
    "Totals",
    "chat_limits",
    "field_of",
    "fitting",
    "inputs_of",
    "metrics_text",
    "stop_words",
    "timings_body",
    "usage_body",
    "verbose_body",
]

_T = TypeVar("_T")

NUMBER_LIMIT: Final = 1e9
"""More than any number that a request means."""

_METRICS: Final = (
    ("counter", "prompt_tokens_total", "Prompt tokens evaluated"),
    ("counter", "prompt_tokens_cached_total", "Prompt tokens taken from the cache"),
    ("counter", "prompt_seconds_total", "Time spent on prompts"),
    ("counter", "tokens_predicted_total", "Tokens generated"),
    ("counter", "tokens_predicted_seconds_total", "Time spent generating"),
    ("counter", "n_tokens_max", "Longest sequence so far"),
    ("gauge", "prompt_tokens_seconds", "Mean prompt rate in tokens per second"),
    ("gauge", "predicted_tokens_seconds", "Mean generation rate in tokens per second"),
    ("gauge", "requests_processing", "Requests under way"),
    ("gauge", "requests_deferred", "Requests that wait"),
)


@dataclass(frozen=True, slots=True)
class Probability:
    """A generated token with its log-probability and the most probable tokens in its place."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(slots=True)
class Totals:
    """Counters since the start of the process."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_ms: float = 0.0
    generated: int = 0
    predicted_ms: float = 0.0
    longest: int = 0

    def add(self, timings: Timings) -> None:
        """What one request took."""
        self.prompt_tokens += timings.prompt_n
        self.cached_tokens += timings.cache_n
        self.prompt_ms += timings.prompt_ms
        self.generated += timings.predicted_n
        self.predicted_ms += timings.predicted_ms
        self.longest = max(self.longest, timings.cache_n + timings.prompt_n + timings.predicted_n)


# -- requests


def field_of(body: Mapping[str, Any], name: str, kind: type[_T], default: _T) -> _T:
    """Raises ApiError for a value of another type; null is as good as nothing."""
    value = body.get(name)
    if value is None:
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < NUMBER_LIMIT else math.copysign(math.inf, 1 if value > 0 else -1)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise WireError(400, f'"{name}" must be of type {kind.__name__}')
    return value


def stop_words(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    words = [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise WireError(400, '"stop" must be a string or a list of strings')
    return tuple(word for word in words if word)


def chat_limits(body: Mapping[str, Any]) -> tuple[int, int]:
    """The most tokens, -1 for no limit, and how many of the most probable tokens are wanted with each."""
    limits = [body[name] for name in ("max_completion_tokens", "max_tokens", "n_predict") if body.get(name) is not None]
    limit = field_of({"max_tokens": limits[0]} if limits else {}, "max_tokens", int, -1)
    wanted = field_of(body, "logprobs", bool, False)
    return limit, max(field_of(body, "top_logprobs", int, 0), 1) if wanted else 0


def inputs_of(body: Mapping[str, Any]) -> list[Any]:
    """The prompts of an embeddings request: one text, one list of tokens, or a list of either."""
    given = body.get("input", body.get("content"))
    if given is None:
        raise WireError(400, '"input" or "content" must be provided')
    several = isinstance(given, list) and all(isinstance(part, str | list) for part in given)
    inputs = given if several else [given]
    if not inputs:
        raise WireError(400, '"input" must not be empty')
    return inputs


def fitting(tokens: list[int], context: int) -> list[int]:
    """The tokens of a prompt, when it is one and leaves room for an answer."""
    if not tokens:
        raise WireError(400, '"prompt" must not be empty')
    if len(tokens) >= context:
        message = f"request ({len(tokens)} tokens) exceeds the available context size ({context} tokens)"
        raise WireError(400, message, "exceed_context_size_error", n_prompt_tokens=len(tokens), n_ctx=context)
    return tokens


# -- answers


def timings_body(timings: Timings) -> dict[str, float]:
    guesses = {"draft_n": timings.draft_n, "draft_n_accepted": timings.draft_accepted} if timings.draft_n else {}
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
        **guesses,
    }


def usage_body(timings: Timings) -> dict[str, Any]:
    prompt = timings.cache_n + timings.prompt_n
    return {
        "completion_tokens": timings.predicted_n,
        "prompt_tokens": prompt,
        "total_tokens": prompt + timings.predicted_n,
        "prompt_tokens_details": {"cached_tokens": timings.cache_n},
    }


def verbose_body(body: Mapping[str, Any], stop_type: str, stopping_word: str) -> dict[str, Any]:
    """What the last message of a chat says besides where the request asks for more: above all which word ended it."""
    return {"__verbose": {"stop_type": stop_type, "stopping_word": stopping_word}} if body.get("verbose") else {}


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
