"""One generation as the Python servers see it: the request, what each token adds to the answer, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trilithon.engines.wire.messages import Timings
from trilithon.engines.wire.text_stream import TextPiece

__all__ = [
    "GeneratedToken",
    "GenerationEnd",
    "GenerationRequest",
    "GenerationStep",
    "Probability",
    "PromptEvaluated",
    "StopType",
]

StopType = Literal["eos", "limit", "word"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A request after its body was read.

    `prompt` is text only where the engine tokenizes it itself. `limit` is the maximum number of tokens, at least 1;
    `candidates` the number of most probable tokens to report for each position; `slot` is below 0 for any slot.
    `reasoning_opened` means that the prompt ends inside a thinking block; `tools` are the names of the offered tools.
    """

    prompt: str | Sequence[int]
    limit: int
    candidates: int = 0
    cache: bool = True
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    slot: int = -1
    split_reasoning: bool = False
    reasoning_opened: bool = False
    tools: frozenset[str] = frozenset()

    @property
    def prompt_tokens(self) -> Sequence[int] | None:
        """None where only the engine knows the tokens."""
        return None if isinstance(self.prompt, str) else self.prompt

    def settings(self) -> dict[str, Any]:
        """Sampling settings for `generation_settings` of the answer, besides those of every engine."""
        return {}


@dataclass(frozen=True, slots=True)
class PromptEvaluated:
    """`processed` of `total` prompt tokens are in the KV cache, `cached` of them from earlier requests."""

    processed: int
    total: int
    cached: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class Probability:
    """A generated token with its natural log-probability, and the most probable tokens for its position."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One token. `pieces` is empty while a character, a stop string or a tag may still be incomplete."""

    token: int
    pieces: list[TextPiece]
    probability: Probability | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEnd:
    """`rest` is text that was held back until the end; `full` means that the context is full."""

    stop_type: StopType
    stopping_word: str
    rest: list[TextPiece]
    full: bool
    timings: Timings


GenerationStep = PromptEvaluated | GeneratedToken | GenerationEnd
"""What a slot yields; the last one is always GenerationEnd."""
