"""The slots of both halves of a handover, and the prompts whose KV caches they contain, as far as is known."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

__all__ = ["CachedTokens", "Slot", "SlotTable"]


@dataclass(slots=True)
class CachedTokens:
    """The content of a KV cache: prompt tokens, then `generated` tokens, which are not known here."""

    tokens: tuple[int, ...] = ()
    generated: int = 0

    def common(self, prompt: Sequence[int]) -> int:
        """How many tokens at the beginning of `prompt` it contains; the last one is always evaluated again.

        When the prompt continues after all known tokens, the generated ones are taken to be a part of it: a client that
        sends the conversation back sends the answer too. The engine's own count is exact."""
        same = _common_prefix(self.tokens, prompt)
        if same == len(self.tokens):
            same += self.generated
        return max(0, min(same, len(prompt) - 1))


@dataclass(slots=True)
class Slot:
    """The same slot number in both halves. The request that uses the slot holds `lock`."""

    number: int
    decoder: CachedTokens = field(default_factory=CachedTokens)
    prefiller: CachedTokens = field(default_factory=CachedTokens)
    used: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def forget(self) -> None:
        self.decoder, self.prefiller = CachedTokens(), CachedTokens()


class SlotTable:
    def __init__(self, count: int):
        self.slots = [Slot(number) for number in range(count)]
        self._clock = itertools.count(1)
        self._free = asyncio.Semaphore(count)

    @contextlib.asynccontextmanager
    async def acquired(self, prompt: Sequence[int]) -> AsyncIterator[Slot]:
        """The free slot that suits the prompt best, as soon as one is free. Requests get slots in the order in which
        they came, and none waits for a particular slot."""
        async with self._free:
            slot = self.choose(prompt)
            async with slot.lock:
                yield slot

    def choose(self, prompt: Sequence[int]) -> Slot:
        """The slot with most of the prompt in its cache, a free one if possible; among equals, the least recently
        used."""
        free = [slot for slot in self.slots if not slot.lock.locked()] or self.slots
        best = max(free, key=lambda slot: (_useful_tokens(slot, prompt), -slot.used))
        best.used = next(self._clock)
        return best


def _useful_tokens(slot: Slot, prompt: Sequence[int]) -> int:
    """0 when less than half of the cache would be used: the template's first tokens are in every conversation."""
    common = slot.decoder.common(prompt)
    return common if 2 * common >= len(slot.decoder.tokens) else 0


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
