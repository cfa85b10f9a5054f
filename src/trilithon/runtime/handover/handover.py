"""Handover: one placement prefills, another decodes; the KV cache is transferred between them through memory.

A probe at the start compares the decoder's results with a transferred cache and with its own, and the count of cached
tokens in every answer shows whether a transferred cache was used. A failure of the prefilling half costs only time: the
decoder evaluates the prompt itself."""

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trilithon.engines.base import Placement
from trilithon.engines.wire.messages import Candidate, Chat, Completion, Event, Finished, HandoverResult, Timings
from trilithon.errors import EngineError, RunError
from trilithon.runtime.handover.backoff import Backoff
from trilithon.runtime.handover.costs import Costs, Route
from trilithon.runtime.handover.prefiller import Prefiller
from trilithon.runtime.handover.probe import probe, token_to_force, warm_up
from trilithon.runtime.handover.requests import generates, read_prompt
from trilithon.runtime.handover.slot_table import CachedTokens, Slot, SlotTable
from trilithon.runtime.handover.transfer import Transfer, TransferFailed, within
from trilithon.runtime.handover_state import HandoverState
from trilithon.runtime.memory_need import bytes_needed, cache_bytes, refuse_without_room
from trilithon.runtime.process import Process
from trilithon.runtime.relay import Relayed
from trilithon.runtime.runner import Runner
from trilithon.units import format_bytes

__all__ = ["Handover"]

Opener = Callable[[Placement, Path, Path], AbstractAsyncContextManager[Runner]]
"""Opens the runner of one half, in a folder, with another folder for its saved slots."""

# So many errors of the prefiller in a row pause the handover.
_MAX_REFUSALS = 3
# A prefill is abandoned after so long plus so many times the expected time.
_MIN_PATIENCE_SECONDS, _PATIENCE = 5.0, 4.0


@dataclass(slots=True)
class _PreparedPrompt:
    """A prompt on its way into the decoder's slot, which had `cached` tokens of it before. `started_ns` leaves out the
    wait for other requests. `prefill_timings` are the prefiller's, where it evaluated the prompt; `tried` says whether
    it was asked to."""

    slot: Slot
    tokens: tuple[int, ...]
    started_ns: int
    cached: int
    result: HandoverResult
    prefill_timings: Timings | None = None
    tried: bool = False


