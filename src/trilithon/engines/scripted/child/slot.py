"""A slot of the scripted engine: requests one at a time, a prefix cache, simulated time, faults on demand."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from trilithon.engines.scripted.child.model import EOS, VOCABULARY, Prefix, ScriptedAnswer
from trilithon.engines.scripted.engine import Script
from trilithon.engines.wire.bodies import Totals
from trilithon.engines.wire.generation import (
    GeneratedToken,
    GenerationEnd,
    GenerationRequest,
    GenerationStep,
    Probability,
    PromptEvaluated,
    StopType,
)
from trilithon.engines.wire.http import WireError
from trilithon.engines.wire.messages import Timings
from trilithon.engines.wire.slot import WireSlot
from trilithon.engines.wire.text_stream import TextStream

__all__ = ["ScriptedSlot", "shared_length"]

# The event loop rounds its timers up to milliseconds, so the last part is slept outside of it.
_FINE_SLEEP_NS = 2_000_000
_LEAST_RATE_FACTOR = 0.1
_SLOW_STEPS = 6


@dataclass(slots=True, kw_only=True)
class _Generation:
    """A running request. `due_ns` is the deadline of the next step; deadlines are added up, so times do not drift."""

    request: GenerationRequest
    prompt: Sequence[int]
    cached: int
    start_ns: int
    due_ns: float
    prefill_step_ns: float
    decode_step_ns: float
    prefix: Prefix | None
    stream: TextStream
    first_ns: int = 0
    last_ns: int = 0
    predicted: int = 0
    last_token: int = 0

    def stop_type(self, context: int) -> StopType | None:
        if self.last_token == EOS:
            return "eos"
        if self.stream.stopped is not None:
            return "word"
        return "limit" if self.predicted >= self.request.limit or self.is_full(context) else None

    def is_full(self, context: int) -> bool:
        return len(self.prompt) + self.predicted >= context

    def probability(self, token: int, wrong: float) -> Probability | None:
        if self.prefix is None:
            return None
        distribution = self.prefix.distribution(wrong)
        self.prefix.append(token)
        return Probability(token, distribution.logprob(token), distribution.top(self.request.candidates))

    def timings(self) -> Timings:
        return Timings(
            cache_n=self.cached,
            prompt_n=len(self.prompt) - self.cached,
            prompt_ms=(self.first_ns - self.start_ns) / 1e6,
            predicted_n=self.predicted,
            predicted_ms=max((self.last_ns - self.first_ns) / 1e6, 0.001),
        )


class ScriptedSlot(WireSlot[GenerationRequest]):
    """Faults count the tokens in `totals`. Times are by this process's monotonic clock."""

    def __init__(self, script: Script, *, context: int, batch: int, totals: Totals) -> None:
        super().__init__(context, totals)
        self._script = script
        self._answer = ScriptedAnswer(script)
        self._batch = batch
        self._random = random.Random(os.urandom(16) if script.seed is None else script.seed)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationStep]:
        async with self._exclusive():
            run = self._begin(request)
            for processed in self._milestones(run):
                await _sleep_until(run.start_ns + (processed - run.cached) * run.prefill_step_ns)
                self.tokens = list(run.prompt[:processed])
                elapsed_ms = (time.monotonic_ns() - run.start_ns) / 1e6
                yield PromptEvaluated(processed, len(run.prompt), run.cached, elapsed_ms)
            await self._fail_on_demand()
            for token in self._answer.tokens(ignore_eos=request.ignore_eos):
                yield await self._generate_one(run, token)
                await self._fail_on_demand()
                stop_type = run.stop_type(self.context)
                if stop_type:
                    yield self._end(run, stop_type)
                    return

    def _begin(self, request: GenerationRequest) -> _Generation:
        self._count_request()
        prompt = request.prompt_tokens or ()
        # The last prompt token is always evaluated: the first token is sampled from its output.
        cached = min(shared_length(self.tokens, prompt), len(prompt) - 1) if request.cache else 0
        prefill_step_ns, decode_step_ns = (
            1e9 / rate / self._script.speedup / max(self._random.gauss(1, self._script.noise), _LEAST_RATE_FACTOR)
            for rate in (self._script.prefill, self._script.decode)
        )
        start_ns = time.monotonic_ns()
        return _Generation(
            request=request,
            prompt=prompt,
            cached=cached,
            start_ns=start_ns,
            due_ns=start_ns + (len(prompt) - cached) * prefill_step_ns,
            prefill_step_ns=prefill_step_ns,
            decode_step_ns=decode_step_ns,
            prefix=Prefix(prompt) if request.candidates else None,
            stream=TextStream(stop=request.stop, split_reasoning=request.split_reasoning),
        )

    def _milestones(self, run: _Generation) -> Iterable[int]:
        total = len(run.prompt)
        return (*range(run.cached, total, self._batch), total)

    async def _generate_one(self, run: _Generation, token: int) -> GeneratedToken:
        if run.predicted:
            self.tokens.append(run.last_token)
            run.due_ns += run.decode_step_ns + self._slowness() * run.decode_step_ns
        await _sleep_until(run.due_ns)
        run.last_ns = time.monotonic_ns()
        if not run.predicted:
            # A late first token must not shorten the decode steps.
            run.first_ns, run.due_ns = run.last_ns, run.last_ns
        run.predicted += 1
        run.last_token = token
        self._count_token()
        pieces = run.stream.feed(b"" if token == EOS else VOCABULARY.bytes_of(token))
        return GeneratedToken(token, pieces, run.probability(token, self._script.wrong))

    def _end(self, run: _Generation, stop_type: StopType) -> GenerationEnd:
        timings = run.timings()
        self.totals.add(timings)
        sys.stderr.write(
            f"scripted: {timings.prompt_n} prompt tokens ({timings.cache_n} cached) in {timings.prompt_ms:.1f} ms, "
            f"{timings.predicted_n} tokens in {timings.predicted_ms:.1f} ms, {stop_type}\n"
        )
        return GenerationEnd(
            stop_type=stop_type,
            stopping_word=run.stream.stopped or "",
            rest=run.stream.finish(),
            full=run.is_full(self.context),
            timings=timings,
        )

    def _slowness(self) -> int:
        """The extra time of this step, in steps: it doubles with each step once the engine dies slowly."""
        script, generated = self._script, self.totals.generated
        if script.die_slowly is None or generated < script.die_slowly:
            return 0
        return 1 << (generated - script.die_slowly + 1)

    async def _fail_on_demand(self) -> None:
        script, generated = self._script, self.totals.generated

        def reached(count: int | None, *, more: int = 0) -> bool:
            return count is not None and generated >= count + more

        if reached(script.crash_after):
            _die(signal.SIGSEGV, f"invalid memory access, after {generated} tokens")
        if reached(script.oom_after):
            _die(signal.SIGKILL, f"more memory than there is, after {generated} tokens")
        if reached(script.die_slowly, more=_SLOW_STEPS):
            _die(signal.SIGABRT, f"giving up: a step takes {self._slowness()} times as long as it did")
        if reached(script.exit_after):
            sys.stderr.write(f"scripted: ending with code {script.exit_code} after {generated} tokens\n")
            sys.stderr.flush()
            os._exit(script.exit_code)
        if reached(script.error_after):
            raise WireError(500, f"the script asks for an error after {script.error_after} tokens", "server_error")
        if reached(script.hang_after):
            sys.stderr.write(f"scripted: silent from here on, after {generated} tokens\n")
            await asyncio.Event().wait()

    async def evaluate(self, tokens: int) -> None:
        """Takes the time of evaluating so many tokens, without a change of the cache."""
        async with self._exclusive():
            await _sleep_until(time.monotonic_ns() + tokens / self._script.prefill / self._script.speedup * 1e9)
            self.totals.prompt_tokens += tokens

    async def save(self, path: Path) -> tuple[int, int]:
        """Gives the tokens and bytes written."""
        async with self._exclusive():
            return len(self.tokens), _write_tokens(path, self.tokens)

    async def restore(self, path: Path) -> tuple[int, int]:
        """Gives the tokens and bytes read. Raises OSError or ValueError where it is missing or not a saved slot."""
        async with self._exclusive():
            tokens, size_bytes = _read_tokens(path)
            if len(tokens) > self.context:
                raise ValueError(f"{path} has more tokens than the context of {self.context}")
            self.tokens = tokens
            return len(tokens), size_bytes

    async def erase(self) -> int:
        async with self._exclusive():
            erased, self.tokens = len(self.tokens), []
            return erased


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common beginning."""
    return next(
        (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )


def _write_tokens(path: Path, tokens: list[int]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_bytes(json.dumps({"scripted": 1, "tokens": tokens}).encode())


def _read_tokens(path: Path) -> tuple[list[int], int]:
    content = path.read_bytes()
    saved = json.loads(content)
    if not isinstance(saved, dict) or saved.get("scripted") != 1:
        raise ValueError(f"{path} is not a saved slot")
    return list(saved["tokens"]), len(content)


def _die(number: signal.Signals, message: str) -> NoReturn:
    sys.stderr.write(f"scripted: {message}\n")
    sys.stderr.flush()
    os.kill(os.getpid(), number)
    signal.pause()
    raise AssertionError("unreachable")


async def _sleep_until(due_ns: float) -> None:
    """Yields to the event loop at least once, so that output is sent and cancellations arrive."""
    await asyncio.sleep(max(due_ns - _FINE_SLEEP_NS - time.monotonic_ns(), 0) / 1e9)
    _sleep_finely(due_ns)


def _sleep_finely(due_ns: float) -> None:
    remaining_ns = due_ns - time.monotonic_ns()
    if remaining_ns > 0:
        time.sleep(remaining_ns / 1e9)
