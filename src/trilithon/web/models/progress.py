"""A pull in words: what it is at, how far, how fast, and how long it may still take."""

from dataclasses import dataclass

from trilithon.models.fetch.pull import PullStep
from trilithon.serve.catalog.pulls import PullState
from trilithon.web.quantities import duration, size
from trilithon.web.texts import Texts

__all__ = ["ShownProgress", "progress_of"]


@dataclass(frozen=True, slots=True)
class ShownProgress:
    """`fraction` is None where nobody knows how much is to come. `doing` and `amount` are in the reader's language."""

    doing: str
    amount: str
    fraction: float | None


def progress_of(state: PullState, text: Texts) -> ShownProgress:
    match state.outcome:
        case "done":
            return ShownProgress(text("models.pull.done", name=state.local_name), " ".join(state.notes), 1.0)
        case "failed":
            return ShownProgress(text("models.pull.failed"), state.problem, None)
        case "stopped":
            return ShownProgress(text("models.pull.stopped"), _amount(state.step, text), None)
        case "running":
            doing = text("models.pull.stopping") if state.stopping else _doing(state.step, text)
            return ShownProgress(doing, _amount(state.step, text), _fraction(state.step))


def _doing(step: PullStep, text: Texts) -> str:
    if step.stage in ("chosen", "retrying"):
        return step.text
    doing = text(f"models.pull.{step.stage}", what=step.text)
    return f"{doing} ({step.number}/{step.count})" if step.count > 1 else doing


def _amount(step: PullStep, text: Texts) -> str:
    """ "1.2 GiB of 4.0 GiB · 8.1 MiB/s · about 5:40 left"."""
    progress = step.progress
    if progress is None:
        return ""
    done = size(progress.done_bytes, text)
    total = progress.total_bytes
    parts = [done if total is None else text("models.pull.of", done=done, total=size(total, text))]
    if progress.bytes_per_second is not None:
        parts.append(text("models.pull.rate", rate=size(progress.bytes_per_second, text)))
    if progress.seconds_left is not None:
        parts.append(text("models.pull.left", time=duration(progress.seconds_left, text)))
    return " · ".join(parts)


def _fraction(step: PullStep) -> float | None:
    progress = step.progress
    if progress is None or not progress.total_bytes:
        return None
    return min(progress.done_bytes / progress.total_bytes, 1.0)
