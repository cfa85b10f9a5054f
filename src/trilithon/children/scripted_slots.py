"""The slots of the scripted engine, and which request goes to which. Each works at the script's full speed."""

import itertools
from collections.abc import AsyncGenerator, Sequence

from trilithon.children.llama_bodies import Totals
from trilithon.children.scripted_slot import Ended, Evaluated, Generate, Piece, Slot, shared_length
from trilithon.children.serving import ApiError
from trilithon.engines.scripted import Script

__all__ = ["Slots"]


class Slots:
    """`count` KV caches of `context` tokens each; faults and totals are those of the whole process."""

    def __init__(self, script: Script, *, count: int, context: int, batch: int) -> None:
        self.context = context
        self.totals = Totals()
        self.all = [Slot(script, context=context, batch=batch, totals=self.totals) for _ in range(count)]
        self._used = [0] * count
        self._clock = itertools.count(1)

    @property
    def processing(self) -> int:
        return sum(slot.processing for slot in self.all)

    @property
    def waiting(self) -> int:
        return sum(slot.waiting for slot in self.all)

    def numbered(self, number: int) -> Slot:
        if not 0 <= number < len(self.all):
            raise ApiError(400, "Invalid slot ID")
        return self.all[number]

    def generate(self, request: Generate) -> AsyncGenerator[Evaluated | Piece | Ended]:
        """In the slot that is asked for, else where it suits best. See `Slot.generate`."""
        return (self.numbered(request.slot) if request.slot >= 0 else self._best(request.prompt)).generate(request)

    async def evaluate(self, tokens: int) -> None:
        await self._best(()).evaluate(tokens)

    def _best(self, prompt: Sequence[int]) -> Slot:
        """Where fewest wait; of those, the one that holds most of the prompt; of those, unused for longest."""

        def cost(number: int) -> tuple[int, int, int]:
            slot = self.all[number]
            return slot.processing + slot.waiting, -shared_length(slot.tokens, prompt), self._used[number]

        best = min(range(len(self.all)), key=cost)
        self._used[best] = next(self._clock)
        return self.all[best]
