"""Lines in the server's log when a model's handover pauses, and when it resumes: otherwise answers only get slower."""

import logging

from trilithon.runtime.handover_state import HandoverState

__all__ = ["HandoverLog"]

_log = logging.getLogger("trilithon.handover")


class HandoverLog:
    """Compares the state before and after every request with the one before. Both lines are warnings, so that they are
    written without `--verbose`."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def note(self, model: str, state: HandoverState | None) -> None:
        """`state` None: the model's placement is no handover."""
        if state is None or state.state == self._states.get(model, "active"):
            return
        self._states[model] = state.state
        facts: dict[str, object] = {"model": model}
        if state.state != "active":
            facts |= {"reason": state.reason, "retry_in_seconds": state.retry_in_seconds, "misses": state.misses}
        message = {"active": "handover resumed", "paused": "handover paused", "off": "handover is off"}[state.state]
        _log.warning(message, extra={"facts": facts})
