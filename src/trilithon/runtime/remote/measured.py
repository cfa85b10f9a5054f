"""What a measurement uses of a runner: of a child, of a handover, or of a server that Trilithon did not start."""

from typing import Protocol

from trilithon.engines.base import Placement
from trilithon.engines.wire.messages import Candidate, Chat, Completion, Event, Finished, Timings

__all__ = ["MeasuredRunner"]


class MeasuredRunner(Protocol):
    """The methods are those of `Runner`. `started_ns` and `ready_ns` are monotonic."""

    placement: Placement
    started_ns: int
    ready_ns: int

    @property
    def notices(self) -> tuple[str, ...]: ...

    async def complete(self, request: Completion | Chat) -> tuple[list[Event], Finished]: ...

    async def timed(self, request: Completion) -> Finished: ...

    async def distribution(self, request: Completion) -> tuple[list[Candidate], Timings]: ...

    async def tokenize(self, text: str, *, add_special: bool = True) -> list[int]: ...

    async def vocabulary_size(self) -> int: ...
