"""Which conversation sits in which slot: what the slots of both sides of a handover hold, as far as we know."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

__all__ = ["Held", "Slot", "SlotTable"]


@dataclass(slots=True)
class Held:
    """A KV cache as we know it: prompt tokens that we sent, then `generated` tokens that we have not seen."""

    tokens: tuple[int, ...] = ()
    generated: int = 0

    def of(self, prompt: Sequence[int]) -> int:
        """How many tokens at the beginning of `prompt` are in it; the last one is always evaluated anew.

        Where the prompt goes on after all that we sent, what was generated is taken for a part of it: a client that
        sends the conversation back sends the answer too. The engine's own count has the last word.
        """
        same = _common(self.tokens, prompt)
        if same == len(self.tokens):
            same += self.generated
        return max(0, min(same, len(prompt) - 1))


@dataclass(slots=True)
class Slot:
    """The same number on both sides. `lock` is held by the request that uses it."""

    number: int
    decoder: Held = field(default_factory=Held)
    prefiller: Held = field(default_factory=Held)
    used: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def forget(self) -> None:
        self.decoder, self.prefiller = Held(), Held()


class SlotTable:
    def __init__(self, count: int):
        self.slots = [Slot(number) for number in range(count)]
        self._clock = itertools.count(1)
        self._free = asyncio.Semaphore(count)

    @contextlib.asynccontextmanager
    async def taken(self, prompt: Sequence[int]) -> AsyncIterator[Slot]:
        """Whichever of the free slots suits the prompt best, as soon as there is one; nobody waits for a certain one,
        and who waited longest comes first."""
        async with self._free:
            slot = self.choose(prompt)
            async with slot.lock:
                yield slot

    def choose(self, prompt: Sequence[int]) -> Slot:
        """The slot that holds most of the prompt, a free one if it can be; of those that hold as little as any
        other, the one that was not used for longest."""
        free = [slot for slot in self.slots if not slot.lock.locked()] or self.slots
        best = max(free, key=lambda slot: (_worth(slot, prompt), -slot.used))
        best.used = next(self._clock)
        return best


def _worth(slot: Slot, prompt: Sequence[int]) -> int:
    """A few tokens at the beginning are the same in every conversation: the template's."""
    held = slot.decoder.of(prompt)
    return held if 2 * held >= len(slot.decoder.tokens) else 0


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
