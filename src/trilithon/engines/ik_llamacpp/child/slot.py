"""The slot of the server over the library. The library blocks, so it runs in a thread; a request is cancelled within
one token, or within one batch of its prompt."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from trilithon.engines.ik_llamacpp.child.library import IkModel
from trilithon.engines.ik_llamacpp.child.requests import IkRequest
from trilithon.engines.ik_llamacpp.child.sampling import TokenSampler, logprobs_of
from trilithon.engines.wire.bodies import Totals
from trilithon.engines.wire.generation import (
    GeneratedToken,
    GenerationEnd,
    GenerationStep,
    Probability,
    PromptEvaluated,
    StopType,
)
from trilithon.engines.wire.messages import Timings
from trilithon.engines.wire.slot import WireSlot
from trilithon.engines.wire.text_stream import TextStream

__all__ = ["IkSlot"]

_LEAST_MS = 0.001
Tell = Callable[[GenerationStep], None]


class IkSlot(WireSlot[IkRequest]):
    def __init__(self, model: IkModel) -> None:
        super().__init__(model.context, Totals())
        self._model = model
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ik")

    async def generate(self, request: IkRequest) -> AsyncGenerator[GenerationStep]:
        async with self._exclusive():
            loop, queue = asyncio.get_running_loop(), asyncio.Queue[GenerationStep | None]()

            def put(step: GenerationStep) -> None:
                loop.call_soon_threadsafe(queue.put_nowait, step)

            self._count_request()
            answering = _IkAnswering(self._model, request, self.tokens, put)
            async with self._in_thread(answering) as work:
                work.add_done_callback(lambda _: queue.put_nowait(None))
                while (step := await queue.get()) is not None:
                    if isinstance(step, GeneratedToken):
                        self._count_token()
                    yield step
                end = work.result()
            self.totals.add(end.timings)
            yield end

    @asynccontextmanager
    async def _in_thread(self, answering: "_IkAnswering") -> AsyncIterator[asyncio.Future[GenerationEnd]]:
        """The work has ended when the block is left: if it had not, it is cancelled, and its errors are ignored."""
        self._model.cancelled = False
        future = asyncio.get_running_loop().run_in_executor(self._thread, answering.run)
        try:
            yield future
        finally:
            self._model.cancelled = True
            await asyncio.wait([future])
            future.exception()
            self.tokens = answering.evaluated

    async def save(self, path: Path) -> tuple[int, int]:
        raise ValueError("this server saves no slots")

    async def restore(self, path: Path) -> tuple[int, int]:
        raise ValueError("this server restores no slots")

    async def erase(self) -> int:
        async with self._exclusive():
            erased, self.tokens = len(self.tokens), []
            return erased


class _IkAnswering:
    """One request under way, in the library's thread. `evaluated` are the tokens in the KV cache: of requests before
    at first, and of this one at the end."""

    def __init__(self, model: IkModel, request: IkRequest, kept: list[int], tell: Tell) -> None:
        self._model = model
        self._request = request
        self._tell = tell
        self._prompt = list(request.prompt_tokens or ())
        never = model.ends if request.ignore_eos else ()
        self._sampler = TokenSampler(request.sampling, request.bias, never)
        self._stream = TextStream(
            stop=request.stop, split_reasoning=request.split_reasoning, reasoning_opened=request.reasoning_opened
        )
        self._generated: list[int] = []
        self._ended = False
        self._start_ns = self._first_ns = self._last_ns = 0
        self._cached = 0
        self.evaluated = kept

    def run(self) -> GenerationEnd:
        """Raises RunError."""
        self._start_ns = self._first_ns = self._last_ns = time.monotonic_ns()
        self._reuse()
        rest = self._prompt[self._cached :]
        if self._evaluate(rest):
            milliseconds = (time.monotonic_ns() - self._start_ns) / 1e6
            self._tell(PromptEvaluated(len(self._prompt), len(self._prompt), self._cached, milliseconds))
            while self._sample():
                if not self._evaluate(self._generated[-1:]):
                    break
        return self._end()

    def _reuse(self) -> None:
        """Keep the beginning of the KV cache that the prompt shares. Its last token is always evaluated: the first
        token of the answer is sampled from its output."""
        shared = 0
        for one, other in zip(self._prompt[:-1], self.evaluated if self._request.cache else (), strict=False):
            if one != other:
                break
            shared += 1
        self._cached = shared if self._model.keep(shared) else 0
        self.evaluated = self._prompt[: self._cached]

    def _evaluate(self, tokens: list[int]) -> bool:
        done = False
        try:
            done = self._model.evaluate(tokens, len(self.evaluated))
        finally:  # what is in the cache is not known after an error or a cancellation
            self.evaluated = self.evaluated if done else []
        self.evaluated += tokens * done
        return done

    def _sample(self) -> bool:
        """Whether the answer goes on after the token that is chosen now."""
        logits = self._model.logits()
        token = self._sampler.choose(logits, self.evaluated)
        probability = None
        if self._request.candidates:
            probability = Probability(token, *logprobs_of(logits, token, self._request.candidates))
        self._last_ns = time.monotonic_ns()
        self._first_ns = self._last_ns if not self._generated else self._first_ns
        self._generated.append(token)
        self._ended = self._model.is_end(token)
        pieces = self._stream.feed(b"" if self._ended else self._model.piece(token))
        self._tell(GeneratedToken(token, pieces, probability))
        return not (self._ended or self._stream.stopped is not None or self._is_full() or self._model.cancelled)

    def _is_full(self) -> bool:
        return len(self._generated) >= self._request.limit or self._sequence() >= self._model.context

    def _sequence(self) -> int:
        return len(self._prompt) + len(self._generated)

    def _end(self) -> GenerationEnd:
        stop_type: StopType = "eos" if self._ended else "limit"
        return GenerationEnd(
            stop_type="word" if self._stream.stopped is not None else stop_type,
            stopping_word=self._stream.stopped or "",
            rest=self._stream.finish(),
            full=self._sequence() >= self._model.context,
            timings=Timings(
                cache_n=self._cached,
                prompt_n=len(self._prompt) - self._cached,
                prompt_ms=(self._first_ns - self._start_ns) / 1e6,
                predicted_n=len(self._generated),
                predicted_ms=max((self._last_ns - self._first_ns) / 1e6, _LEAST_MS),
            ),
        )
