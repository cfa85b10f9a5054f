"""The protocol between Trilithon and its engines, as typed messages: a subset of llama-server's HTTP API.

The fields are llama-server's (tools/server/README.md of llama.cpp, checked against the server in xllamacpp 2026.10).
Times in `Timings` are in milliseconds, as in the protocol; `at_ns` are values of `time.monotonic_ns`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "NO_PINGS",
    "TAINTED",
    "CacheTransfer",
    "Candidate",
    "Chat",
    "Completion",
    "Event",
    "Finished",
    "HandoverResult",
    "PromptProgress",
    "Timings",
    "Token",
    "ToolCallPiece",
]

TAINTED: Final = "tainted_answer"
"""The `type` of the error for an answer during which the engine printed an error; it has the fields `line` and
`advice`. Trilithon's own: llama-server has no such error."""


@dataclass(frozen=True, slots=True)
class Timings:
    """The engine's own clock for one request.

    `prompt_n` counts the prompt tokens evaluated now, `cache_n` those taken from the KV cache. `predicted_ms`
    starts when the first token is sampled, so it covers `predicted_n - 1` decode steps. With speculation,
    `draft_n` tokens were drafted and `draft_accepted` of them accepted."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    draft_n: int = 0
    draft_accepted: int = 0

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> "Timings":
        return cls(
            cache_n=int(body.get("cache_n", 0)),
            prompt_n=int(body.get("prompt_n", 0)),
            prompt_ms=float(body.get("prompt_ms", 0.0)),
            predicted_n=int(body.get("predicted_n", 0)),
            predicted_ms=float(body.get("predicted_ms", 0.0)),
            draft_n=int(body.get("draft_n", 0)),
            draft_accepted=int(body.get("draft_n_accepted", 0)),
        )


@dataclass(frozen=True, slots=True)
class CacheTransfer:
    """A slot's KV cache was written to a file, or read from one: `tokens` in `size_bytes`."""

    tokens: int
    size_bytes: int
    milliseconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverResult:
    """What a handover did for one request. `prefill` and `decode` are the names of the placements that did the work;
    where they are the same, `reason` says why.

    `prefill_tokens` in `prefill_ms` are by the prefilling engine's clock. `transfer_ms` is the rest of the handover's
    duration, and `transfer_bytes` the size of all KV caches that were moved for it."""

    prefill: str
    decode: str
    prefill_tokens: int = 0
    prefill_ms: float = 0.0
    transfer_ms: float = 0.0
    transfer_bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One entry of a next-token distribution: token id and natural log-probability."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """`processed` of `total` prompt tokens were evaluated."""

    at_ns: int
    processed: int
    total: int


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer. `reasoning` is true for thinking, false for what the user sees."""

    at_ns: int
    text: str
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The request ended well. `reason` is "stop", "length" or the engine's own word; `handover` is what a handover
    did for it."""

    at_ns: int
    reason: str
    timings: Timings | None
    handover: HandoverResult | None = None


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """A part of the tool call number `index`: its name, a piece of its arguments as JSON, or both."""

    at_ns: int
    index: int
    name: str
    arguments: str


Event = PromptProgress | Token | ToolCallPiece | Finished
"""What a stream yields; the last one is always Finished. Whatever goes wrong is raised (see errors.RunError)."""


# A newer llama-server sends a comment every 30 s from a thread of its own: a hung model would look alive for ever.
NO_PINGS = -1
_FORCING_BIAS = 1000.0  # added to a logit: far beyond any that a model gives


@dataclass(frozen=True, slots=True, kw_only=True)
class _Generating:
    """What both requests for an answer have in common. Greedy unless `temperature` is set, so that two placements can
    be compared."""

    max_tokens: int
    cache_prompt: bool = False
    temperature: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 1
    stop: Sequence[str] = ()
    slot: int | None = None

    def _common(self, stream: bool) -> dict[str, Any]:
        names = ("cache_prompt", "temperature", "repeat_penalty", "seed")
        body = {name: getattr(self, name) for name in names} | {"stream": stream, "sse_ping_interval": NO_PINGS}
        body |= {"stop": list(self.stop)} if self.stop else {}
        return body | ({} if self.slot is None else {"id_slot": self.slot})


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion(_Generating):
    """A request to `/completion`. `prompt` is text or token ids; `max_tokens` 0 only evaluates the prompt. `forced` is
    the token to generate whatever the model prefers; the distribution that `candidates` asks for stays the model's."""

    prompt: str | Sequence[int]
    ignore_eos: bool = False
    candidates: int = 0
    forced: int | None = None

    path = "/completion"

    def body(self, *, stream: bool) -> dict[str, Any]:
        body = self._common(stream) | {
            "prompt": self.prompt if isinstance(self.prompt, str) else list(self.prompt),
            "n_predict": self.max_tokens,
            "ignore_eos": self.ignore_eos,
        }
        body |= {"n_probs": self.candidates} if self.candidates else {}
        return body | ({} if self.forced is None else {"logit_bias": [[self.forced, _FORCING_BIAS]]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat(_Generating):
    """A request to `/v1/chat/completions`. `messages` are role and content pairs, `tools` OpenAI's functions."""

    messages: Sequence[tuple[str, str]]
    tools: Sequence[Mapping[str, Any]] = ()

    path = "/v1/chat/completions"

    def body(self, *, stream: bool) -> dict[str, Any]:
        messages = [{"role": role, "content": content} for role, content in self.messages]
        tools = {"tools": [{"type": "function", "function": dict(tool)} for tool in self.tools]} if self.tools else {}
        return self._common(stream) | {"messages": messages, "max_tokens": self.max_tokens} | tools
