"""Whether a runner of two halves hands prompts over now, and why not."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["HandoverState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverState:
    """`state` is "active"; "paused" until `retry_in_seconds` from now (0 while the prefiller is started again); or
    "off" for as long as the runner lives. `reason` is empty when it is active. `misses` counts transferred caches that
    the decoder did not use."""

    state: Literal["active", "paused", "off"]
    reason: str = ""
    retry_in_seconds: float | None = None
    misses: int = 0