class Handover(Runner):
    """A runner whose prompts may be evaluated elsewhere. Use `Handover.open_pair`."""

    def __init__(
        self,
        placement: Placement,
        decoder: Runner,
        prefiller: Prefiller,
        transfer: Transfer,
        prefill_name: str,
        forced: int,
    ) -> None:
        super().__init__(
            placement,
            decoder.process,
            decoder.client,
            decoder.ready_ns,
            decoder.log,
            unit_lock=decoder.unit_lock,
            reports_errors=decoder.reports_errors,
        )
        self._decoder = decoder
        self._releasing = decoder._releasing
        self.started_ns = decoder.started_ns
        self.misses = 0
        self.costs = Costs()
        self._objection = ""
        self._probed = False
        self._backoff = Backoff()
        self._refusals = 0
        self._backlog_ms = 0.0
        self._forced = forced
        self._prefiller = prefiller
        self._prefilling = asyncio.Lock()
        self._transfer = transfer
        self._names = prefill_name, placement.name.removeprefix(f"{prefill_name}+")
        self._slots = SlotTable(placement.settings.slots)

    @classmethod
    @contextlib.asynccontextmanager
    async def open_pair(
        cls, placement: Placement, open_runner: Opener, folder: Path, tell: Callable[[str], None] | None = None
    ) -> AsyncIterator["Handover"]:
        """Start both halves of `placement` (`placement.prefill` is the first) and probe them. `tell` gets a line about
        the memory that they need.

        Raises StartError when the decoder does not start, or when there is not enough memory for both. When the
        prefiller does not start, or the probe fails, the decoder works alone, and `handover` says why."""
        prefill = placement.prefill
        if prefill is None:
            raise ValueError(f"{placement.name} has no prefill half")
        refuse_without_room(placement)
        if tell:
            tell(f"{placement.name}: both halves need about {format_bytes(bytes_needed(placement))} of memory")
        folder.mkdir(parents=True, exist_ok=True)
        async with Transfer.open(_bytes_per_token(placement)) as transfer:

            @contextlib.asynccontextmanager
            async def start_prefiller() -> AsyncIterator[Runner]:
                async with open_runner(prefill, folder / "prefill", transfer.folder) as runner:
                    await warm_up(runner)
                    yield runner

            async with (
                Prefiller.open(start_prefiller) as prefiller,
                open_runner(replace(placement, prefill=None), folder, transfer.folder) as decoder,
            ):
                pair = cls(placement, decoder, prefiller, transfer, prefill.name, await token_to_force(decoder))
                await prefiller.attempted()
                await pair._probe(0)
                pair.ready_ns = time.monotonic_ns()
                yield pair

    @property
    def processes(self) -> tuple[Process, ...]:
        prefiller = self._prefiller.runner
        return (self.process, *(prefiller.processes if prefiller else ()))

    async def idle(self) -> bool:
        """A prefiller works on what a client has left until the end of the batch."""
        prefiller = self._prefiller.runner
        return await self.client.idle() and (prefiller is None or await prefiller.idle())

    @property
    def handover(self) -> HandoverState:
        if self._objection:
            return HandoverState(state="off", reason=self._objection, misses=self.misses)
        if seconds := self._backoff.left_seconds:
            reason = self._backoff.last_reason
        elif self._prefiller.runner is None:
            reason, seconds = self._prefiller.reason, self._prefiller.restart_in_seconds
        else:
            return HandoverState(state="active", misses=self.misses)
        return HandoverState(state="paused", reason=reason, retry_in_seconds=seconds, misses=self.misses)

    @property
    def notices(self) -> tuple[str, ...]:
        lines: list[str] = []
        pauses = self._backoff.count
        if self._objection or self._backoff.left_seconds:
            lines.append(f"the handover is {self.handover.state}: {self.handover.reason}")
        elif pauses:
            lines.append(f"the handover was paused {_times(pauses)}: {self._backoff.last_reason}")
        if failures := self._prefiller.failures:
            lines.append(f"{self._names[0]} failed {_times(failures)}: {self._prefiller.reason}")
        runner = self._prefiller.runner
        return (*self._decoder.notices, *(runner.notices if runner else ()), *lines)

    # -- the interface of a runner

    async def stream(self, request: Completion | Chat) -> AsyncGenerator[Event, None]:
        async with (
            self._prepared_request(request) as (prompt, changed),
            contextlib.aclosing(super().stream(changed)) as events,
        ):
            async for event in events:
                yield self._finished(prompt, event) if isinstance(event, Finished) else event

    @contextlib.asynccontextmanager
    async def relay(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Relayed]:
        """The decoder gets the body unchanged, except for the slot into which the prompt's cache was transferred."""
        if not generates(path):
            async with super().relay(path, body) as relayed:
                yield relayed
            return
        arrived_ns = time.monotonic_ns()
        tokens, reason = await read_prompt(self._decoder, path, body)
        use_cache = body.get("cache_prompt") is not False
        async with self._prepared(tokens, arrived_ns, use_cache=use_cache, reason=reason) as prompt:
            cache_prompt = use_cache or prompt.prefill_timings is not None
            changed = {**body, "cache_prompt": cache_prompt, "id_slot": prompt.slot.number}
            async with super().relay(path, changed) as relayed:
                relayed.handover = prompt.result
                relayed.complete_timings = functools.partial(self._finished, prompt)
                yield relayed

    async def complete(self, request: Completion | Chat) -> tuple[list[Event], Finished]:
        async with self._prepared_request(request) as (prompt, changed):
            events, finished = await super().complete(changed)
            return events, self._finished(prompt, finished)

    async def timed(self, request: Completion) -> Finished:
        async with self._prepared_request(request) as (prompt, changed):
            assert isinstance(changed, Completion)
            return self._finished(prompt, await super().timed(changed))

    async def distribution(self, request: Completion) -> tuple[list[Candidate], Timings]:
        async with self._prepared_request(request) as (prompt, changed):
            assert isinstance(changed, Completion)
            candidates, timings = await super().distribution(changed)
            finished = self._finished(prompt, Finished(time.monotonic_ns(), "length", timings))
            assert finished.timings is not None
            return candidates, finished.timings

    # -- one request

    @contextlib.asynccontextmanager
    async def _prepared_request(
        self, request: Completion | Chat
    ) -> AsyncIterator[tuple[_PreparedPrompt, Completion | Chat]]:
        """The prompt, and the request as it goes to the decoder."""
        arrived_ns = time.monotonic_ns()
        tokens = tuple(await self._tokens(request))
        async with self._prepared(tokens, arrived_ns, use_cache=request.cache_prompt) as prompt:
            if isinstance(request, Completion) and tokens:  # so that the decoder does not tokenise it again
                request = replace(request, prompt=tokens)
            cache_prompt = prompt.prefill_timings is not None or request.cache_prompt
            yield prompt, replace(request, cache_prompt=cache_prompt, slot=prompt.slot.number)

    @contextlib.asynccontextmanager
    async def _prepared(
        self, tokens: tuple[int, ...], arrived_ns: int, *, use_cache: bool, reason: str = ""
    ) -> AsyncIterator[_PreparedPrompt]:
        """Reserve a slot of the decoder, and bring the prompt into it by the cheapest route. Without `use_cache`, what
        the slot contains is not used. `reason` says why only the decoder can evaluate the prompt."""
        read_ns = time.monotonic_ns() - arrived_ns
        async with self._slots.acquired(tokens) as slot:
            if not use_cache:
                slot.forget()
            started_ns = time.monotonic_ns() - read_ns
            prompt = _PreparedPrompt(slot, tokens, started_ns, slot.decoder.common(tokens), self._not_used(reason))
            if not reason:
                route, reason = self._route(slot, tokens)
                prompt.result = self._not_used(reason)
                if route != "decoder":
                    await self._hand_over(prompt, update=route == "update")
            slot.decoder = CachedTokens()  # unknown until the request has ended
            yield prompt

    async def _tokens(self, request: Completion | Chat) -> Sequence[int]:
        if isinstance(request, Chat):
            return await self.tokenize(await self.apply_template(request))
        return await self.tokenize(request.prompt) if isinstance(request.prompt, str) else request.prompt

    def _route(self, slot: Slot, tokens: Sequence[int]) -> tuple[Route, str]:
        """With the reason when it is the decoder."""
        state = self.handover
        if state.state != "active":
            return "decoder", state.reason
        if not 2 <= len(tokens) < (self.placement.settings.context or math.inf):
            return "decoder", "the prompt has less than two tokens, or as many as the context"
        if not self._transfer.has_room_for(len(tokens)):
            return "decoder", "not enough free memory for the KV cache"
        return self.costs.cheapest(
            tokens=len(tokens) - 1,
            cached_by_decoder=slot.decoder.common(tokens),
            cached_by_prefiller=slot.prefiller.common(tokens),
        )

    async def _hand_over(self, prompt: _PreparedPrompt, *, update: bool) -> None:
        """Evaluate all tokens but the last on the prefiller, and transfer the cache."""
        waited_ns = time.monotonic_ns()
        async with self._prefilling:
            prompt.started_ns += time.monotonic_ns() - waited_ns
            runner = self._prefiller.runner
            if runner is None:  # it failed while this request waited
                prompt.result = self._not_used(self.handover.reason)
                return
            if not self._probed:
                prompt.slot.forget()
                prompt.cached = 0
                if not await self._probe(prompt.slot.number):
                    prompt.result = self._not_used(self.handover.reason)
                    return
            prompt.tried = True
            try:
                await self._evaluate_on(runner, prompt, update=update)
            except TransferFailed as failed:
                self._failed(failed.half, failed.error, prompt)
            except RunError as error:
                self._failed(runner, error, prompt)

    async def _evaluate_on(self, runner: Runner, prompt: _PreparedPrompt, *, update: bool) -> None:
        slot, prefix = prompt.slot, prompt.tokens[:-1]
        bytes_before, started_ns = self._transfer.total_bytes, time.monotonic_ns()
        patience = self._patience_seconds(len(prefix))
        cached, slot.prefiller = slot.prefiller, CachedTokens()  # unknown when anything fails from here on
        if update:
            await self._transfer.run(self, runner, slot.number, watched=runner, limit_seconds=patience)
            cached = replace(slot.decoder)
        request = Completion(
            prompt=prefix, max_tokens=0, cache_prompt=bool(cached.tokens), slot=slot.number, forced=self._forced
        )
        self._backlog_ms += self.costs.prefiller.of(len(prefix)) or 0.0
        timings = (await within(patience, runner.timed(request))).timings or Timings(0, 0, 0.0, 0, 0.0)
        self._backlog_ms = 0.0
        slot.prefiller = CachedTokens(prefix)
        prefilled_ns = time.monotonic_ns()
        slot.decoder = CachedTokens()
        tokens = await self._transfer.run(runner, self, slot.number, watched=runner, limit_seconds=patience)
        ended_ns = time.monotonic_ns()
        self._prefiller.succeeded()
        self._refusals = 0
        self.costs.prefiller.learn(timings.prompt_n, timings.prompt_ms)
        self.costs.transfer.learn(tokens, (ended_ns - prefilled_ns) / 1e6)
        prompt.prefill_timings = timings
        prompt.result = HandoverResult(
            prefill=self._names[0],
            decode=self._names[1],
            prefill_tokens=timings.prompt_n,
            prefill_ms=timings.prompt_ms,
            transfer_ms=max(0.0, (ended_ns - started_ns) / 1e6 - timings.prompt_ms),
            transfer_bytes=self._transfer.total_bytes - bytes_before,
        )

    def _patience_seconds(self, tokens: int) -> float:
        """The engine first finishes what is left of cancelled requests, at least to the end of a batch."""
        expected = self.costs.prefiller.of(tokens) or self.costs.decoder.of(tokens) or 0.0
        return _MIN_PATIENCE_SECONDS + _PATIENCE * (expected + self._backlog_ms) / 1e3

    def _failed(self, half: Runner, error: RunError, prompt: _PreparedPrompt) -> None:
        """An engine that answers with an error is alive. Raises the error when the decoder failed."""
        if half is self and not isinstance(error, EngineError):
            raise error
        prompt.slot.forget()
        prompt.cached = 0
        prompt.result = self._not_used(str(error))
        if not isinstance(error, EngineError):
            self._backlog_ms = 0.0
            self._prefiller.failed(half, error)
        elif self._transfer.has_room_for(len(prompt.tokens)):  # otherwise the memory was the cause
            self._refusals += 1
            if self._refusals >= _MAX_REFUSALS:
                self._backoff.begin(f"refused {_MAX_REFUSALS} times in a row: {error}")

    def _finished(self, prompt: _PreparedPrompt, finished: Finished) -> Finished:
        """The timings of the request as a whole: tokens evaluated by either half, from its arrival on."""
        timings, slot, prefill = finished.timings, prompt.slot, prompt.prefill_timings
        if timings is None or not prompt.tokens:  # the content of the slot is not known
            return replace(finished, handover=prompt.result)
        generated = max(0, timings.predicted_n - 1)  # the last one was sampled, not evaluated
        slot.decoder = CachedTokens(prompt.tokens, generated)
        cached = timings.cache_n
        if prefill is None:
            self.costs.decoder.learn(timings.prompt_n, timings.prompt_ms)
            if not prompt.tried:
                return replace(finished, handover=prompt.result)
        elif self._was_used(timings.cache_n, len(prompt.tokens) - 1):
            # The last token in the decoder's cache may not have been in the prefiller's: it is not a new one.
            cached = prefill.cache_n + (prompt.cached > prefill.cache_n)
        total_ms = (finished.at_ns - prompt.started_ns) / 1e6
        of_request = replace(
            timings,
            cache_n=cached,
            prompt_n=timings.cache_n + timings.prompt_n - cached,
            prompt_ms=max(total_ms - timings.predicted_ms, timings.prompt_ms),
        )
        return replace(finished, timings=of_request, handover=prompt.result)

    def _was_used(self, used: int, transferred: int) -> bool:
        """Whether the decoder used the transferred cache; a miss pauses the handover."""
        if used >= transferred:
            self._backoff.succeeded()
            return True
        self.misses += 1
        self._backoff.begin(f"{self._names[1]} used {used} of {transferred} transferred tokens")
        return False

    def _not_used(self, reason: str) -> HandoverResult:
        return HandoverResult(prefill=self._names[1], decode=self._names[1], reason=reason)

    async def _probe(self, slot: int) -> bool:
        """Whether caches can be handed over; probed once, as soon as there is a prefiller."""
        runner = self._prefiller.runner
        if runner is None:
            return False  # it is started again in the background
        try:
            self._objection = await probe(runner, self._decoder, self._forced, self._transfer, self.costs, slot)
        except TransferFailed as failed:
            self._prefiller.failed(runner, failed.error)
            return False
        self._probed = True
        if self._objection:
            self._prefiller.retire()
        return not self._objection


def _bytes_per_token(placement: Placement) -> float:
    settings = placement.settings
    return cache_bytes(placement) / settings.slots / settings.context if settings.context else 0.0


def _times(count: int) -> str:
    return f"{count} time{'s' * (count > 1)}"
