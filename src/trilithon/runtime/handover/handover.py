"""Handover: one placement prefills, another decodes; the KV cache goes from the one to the other through memory.

Nothing is assumed: a probe at the start compares what the decoder makes of a brought cache with what it makes of its
own, and every answer's own count of cached tokens tells whether the brought one was used. Whatever goes wrong with the
prefilling side costs a request time and nothing else: the decoder evaluates the prompt itself.
"""

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
from trilithon.runtime.handover.costs import Costs, Way
from trilithon.runtime.handover.prefiller import Prefiller
from trilithon.runtime.handover.probe import plain_token, probe, warm_up
from trilithon.runtime.handover.requests import generates, read_prompt
from trilithon.runtime.handover.slot_table import Held, Slot, SlotTable
from trilithon.runtime.handover.transfer import MoveFailed, Transfer, within
from trilithon.runtime.memory_need import bytes_needed, cache_bytes, refuse_without_room
from trilithon.runtime.process import Process
from trilithon.runtime.relay import Relayed
from trilithon.runtime.runner import Runner
from trilithon.units import format_bytes

__all__ = ["Handover"]

Opener = Callable[[Placement, Path, Path], AbstractAsyncContextManager[Runner]]
"""Opens a plain runner for a placement, in a folder, with another folder for its slots."""

# In a row, until it is clear that the prefiller does not take what we give it.
_REFUSALS = 3
# The prefiller is given up after so long plus so many times what was expected: the decoder could do it meanwhile.
_LEAST_PATIENCE_SECONDS, _PATIENCE = 5.0, 4.0


