"""Handover: one placement prefills, another decodes; the KV cache goes from the one to the other through memory.

Nothing is assumed: a probe at the start compares what the decoder makes of a brought cache with what it makes of its
own, and every answer's own count of cached tokens tells whether the brought one was used. Whatever goes wrong with the
prefilling side costs a request time and nothing else: the decoder evaluates the prompt itself.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.children.wire import Candidate, Chat, Completion, Event, Finished, Handed, Timings
from trilithon.engines.base import Placement
from trilithon.errors import Refused, RunError
from trilithon.measure.divergence import SAME_DIVERGENCE, kl_divergence
from trilithon.runtime.handover_costs import Costs, Way
from trilithon.runtime.memory_need import refuse_without_room
from trilithon.runtime.prefiller import Prefiller
from trilithon.runtime.runner import Runner
from trilithon.runtime.slot_table import Held, Slot, SlotTable
from trilithon.runtime.transfer import Transfer

__all__ = ["Handover"]

Opener = Callable[[Placement, Path, Path], AbstractAsyncContextManager[Runner]]
"""Opens a plain runner for a placement, in a folder, with another folder for its slots."""

_PROBE_TEXT = """The harbour of a small town lies in the bay between two hills. Early in the morning the boats come
back with fish, and the men who mend the nets sit on the wall and talk about the weather. When the sun stands higher,
the market opens: bread, apples, cheese and flowers are sold there, and children run between the stalls. In the
afternoon it becomes quiet, until the ferry from the island arrives and brings the people who work over there home."""
_PROBE_CANDIDATES = 64
_SHORT_PROBE = 16
_REFUSALS = 3


@dataclass(slots=True)
class _Brought:
    """A prompt's way into the decoder's slot. `held` tokens were there before, on either side; the decoder should
    find `expected` in its cache, where something was brought to it."""

    slot: Slot
    tokens: tuple[int, ...]
    started_ns: int
    held: int
    handed: Handed
    expected: int | None = None


class Handover(Runner):
    """A runner whose prompts may be evaluated elsewhere. Use `Handover.open_pair`."""

    def __init__(
        self, placement: Placement, decoder: Runner, prefiller: Prefiller, transfer: Transfer, prefill_name: str
    ) -> None:
        super().__init__(placement, decoder.process, decoder.client, decoder.ready_ns, decoder.log, turn=decoder.turn)
        self._decoder = decoder
        self._resting = decoder._resting
        self.started_ns = decoder.started_ns
        self.off = ""
        """Why nothing is handed over any more; empty while it is."""
        self.evaluated_again = 0
        self.costs = Costs()
        self._refusals = 0
        self._prefiller = prefiller
        self._prefilling = asyncio.Lock()
        self._transfer = transfer
        self._names = prefill_name, placement.name.removeprefix(f"{prefill_name}+")
        self._slots = SlotTable(placement.settings.slots)

    @classmethod
    @contextlib.asynccontextmanager
    async def open_pair(cls, placement: Placement, open_runner: Opener, folder: Path) -> AsyncIterator["Handover"]:
        """Start both sides of `placement` (its `prefill` is the one that prefills) and probe them.

        Raises StartError when the decoder does not start, or when memory cannot hold both. When the prefiller does
        not start, or the probe fails, the decoder works alone, and `off` or the requests' `handed.reason` say why.
        """
        prefill = placement.prefill
        if prefill is None:
            raise ValueError(f"{placement.name} has nothing that prefills")
        refuse_without_room(placement)
        folder.mkdir(parents=True, exist_ok=True)
        with Transfer.open() as transfer:

            def start_prefiller() -> AbstractAsyncContextManager[Runner]:
                return open_runner(prefill, folder / "prefill", transfer.folder)

            async with (
                Prefiller.open(start_prefiller) as prefiller,
                open_runner(replace(placement, prefill=None), folder, transfer.folder) as decoder,
            ):
                pair = cls(placement, decoder, prefiller, transfer, prefill.name)
                await prefiller.tried()
                await pair._probe()
                pair.ready_ns = time.monotonic_ns()
                yield pair

    @property
    def notices(self) -> tuple[str, ...]:
        """What went otherwise than planned, for people."""
        found = [f"nothing is handed over: {self.off}"] if self.off else []
        failures = self._prefiller.failures
        if failures:
            found.append(f"{self._names[0]} failed {failures} time{'s' * (failures > 1)}: {self._prefiller.reason}")
        return (*self._decoder.notices, *found)

    # -- the runner's face

    async def stream(self, request: Completion | Chat) -> AsyncGenerator[Event, None]:
        async with (
            self._bring(request) as (brought, changed),
            contextlib.aclosing(super().stream(changed)) as events,
        ):
            async for event in events:
                yield self._finished(brought, event) if isinstance(event, Finished) else event

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
        """Have the prompt in a slot of the decoder, by the cheapest way, and the slot to ourselves meanwhile."""
        started_ns = time.monotonic_ns()
        tokens = tuple(await self._tokens(request))
        slot = self._slots.choose(tokens)
        async with slot.lock:
            if not request.cache_prompt:
                slot.forget()
            brought = _Brought(slot, tokens, started_ns, slot.decoder.of(tokens), self._alone(""))
            way, reason = self._way(slot, tokens)
            if way == "decoder":
                brought.handed = self._alone(reason)
            else:
                await self._hand_over(brought, update=way == "update")
            kept = bool(brought.expected) or request.cache_prompt
            # Whatever happens now, the slot no longer holds what it held.
            slot.decoder = Held()
            yield brought, replace(request, cache_prompt=kept, slot=slot.number)

    async def _tokens(self, request: Completion | Chat) -> Sequence[int]:
        if isinstance(request, Chat):
            return await self.tokenize(await self._asked(self.client.rendered(request)))
        return await self.tokenize(request.prompt) if isinstance(request.prompt, str) else request.prompt

    def _way(self, slot: Slot, tokens: Sequence[int]) -> tuple[Way, str]:
        if self.off or self._prefiller.runner is None:
            return "decoder", self.off or self._prefiller.reason
        if len(tokens) < 2 or not self._transfer.has_room_for(len(tokens)):
            return "decoder", "" if len(tokens) < 2 else "no room in memory for the KV cache"
        way = self.costs.way(
            tokens=len(tokens) - 1,
            held_by_decoder=slot.decoder.of(tokens),
            held_by_prefiller=slot.prefiller.of(tokens),
        )
        return way, "what is new of the prompt is too short to pay" if way == "decoder" else ""

    async def _hand_over(self, brought: _Brought, *, update: bool) -> None:
        """Prefill all but the last token elsewhere and bring the cache here; `brought` tells how it went."""
        runner, slot = self._prefiller.runner, brought.slot
        assert runner is not None
        prefix = brought.tokens[:-1]
        before_bytes, before_ns = self._transfer.moved_bytes, time.monotonic_ns()
        try:
            async with self._prefilling:
                if update:
                    await self._move(self, runner, slot.number)
                    slot.prefiller = replace(slot.decoder)
                keep = bool(slot.prefiller.tokens)
                slot.prefiller = Held()
                request = Completion(prompt=prefix, max_tokens=0, cache_prompt=keep, slot=slot.number)
                done = (await runner.timed(request)).timings or Timings(0, 0, 0.0, 0, 0.0)
                slot.prefiller = Held(prefix)
                prefilled_ns = time.monotonic_ns()
                slot.decoder = Held()  # from now on it may hold anything
                tokens = await self._move(runner, self, slot.number)
        except RunError as error:
            self._blame(error)
            slot.forget()
            brought.handed = self._alone(str(error))
            brought.held = 0
            return
        self._prefiller.worked()
        self._refusals = 0
        self.costs.prefiller.learn(done.prompt_n, done.prompt_ms)
        spent_ms = (time.monotonic_ns() - before_ns) / 1e6
        brought.expected = tokens
        brought.handed = Handed(
            prefill=self._names[0],
            decode=self._names[1],
            prefill_tokens=done.prompt_n,
            prefill_ms=done.prompt_ms,
            transfer_ms=max(0.0, spent_ms - done.prompt_ms),
            transfer_bytes=self._transfer.moved_bytes - before_bytes,
        )
        self.costs.move.learn(tokens, (time.monotonic_ns() - prefilled_ns) / 1e6)

    def _blame(self, error: RunError) -> None:
        """A refusal is an answer: the prefiller lives. Raises the error when it is the decoder that died."""
        if self.process.returncode is not None:
            raise error
        if not isinstance(error, Refused):
            self._prefiller.failed(error)
            return
        self._refusals += 1
        if self._refusals >= _REFUSALS:
            self._turn_off(f"refused {_REFUSALS} times in a row: {error}")

    def _turn_off(self, reason: str) -> None:
        self.off = reason
        self._prefiller.retire()

    async def _move(self, source: Runner, target: Runner, slot: int) -> int:
        """Bring a slot's cache from one side to the other; the number of tokens that arrived."""
        with self._transfer.file() as name:
            saved = await source.save_slot(slot, name)
            self._transfer.note(saved)
            restored = await target.restore_slot(slot, name)
        return restored.tokens

    def _finished(self, brought: _Brought, finished: Finished) -> Finished:
        """The request as a whole: what was evaluated for it anywhere counts as evaluated, from the moment it came."""
        timings, slot = finished.timings, brought.slot
        if timings is None:
            return replace(finished, handed=brought.handed)
        generated = max(0, timings.predicted_n - 1)  # the last one was sampled, not evaluated
        slot.decoder = Held(brought.tokens, generated)
        if brought.expected is None:
            self.costs.decoder.learn(timings.prompt_n, timings.prompt_ms)
            return replace(finished, handed=brought.handed)
        if timings.cache_n < brought.expected:
            self.evaluated_again += 1
            self._turn_off(
                f"{self._names[1]} used {timings.cache_n} of {brought.expected} tokens that were brought to it"
            )
        total = timings.cache_n + timings.prompt_n
        answering_ms = timings.prompt_ms + timings.predicted_ms
        whole_ms = (finished.at_ns - brought.started_ns) / 1e6
        own = replace(
            timings,
            cache_n=brought.held,
            prompt_n=total - brought.held,
            prompt_ms=max(whole_ms - answering_ms, 0.0) + timings.prompt_ms,
        )
        return replace(finished, timings=own, handed=brought.handed)

    def _alone(self, reason: str) -> Handed:
        return Handed(prefill=self._names[1], decode=self._names[1], reason=reason)

    # -- the probe at the start

    async def _probe(self) -> None:
        """Learn what both sides and a move cost, and see that a brought cache is as good as one's own."""
        runner = self._prefiller.runner
        if runner is None:
            return  # it goes on trying; until then the decoder works alone
        tokens = tuple(await self.tokenize(_PROBE_TEXT))[: (self.placement.settings.context or 512) // 2]
        request = Completion(prompt=tokens, max_tokens=1, candidates=_PROBE_CANDIDATES, slot=0)
        try:
            await self._learn(runner, tokens)
            own, _ = await Runner.distribution(self, request)
            await runner.timed(Completion(prompt=tokens[:-1], max_tokens=0, slot=0))
            started_ns = time.monotonic_ns()
            arrived = await self._move(runner, self, 0)
            self.costs.move.learn(arrived, (time.monotonic_ns() - started_ns) / 1e6)
        except RunError as error:
            if self.process.returncode is not None:
                raise
            self._turn_off(f"the probe failed: {error}")
            return
        brought, timings = await Runner.distribution(self, replace(request, cache_prompt=True))
        objection = _objection(len(tokens) - 1, arrived, timings, own, brought)
        if objection:
            self._turn_off(objection)

    async def _learn(self, runner: Runner, tokens: Sequence[int]) -> None:
        """Each side evaluates the text twice, a part and the whole; a first time is a warm-up."""
        for side, cost in ((runner, self.costs.prefiller), (self, self.costs.decoder)):
            for length in (len(tokens), _SHORT_PROBE, len(tokens)):
                done = await Runner.timed(side, Completion(prompt=tokens[:length], max_tokens=0, slot=0))
                if done.timings and (length == _SHORT_PROBE or cost.of(1) is not None):
                    cost.learn(done.timings.prompt_n, done.timings.prompt_ms)


def _objection(wanted: int, arrived: int, timings: Timings, own: list[Candidate], brought: list[Candidate]) -> str:
    """Why a brought cache cannot be trusted; empty when it can."""
    if arrived != wanted:
        return f"{arrived} of {wanted} tokens arrived in the decoder's cache"
    if timings.cache_n < wanted:
        return f"the decoder evaluated {timings.prompt_n} tokens again that had been brought to it"
    divergence = kl_divergence(*({c.token: c.logprob for c in side} for side in (own, brought)))
    if divergence > SAME_DIVERGENCE:
        return f"with the brought cache the decoder answers otherwise (divergence {divergence:.3g} nats)"
    return ""
