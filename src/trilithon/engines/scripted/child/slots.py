"""The slots of the scripted engine, and which request goes to which. Each works at the script's full speed."""

import itertools
from collections.abc import AsyncGenerator, Sequence

from trilithon.engines.scripted.child.slot import (
    Evaluated,
    ScriptedEnd,
    ScriptedJob,
    ScriptedPiece,
    ScriptedSlot,
    shared_length,
)
from trilithon.engines.scripted.engine import Script
from trilithon.engines.wire.bodies import Totals
from trilithon.engines.wire.http import WireError

__all__ = ["Slots"]


class Slots:
    """`count` KV caches of `context` tokens each; faults and totals are those of the whole process."""

    def __init__(self, script: Script, *, count: int, context: int, batch: int) -> None:
        self.context = context
        self.totals = Totals()
        self.all = [ScriptedSlot(script, context=context, batch=batch, totals=self.totals) for _ in range(count)]
        self._used = [0] * count
        self._clock = itertools.count(1)

    @property
    def processing(self) -> int:
        return sum(slot.processing for slot in self.all)

    @property
    def waiting(self) -> int:
        return sum(slot.waiting for slot in self.all)

    def numbered(self, number: int) -> ScriptedSlot:
        if not 0 <= number < len(self.all):
            raise WireError(400, "Invalid slot ID")
        return self.all[number]

    def generate(self, request: ScriptedJob) -> AsyncGenerator[Evaluated | ScriptedPiece | ScriptedEnd]:
        """In the slot that is asked for, else where it suits best. See `ScriptedSlot.generate`."""
        return (self.numbered(request.slot) if request.slot >= 0 else self._best(request.prompt)).generate(request)

    async def evaluate(self, tokens: int) -> None:
        await self._best(()).evaluate(tokens)

    def _best(self, prompt: Sequence[int]) -> ScriptedSlot:
        """Where fewest wait; of those, the one that holds most of the prompt; of those, unused for longest."""

        def cost(number: int) -> tuple[int, int, int]:
            slot = self.all[number]
            return slot.processing + slot.waiting, -shared_length(slot.tokens, prompt), self._used[number]

        best = min(range(len(self.all)), key=cost)
        self._used[best] = next(self._clock)
        return self.all[best]