@dataclass(slots=True)
class _Brought:
    """A prompt's way into the decoder's slot, which held `held` tokens of it before. `started_ns` leaves out what it
    waited for other requests; `prefilled` is what the prefiller tells of its part where it did one, and `tried`
    whether it was asked."""

    slot: Slot
    tokens: tuple[int, ...]
    started_ns: int
    held: int
    handed: HandoverResult
    prefilled: Timings | None = None
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
        plain: int,
    ) -> None:
        super().__init__(placement, decoder.process, decoder.client, decoder.ready_ns, decoder.log, turn=decoder.turn)
        self._decoder = decoder
        self._resting = decoder._resting
        self.started_ns = decoder.started_ns
        self.evaluated_again = 0
        self.costs = Costs()
        self._objection = ""
        self._tried_out = False
        self._rests = Backoff()
        self._refusals = 0
        self._left_over_ms = 0.0
        self._plain = plain
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
        """Start both sides of `placement` (its `prefill` is the one that prefills) and probe them. `tell` hears how
        much memory they take.

        Raises StartError when the decoder does not start, or when memory cannot hold both. When the prefiller does
        not start, or the probe fails, the decoder works alone, and `off` or the requests' `handed.reason` say why.
        """
        prefill = placement.prefill
        if prefill is None:
            raise ValueError(f"{placement.name} has nothing that prefills")
        refuse_without_room(placement)
        if tell:
            tell(f"{placement.name}: both halves take about {format_bytes(bytes_needed(placement))} of memory")
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
                pair = cls(placement, decoder, prefiller, transfer, prefill.name, await plain_token(decoder))
                await prefiller.tried()
                await pair._try_out(0)
                pair.ready_ns = time.monotonic_ns()
                yield pair

    @property
    def processes(self) -> tuple[Process, ...]:
        prefiller = self._prefiller.runner
        return (self.process, *(prefiller.processes if prefiller else ()))

    @property
    def off(self) -> str:
        """Why nothing is handed over now: what the probe found, or what went wrong a while ago; empty while it is."""
        return self._objection or self._rests.reason

    @property
    def notices(self) -> tuple[str, ...]:
        """What went otherwise than planned, for people."""
        found = [f"nothing is handed over: {self.off}"] if self.off else []
        if not found and (rests := self._rests.count):
            found.append(f"nothing was handed over for a while, {rests} time{'s' * (rests > 1)}: {self._rests.last}")
        failures = self._prefiller.failures
        if failures:
            found.append(f"{self._names[0]} failed {failures} time{'s' * (failures > 1)}: {self._prefiller.reason}")
        runner = self._prefiller.runner
        return (*self._decoder.notices, *(runner.notices if runner else ()), *found)

    # -- the runner's face

    async def stream(self, request: Completion | Chat) -> AsyncGenerator[Event, None]:
        async with (
            self._bring(request) as (brought, changed),
            contextlib.aclosing(super().stream(changed)) as events,
        ):
            async for event in events:
                yield self._finished(brought, event) if isinstance(event, Finished) else event

    @contextlib.asynccontextmanager
    async def relay(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Relayed]:
        """The body goes to the decoder as it is, but for the slot that the prompt was brought into."""
        if not generates(path):
            async with super().relay(path, body) as relayed:
                yield relayed
            return
        came_ns = time.monotonic_ns()
        tokens, reason = await read_prompt(self._decoder, path, body)
        cached = body.get("cache_prompt") is not False
        async with self._brought(tokens, came_ns, cached=cached, reason=reason) as brought:
            kept = cached or brought.prefilled is not None
            changed = {**body, "cache_prompt": kept, "id_slot": brought.slot.number}
            async with super().relay(path, changed) as relayed:
                relayed.handed = brought.handed
                relayed.settle = functools.partial(self._finished, brought)
                yield relayed

    async def complete(self, request: Completion | Chat) -> tuple[list[Event], Finished]:
        async with self._bring(request) as (brought, changed):
            events, finished = await super().complete(changed)
            return events, self._finished(brought, finished)

    async def timed(self, request: Completion) -> Finished:
        async with self._bring(request) as (brought, changed):
            assert isinstance(changed, Completion)
            return self._finished(brought, await super().timed(changed))

    async def distribution(self, request: Completion) -> tuple[list[Candidate], Timings]:
        async with self._bring(request) as (brought, changed):
            assert isinstance(changed, Completion)
            candidates, timings = await super().distribution(changed)
            finished = self._finished(brought, Finished(time.monotonic_ns(), "length", timings))
            assert finished.timings is not None
            return candidates, finished.timings

    # -- one request

    @contextlib.asynccontextmanager
    async def _bring(self, request: Completion | Chat) -> AsyncIterator[tuple[_Brought, Completion | Chat]]:
        """The prompt's way, and the request as it goes to the decoder."""
        came_ns = time.monotonic_ns()
        tokens = tuple(await self._tokens(request))
        async with self._brought(tokens, came_ns, cached=request.cache_prompt) as brought:
            if isinstance(request, Completion) and tokens:  # once is enough: the decoder need not tokenise it again
                request = replace(request, prompt=tokens)
            kept = brought.prefilled is not None or request.cache_prompt
            yield brought, replace(request, cache_prompt=kept, slot=brought.slot.number)

    @contextlib.asynccontextmanager
    async def _brought(
        self, tokens: tuple[int, ...], came_ns: int, *, cached: bool, reason: str = ""
    ) -> AsyncIterator[_Brought]:
        """Have the prompt in a slot of the decoder, by the cheapest way, and the slot to ourselves meanwhile. `cached`:
        it may be there already. `reason` is why it stays with the decoder."""
        read_ns = time.monotonic_ns() - came_ns
        async with self._slots.taken(tokens) as slot:
            if not cached:
                slot.forget()
            started_ns = time.monotonic_ns() - read_ns
            brought = _Brought(slot, tokens, started_ns, slot.decoder.of(tokens), self._alone(reason))
            if not reason:
                way, reason = self._way(slot, tokens)
                brought.handed = self._alone(reason)
                if way != "decoder":
                    await self._hand_over(brought, update=way == "update")
            # Whatever happens now, the slot no longer holds what it held.
            slot.decoder = Held()
            yield brought

    async def _tokens(self, request: Completion | Chat) -> Sequence[int]:
        if isinstance(request, Chat):
            return await self.tokenize(await self.rendered(request))
        return await self.tokenize(request.prompt) if isinstance(request.prompt, str) else request.prompt

    def _way(self, slot: Slot, tokens: Sequence[int]) -> tuple[Way, str]:
        if self.off or self._prefiller.runner is None:
            return "decoder", self.off or self._prefiller.reason
        if not 2 <= len(tokens) < (self.placement.settings.context or math.inf):
            return "decoder", "the prompt is no longer than a token, or as long as the context"
        if not self._transfer.has_room_for(len(tokens)):
            return "decoder", "no room in memory for the KV cache"
        way = self.costs.way(
            tokens=len(tokens) - 1,
            held_by_decoder=slot.decoder.of(tokens),
            held_by_prefiller=slot.prefiller.of(tokens),
        )
        return way, "what is new of the prompt is too short to pay" if way == "decoder" else ""

    async def _hand_over(self, brought: _Brought, *, update: bool) -> None:
        """Prefill all but the last token elsewhere and bring the cache here; `brought` tells how it went."""
        waited_ns = time.monotonic_ns()
        async with self._prefilling:
            brought.started_ns += time.monotonic_ns() - waited_ns
            runner = self._prefiller.runner
            if runner is None:  # it failed in another request while this one waited
                brought.handed = self._alone(self.off or self._prefiller.reason)
                return
            if not self._tried_out:
                brought.slot.forget()
                brought.held = 0
                if not await self._try_out(brought.slot.number):
                    brought.handed = self._alone(self.off or self._prefiller.reason)
                    return
            brought.tried = True
            try:
                await self._evaluate_on(runner, brought, update=update)
            except MoveFailed as failed:
                self._failed(failed.side, failed.error, brought)
            except RunError as error:
                self._failed(runner, error, brought)

    async def _evaluate_on(self, runner: Runner, brought: _Brought, *, update: bool) -> None:
        slot, prefix = brought.slot, brought.tokens[:-1]
        before_bytes, before_ns = self._transfer.moved_bytes, time.monotonic_ns()
        patience = self._patience_seconds(len(prefix))
        held, slot.prefiller = slot.prefiller, Held()  # from now on it may hold anything
        if update:
            await self._transfer.move(self, runner, slot.number, watched=runner, limit_seconds=patience)
            held = replace(slot.decoder)
        request = Completion(
            prompt=prefix, max_tokens=0, cache_prompt=bool(held.tokens), slot=slot.number, forced=self._plain
        )
        self._left_over_ms += self.costs.prefiller.of(len(prefix)) or 0.0
        done = (await within(patience, runner.timed(request))).timings or Timings(0, 0, 0.0, 0, 0.0)
        self._left_over_ms = 0.0
        slot.prefiller = Held(prefix)
        prefilled_ns = time.monotonic_ns()
        slot.decoder = Held()
        tokens = await self._transfer.move(runner, self, slot.number, watched=runner, limit_seconds=patience)
        moved_ns = time.monotonic_ns()
        self._prefiller.worked()
        self._refusals = 0
        self.costs.prefiller.learn(done.prompt_n, done.prompt_ms)
        self.costs.move.learn(tokens, (moved_ns - prefilled_ns) / 1e6)
        brought.prefilled = done
        brought.handed = HandoverResult(
            prefill=self._names[0],
            decode=self._names[1],
            prefill_tokens=done.prompt_n,
            prefill_ms=done.prompt_ms,
            transfer_ms=max(0.0, (moved_ns - before_ns) / 1e6 - done.prompt_ms),
            transfer_bytes=self._transfer.moved_bytes - before_bytes,
        )

    def _patience_seconds(self, tokens: int) -> float:
        """What a request that was cancelled has left over is worked off first, at least to the end of a batch."""
        expected = self.costs.prefiller.of(tokens) or self.costs.decoder.of(tokens) or 0.0
        return _LEAST_PATIENCE_SECONDS + _PATIENCE * (expected + self._left_over_ms) / 1e3

    def _failed(self, side: Runner, error: RunError, brought: _Brought) -> None:
        """A refusal is an answer: who gave it lives. Raises the error when the decoder failed."""
        if side is self and not isinstance(error, EngineError):
            raise error
        brought.slot.forget()
        brought.held = 0
        brought.handed = self._alone(str(error))
        if not isinstance(error, EngineError):
            self._left_over_ms = 0.0
            self._prefiller.failed(side, error)
        elif self._transfer.has_room_for(len(brought.tokens)):  # else it is not its fault
            self._refusals += 1
            if self._refusals >= _REFUSALS:
                self._rests.begin(f"refused {_REFUSALS} times in a row: {error}")

    def _finished(self, brought: _Brought, finished: Finished) -> Finished:
        """The request as a whole: what was evaluated for it anywhere counts as evaluated, from the moment it came."""
        timings, slot = finished.timings, brought.slot
        if timings is None:
            return replace(finished, handed=brought.handed)
        if not brought.tokens:  # nobody knows what is in the slot now
            return replace(finished, handed=brought.handed)
        generated = max(0, timings.predicted_n - 1)  # the last one was sampled, not evaluated
        slot.decoder = Held(brought.tokens, generated)
        done, wanted = brought.prefilled, len(brought.tokens) - 1
        cached = timings.cache_n
        if done is None:
            self.costs.decoder.learn(timings.prompt_n, timings.prompt_ms)
            if not brought.tried:
                return replace(finished, handed=brought.handed)
        elif timings.cache_n < wanted:
            self.evaluated_again += 1
            self._rests.begin(f"{self._names[1]} used {timings.cache_n} of {wanted} tokens that were brought to it")
        else:
            self._rests.worked()
            # The last token that the decoder held may be one that the prefiller did not: it is no new one.
            cached = done.cache_n + (brought.held > done.cache_n)
        whole_ms = (finished.at_ns - brought.started_ns) / 1e6
        own = replace(
            timings,
            cache_n=cached,
            prompt_n=timings.cache_n + timings.prompt_n - cached,
            prompt_ms=max(whole_ms - timings.predicted_ms, timings.prompt_ms),
        )
        return replace(finished, timings=own, handed=brought.handed)

    def _alone(self, reason: str) -> HandoverResult:
        return HandoverResult(prefill=self._names[1], decode=self._names[1], reason=reason)

    async def _try_out(self, slot: int) -> bool:
        """Whether its caches can be handed over; asked once, as soon as there is a prefiller."""
        runner = self._prefiller.runner
        if runner is None:
            return False  # it goes on trying; until then the decoder works alone
        try:
            self._objection = await probe(runner, self._decoder, self._plain, self._transfer, self.costs, slot)
        except MoveFailed as failed:
            self._prefiller.failed(runner, failed.error)
            return False
        self._tried_out = True
        if self._objection:
            self._prefiller.retire()
        return not self._objection


def _bytes_per_token(placement: Placement) -> float:
    settings = placement.settings
    return cache_bytes(placement) / settings.slots / settings.context if settings.context else 0.0
