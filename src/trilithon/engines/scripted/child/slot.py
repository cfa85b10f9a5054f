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
from typing import Literal, NoReturn

from trilithon.engines.scripted.child.model import EOS, Part, Prefix, ScriptedAnswer, ScriptedStep, TextWriter
from trilithon.engines.scripted.engine import Script
from trilithon.engines.wire.bodies import Probability, Totals
from trilithon.engines.wire.messages import Timings
from trilithon.engines.wire.server import Turns

__all__ = [
    "Evaluated",
    "Faulty",
    "ScriptedEnd",
    "ScriptedJob",
    "ScriptedPiece",
    "ScriptedSlot",
    "StopType",
    "shared_length",
]

StopType = Literal["eos", "limit", "word"]

# The event loop's timers are rounded up to whole milliseconds; the last stretch is slept outside of it.
_FINE_SLEEP_NS = 2_000_000
_LEAST_RATE_FACTOR = 0.1
_SLOW_STEPS = 6


class Faulty(Exception):
    """The script wants this request to end in an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedJob:
    """`limit` is None for no limit; `candidates` is the number of next-token log-probabilities to give; `slot` is
    below 0 for any."""

    prompt: Sequence[int]
    limit: int | None
    cache: bool
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    candidates: int = 0
    slot: int = -1


@dataclass(frozen=True, slots=True)
class Evaluated:
    """`processed` of `total` prompt tokens are in the cache, `cached` of them from before."""

    processed: int
    total: int
    cached: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class ScriptedPiece:
    """What one step adds to the answer. `text` is empty where characters are not complete yet or held back
    because a stop word may be forming."""

    token: int
    text: str
    part: Part
    probability: Probability | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedEnd:
    stop_type: StopType
    stopping_word: str
    rest: str
    full: bool
    timings: Timings


@dataclass(slots=True, kw_only=True)
class _Run:
    """One request under way. `due_ns` is when the next thing is due: deadlines add up, so that nothing drifts."""

    request: ScriptedJob
    cached: int
    start_ns: int
    due_ns: float
    prefill_step_ns: float
    decode_step_ns: float
    prefix: Prefix | None
    writer: TextWriter
    first_ns: int = 0
    last_ns: int = 0
    predicted: int = 0
    last_token: int = 0

    def stop_type(self, context: int) -> StopType | None:
        if self.last_token == EOS:
            return "eos"
        if self.writer.stopped_by:
            return "word"
        # One token is sampled even where none was asked for, as llama-server does.
        limit = self.request.limit
        reached = limit is not None and self.predicted >= max(limit, 1)
        return "limit" if reached or self.is_full(context) else None

    def is_full(self, context: int) -> bool:
        return len(self.request.prompt) + self.predicted >= context

    def probability(self, token: int, wrong: float) -> Probability | None:
        if self.prefix is None:
            return None
        distribution = self.prefix.distribution(wrong)
        self.prefix.append(token)
        return Probability(token, distribution.logprob(token), distribution.top(self.request.candidates))

    def timings(self) -> Timings:
        return Timings(
            cache_n=self.cached,
            prompt_n=len(self.request.prompt) - self.cached,
            prompt_ms=(self.first_ns - self.start_ns) / 1e6,
            predicted_n=self.predicted,
            predicted_ms=max((self.last_ns - self.first_ns) / 1e6, 0.001),
        )


class ScriptedSlot(Turns):
    """`tokens` is what the KV cache of a real engine would hold; `totals` may be those of several slots. Times are by
    this process's monotonic clock."""

    def __init__(self, script: Script, *, context: int, batch: int, totals: Totals | None = None) -> None:
        super().__init__()
        self.context = context
        self.tokens: list[int] = []
        self.totals = totals or Totals()
        self._script = script
        self._answer = ScriptedAnswer(script)
        self._batch = batch
        self._random = random.Random(os.urandom(16) if script.seed is None else script.seed)

    async def generate(self, request: ScriptedJob) -> AsyncGenerator[Evaluated | ScriptedPiece | ScriptedEnd]:
        """Close the iterator to cancel. Raises Faulty where the script says so."""
        async with self._taken():
            run = self._begin(request)
            for processed in self._milestones(run):
                await _sleep_until(run.start_ns + (processed - run.cached) * run.prefill_step_ns)
                self.tokens = list(request.prompt[:processed])
                elapsed_ms = (time.monotonic_ns() - run.start_ns) / 1e6
                yield Evaluated(processed, len(request.prompt), run.cached, elapsed_ms)
            await self._fail_on_demand()
            for step in self._answer.steps(ignore_eos=request.ignore_eos):
                yield await self._generate_one(run, step)
                await self._fail_on_demand()
                stop_type = run.stop_type(self.context)
                if stop_type:
                    yield self._end(run, stop_type)
                    return

    def _begin(self, request: ScriptedJob) -> _Run:
        self.totals.requests += 1
        prompt = request.prompt
        # The last prompt token is always evaluated anew: its output is what the first token is sampled from.
        cached = min(shared_length(self.tokens, prompt), len(prompt) - 1) if request.cache else 0
        prefill_step_ns, decode_step_ns = (
            1e9 / rate / max(self._random.gauss(1, self._script.noise), _LEAST_RATE_FACTOR)
            for rate in (self._script.prefill, self._script.decode)
        )
        start_ns = time.monotonic_ns()
        return _Run(
            request=request,
            cached=cached,
            start_ns=start_ns,
            due_ns=start_ns + (len(prompt) - cached) * prefill_step_ns,
            prefill_step_ns=prefill_step_ns,
            decode_step_ns=decode_step_ns,
            prefix=Prefix(prompt) if request.candidates else None,
            writer=TextWriter(request.stop),
        )

    def _milestones(self, run: _Run) -> Iterable[int]:
        total = len(run.request.prompt)
        return (*range(run.cached, total, self._batch), total)

    async def _generate_one(self, run: _Run, step: ScriptedStep) -> ScriptedPiece:
        if run.predicted:
            self.tokens.append(run.last_token)
            run.due_ns += run.decode_step_ns + self._slowness() * run.decode_step_ns
        await _sleep_until(run.due_ns)
        run.last_ns = time.monotonic_ns()
        if not run.predicted:
            # A late start must not make the decode steps look short.
            run.first_ns, run.due_ns = run.last_ns, run.last_ns
        run.predicted += 1
        run.last_token = step.token
        self.totals.generated += 1
        return ScriptedPiece(
            step.token, run.writer.add(step.token), step.part, run.probability(step.token, self._script.wrong)
        )

    def _end(self, run: _Run, stop_type: StopType) -> ScriptedEnd:
        timings, totals = run.timings(), self.totals
        totals.prompt_tokens += timings.prompt_n
        totals.cached_tokens += timings.cache_n
        totals.prompt_ms += timings.prompt_ms
        totals.predicted_ms += timings.predicted_ms
        totals.longest = max(totals.longest, len(self.tokens))
        sys.stderr.write(
            f"scripted: {timings.prompt_n} prompt tokens ({timings.cache_n} cached) in {timings.prompt_ms:.1f} ms, "
            f"{timings.predicted_n} tokens in {timings.predicted_ms:.1f} ms, {stop_type}\n"
        )
        return ScriptedEnd(
            stop_type=stop_type,
            stopping_word=run.writer.stopped_by,
            rest=run.writer.finish(),
            full=run.is_full(self.context),
            timings=timings,
        )

    def _slowness(self) -> int:
        """How many more steps' time this step takes: the slow death doubles it each time."""
        script, generated = self._script, self.totals.generated
        if script.die_slowly is None or generated < script.die_slowly:
            return 0
        return 1 << (generated - script.die_slowly + 1)

    async def _fail_on_demand(self) -> None:
        script, generated = self._script, self.totals.generated

        def reached(count: int | None, *, more: int = 0) -> bool:
            return count is not None and generated >= count + more

        if reached(script.crash_after):
            _die(signal.SIGSEGV, f"reading where nothing is, after {generated} tokens")
        if reached(script.oom_after):
            _die(signal.SIGKILL, f"more memory than there is, after {generated} tokens")
        if reached(script.die_slowly, more=_SLOW_STEPS):
            _die(signal.SIGABRT, f"giving up: a step takes {self._slowness()} times as long as it did")
        if reached(script.exit_after):
            sys.stderr.write(f"scripted: ending with code {script.exit_code} after {generated} tokens\n")
            sys.stderr.flush()
            os._exit(script.exit_code)
        if reached(script.error_after):
            raise Faulty(f"the script asks for an error after {script.error_after} tokens")
        if reached(script.hang_after):
            sys.stderr.write(f"scripted: silent from here on, after {generated} tokens\n")
            await asyncio.Event().wait()

    async def evaluate(self, tokens: int) -> None:
        """Take the time that evaluating so many tokens takes; the cache stays as it is."""
        async with self._taken():
            await _sleep_until(time.monotonic_ns() + tokens / self._script.prefill * 1e9)
            self.totals.prompt_tokens += tokens

    async def save(self, path: Path) -> tuple[int, int]:
        """Tokens and bytes written."""
        async with self._taken():
            return len(self.tokens), _write_tokens(path, self.tokens)

    async def restore(self, path: Path) -> tuple[int, int]:
        """Tokens and bytes read. Raises OSError or ValueError when the file is not there or not a saved slot."""
        async with self._taken():
            tokens, size_bytes = _read_tokens(path)
            if len(tokens) > self.context:
                raise ValueError(f"{path} holds more than the context of {self.context} tokens")
            self.tokens = tokens
            return len(tokens), size_bytes

    async def erase(self) -> int:
        async with self._taken():
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


def _die(number: signal.Signals, last_words: str) -> NoReturn:
    sys.stderr.write(f"scripted: {last_words}\n")
    sys.stderr.flush()
    os.kill(os.getpid(), number)
    signal.pause()
    raise AssertionError("unreachable")


async def _sleep_until(due_ns: float) -> None:
    """At least one turn of the event loop, so that what was written goes out and a cancellation comes in."""
    await asyncio.sleep(max(due_ns - _FINE_SLEEP_NS - time.monotonic_ns(), 0) / 1e9)
    _sleep_finely(due_ns)


def _sleep_finely(due_ns: float) -> None:
    remaining_ns = due_ns - time.monotonic_ns()
    if remaining_ns > 0:
        time.sleep(remaining_ns / 1e9)
