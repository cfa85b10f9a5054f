"""Ollama's words for how long a model stays and how tokens are chosen, in those of the pool and of the engines."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trilithon.errors import ModelError
from trilithon.models.store.parameters import check_parameter
from trilithon.serve.validation import wrong

__all__ = ["SamplingOptions", "keep_alive_seconds", "sampling_of"]

# time.ParseDuration of Go.
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h)")
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"\d{1,18}(?:\.\d{1,18})?")
_LONGEST = 64
# Go's durations end here, in nanoseconds; what is longer is for ever.
_LONGEST_SECONDS = 2**63 / 1e9

# Ollama's options that llama-server has under the same name.
_NAMES: Final = frozenset(
    [
        *("frequency_penalty", "min_p", "mirostat", "mirostat_eta", "mirostat_tau", "presence_penalty"),
        *("repeat_last_n", "repeat_penalty", "temperature", "top_k", "top_p", "typical_p"),
    ]
)
# Those of api.DefaultOptions (Ollama 0.33) that differ from llama-server's own.
_DEFAULTS: Final = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0}
_TAKEN: Final = frozenset({*_NAMES, "num_ctx", "num_predict", "seed", "stop", "think"})
_SEEDS = 1 << 32
_MOST_STOP_WORDS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """`body` in llama-server's words, without the limit of tokens (`most_tokens`, -1 for none). `context` is how many
    tokens were asked for; `ignored` are the options that the client set and that mean nothing here."""

    body: Mapping[str, Any]
    most_tokens: int
    context: int | None
    ignored: tuple[str, ...]


def keep_alive_seconds(value: float | str | None) -> float | None:
    """Seconds; infinite for a negative one, None where nothing is said. Numbers are seconds, texts are Go's durations
    ("5m", "1h30m") or numbers. Raises Problem."""
    if value is None or value == "":
        return None
    seconds = _duration(value) if isinstance(value, str) else float(value)
    if math.isnan(seconds):
        raise wrong("keep_alive", f"keep_alive {str(value)[:_LONGEST]!r} is not a duration; write 300, 5m, 1h30m or -1")
    return math.inf if seconds < 0 or seconds >= _LONGEST_SECONDS else seconds


def _duration(text: str) -> float:
    """NaN for what is none."""
    given = text.strip()
    sign, given = (-1.0, given[1:]) if given.startswith("-") else (1.0, given.removeprefix("+"))
    if len(given) > _LONGEST:
        return math.nan
    if _NUMBER.fullmatch(given):
        return sign * float(given)
    if re.fullmatch(f"(?:{_DURATION.pattern})+", given) is None:
        return math.nan
    return sign * sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(given))


def sampling_of(given: Mapping[str, Any] | None, model: Mapping[str, Any]) -> SamplingOptions:
    """`given` are the client's options, `model` what its Modelfile says, which the client's go before. Raises Problem
    for a value that does not fit."""
    asked = {name: value for name, value in (given or {}).items() if value is not None}
    checked = {name: _checked(name, value) for name, value in asked.items() if name in _TAKEN}
    options = {name: value for name, value in model.items() if name in _TAKEN} | checked
    body: dict[str, Any] = _DEFAULTS | {name: value for name, value in options.items() if name in _NAMES}
    seed = options.get("seed", -1)
    if seed != -1:
        body["seed"] = seed % _SEEDS
    if stop := [word for word in options.get("stop", ()) if word]:
        if len(stop) > _MOST_STOP_WORDS:
            raise wrong("options.stop", f"stop has {len(stop)} words; send {_MOST_STOP_WORDS} at most")
        body["stop"] = stop
    return SamplingOptions(
        body=body,
        most_tokens=max(options.get("num_predict", -1), -1),
        context=options.get("num_ctx"),
        ignored=tuple(f"options.{name}" for name in asked if name not in _TAKEN),
    )


def _checked(name: str, value: Any) -> Any:
    try:
        return check_parameter(name, value)
    except ModelError as error:
        raise wrong(f"options.{name}", f"options: {error}") from error
