"""Answers one request in the runtime's thread: token by token or, where probabilities are requested, with one run for
each token, which is then chosen here."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilithon.engines.rkllm.child.log import Reason
from trilithon.engines.rkllm.child.runtime import DecodeStep, Perf, RkllmRuntime, RuntimeFailed
from trilithon.engines.rkllm.child.structs import GREEDY, Picture, Prompt, RkllmSampling
from trilithon.engines.rkllm.child.template import ModelText
from trilithon.engines.wire.generation import GeneratedToken, GenerationEnd, GenerationRequest, Probability, StopType
from trilithon.engines.wire.messages import Timings
from trilithon.engines.wire.text_stream import TextStream

__all__ = ["Answering", "RkllmRequest"]

# A model that is continued after its end may end again at once; after so many ends in a row it is given up.
_MOST_ENDS_IN_A_ROW = 8
_LEAST_MS = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class RkllmRequest(GenerationRequest):
    """`bias` is added to the scores; like `candidates` it needs greedy sampling and a prompt of token ids. `picture`
    encodes the pictures of the request, which takes seconds and runs in the runtime's thread; its result replaces the
    prompt."""

    sampling: RkllmSampling = GREEDY
    thinking: bool = True
    picture: Callable[[], Picture] | None = None
    bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        return self.candidates > 0 or bool(self.bias)

    def settings(self) -> dict[str, Any]:
        names = ("top_k", "top_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "mirostat")
        temperature = 0.0 if self.sampling.top_k == 1 else self.sampling.temperature
        return {"temperature": temperature, **{name: getattr(self.sampling, name) for name in names}}


class Answering:
    """One request under way. `tell` is called with each token, in the runtime's thread; `kept` are the tokens of which
    the runtime has keys and values from earlier requests, as far as that is known."""

    def __init__(
        self,
        runtime: RkllmRuntime,
        text: ModelText,
        ends: frozenset[int],
        request: RkllmRequest,
        tell: Callable[[GeneratedToken], None],
        kept: Sequence[int],
    ):
        self._runtime = runtime
        self._text = text
        self._ends = ends
        self._request = request
        self._tell = tell
        self._kept = kept
        self._stream = TextStream(
            stop=request.stop, split_reasoning=request.split_reasoning, reasoning_opened=request.reasoning_opened
        )
        self._prompt_tokens = request.prompt_tokens
        self._perfs: list[Perf] = []
        self._ended_by_token = False
        self._started_ns = self._first_ns = self._last_ns = 0
        self.generated: list[int] = []

    @property
    def tokens(self) -> list[int] | None:
        """The whole sequence; None where only the runtime knows the prompt's tokens."""
        return None if self._prompt_tokens is None else [*self._prompt_tokens, *self.generated]

    def run(self) -> GenerationEnd:
        self._started_ns = self._first_ns = self._last_ns = time.monotonic_ns()
        if not self._request.cache:
            self._runtime.clear()
        if self._request.scored:
            self._choose()
        else:
            self._generate()
        return self._end()

    # -- tokens from the runtime

    def _generate(self) -> None:
        self._run(self._request.picture() if self._request.picture else self._request.prompt)
        ends_in_a_row = 0
        while self._must_continue():
            before = len(self.generated)
            # After the last token the model ends. After the last token twice it likely continues.
            tokens = self.tokens or []
            self._run([*tokens, tokens[-1 - ends_in_a_row % len(tokens)]])
            ends_in_a_row = 0 if len(self.generated) > before else ends_in_a_row + 1
            if ends_in_a_row == _MOST_ENDS_IN_A_ROW:
                raise RuntimeFailed(
                    Reason("the model ends again and again, and cannot be continued; leave ignore_eos out")
                )

    def _must_continue(self) -> bool:
        """The runtime cannot ignore the end of an answer per request, so it is run again with a longer prompt."""
        if not self._request.ignore_eos or self._runtime.cancelled or self.tokens is None:
            return False
        return len(self.generated) < self._request.limit

    def _run(self, prompt: Prompt) -> None:
        perf = self._runtime.generate(
            prompt,
            limit=self._request.limit - len(self.generated),
            on_step=self._on_step,
            sampling=self._request.sampling,
            thinking=self._request.thinking,
        )
        if perf is not None:
            self._perfs.append(perf)

    def _on_step(self, step: DecodeStep) -> bool:
        if step.token in self._ends:
            # 1.3.0 does not know the end token of every model (rknn-llm#534), and would never end.
            self._ended_by_token = True
            if not self._request.ignore_eos:
                return False
        self._add(step.token, step.text, step.at_ns, None)
        return self._stream.stopped is None

    def _add(self, token: int, text: bytes | str, at_ns: int, probability: Probability | None) -> None:
        if not self.generated:
            self._first_ns = at_ns
        self._last_ns = at_ns
        self.generated.append(token)
        self._tell(GeneratedToken(token, self._stream.feed(text), probability))

    # -- tokens from the scores

    def _choose(self) -> None:
        """The most probable token each time. The runtime gives scores only instead of an answer."""
        detokenizer = self._text.detokenizer() if self._text.has_tokenizer else None
        while len(self.generated) < self._request.limit and self._stream.stopped is None:
            logits, perf = self._runtime.logits(self.tokens or [])
            if perf is not None:
                self._perfs.append(perf)
            probability = _most_probable(logits, self._request)
            token = probability.token
            self._ended_by_token = token in self._ends and not self._request.ignore_eos
            text = "" if self._ended_by_token or detokenizer is None else detokenizer.feed(token)
            self._add(token, text, time.monotonic_ns(), probability)
            if self._ended_by_token or self._runtime.cancelled:
                return

    # -- the end

    def _end(self) -> GenerationEnd:
        return GenerationEnd(
            stop_type=self._stop_type(),
            stopping_word=self._stream.stopped or "",
            rest=self._stream.finish(),
            full=len(self.tokens or self.generated) >= self._runtime.context,
            timings=self._timings(),
        )

    def _stop_type(self) -> StopType:
        if self._stream.stopped is not None:
            return "word"
        if self._ended_by_token and not self._request.ignore_eos:
            return "eos"
        return "limit" if len(self.generated) >= self._request.limit else "eos"

    def _timings(self) -> Timings:
        """By the runtime's figures; by this process's clock where it gives none: before 1.2.1, for cancelled runs."""
        count, predicted_ms = len(self.generated), (self._last_ns - self._first_ns) / 1e6
        prompt_n, prompt_ms = self._evaluated(), (self._first_ns - self._started_ns) / 1e6
        if self._perfs:
            prompt_n, prompt_ms = self._perfs[0].prompt_n, self._perfs[0].prompt_ms
        steps = sum(perf.step_n for perf in self._perfs)
        if steps > 0:
            # The mean time of a step is the same whether the runtime counts the first token or not.
            predicted_ms = sum(perf.step_ms for perf in self._perfs) / steps * max(count - 1, 0)
        total = prompt_n if self._prompt_tokens is None else len(self._prompt_tokens)
        return Timings(
            cache_n=max(total - prompt_n, 0),
            prompt_n=prompt_n,
            prompt_ms=prompt_ms,
            predicted_n=count,
            predicted_ms=max(predicted_ms, _LEAST_MS),
        )

    def _evaluated(self) -> int:
        """The number of evaluated prompt tokens, where the runtime does not state it."""
        tokens = self._prompt_tokens
        if tokens is None:
            return 0
        if not self._request.cache or not self._runtime.abi.has_perf:
            return len(tokens)  # older runtimes are not known to reuse a prefix
        shared = 0
        for one, other in zip(tokens[:-1], self._kept, strict=False):
            if one != other:
                break
            shared += 1
        return len(tokens) - shared


def _most_probable(logits: NDArray[np.float32], request: RkllmRequest) -> Probability:
    """The distribution is the model's; the bias only changes which token is chosen."""
    scores = logits.astype(np.float64)
    logprobs = scores - (scores.max() + np.log(np.exp(scores - scores.max()).sum()))
    biased = scores.copy()
    for biased_token, bias in request.bias.items():
        if 0 <= biased_token < len(biased):
            biased[biased_token] += bias
    token = int(biased.argmax())
    count = min(request.candidates, len(logprobs))
    best = np.argsort(-logprobs, kind="stable")[:count]
    top = [(int(other), float(logprobs[other])) for other in best]
    return Probability(token, float(logprobs[token]), top)
