"""The progress of a pull: a bar with rate and time left on a terminal, lines elsewhere, or JSON lines."""

import json
import time
from typing import Any

from rich.progress import TextColumn

from trilithon.cli.output import say, shown
from trilithon.cli.progress import ProgressBar
from trilithon.language import Message
from trilithon.models.fetch.pull import Pulled, PullStep
from trilithon.units import format_bytes, format_duration

__all__ = ["PullProgress"]

_LINE_SECONDS = 10.0
_JSON_SECONDS = 0.5
_WORDS = {"waiting": "another process fetches", "fetching": "fetching", "checking": "checking"}


class PullProgress(ProgressBar):
    """A context manager that is called with every step; `finish` prints the result. `kept` is the amount received,
    `trouble` why nothing comes now; both are empty where there is none."""

    def __init__(self, *, as_json: bool) -> None:
        state = TextColumn("{task.fields[state]}")
        super().__init__(state, description="", wanted=not as_json, visible=False, state="")
        self.kept = self.trouble = ""
        self._as_json = as_json
        self._shown: tuple[str, str] = ("", "")
        self._shown_at = 0.0

    def __call__(self, step: PullStep) -> None:
        if step.stage == "fetching" and step.progress is not None:
            self.kept = _amount(step) if step.progress.done_bytes else ""
        self.trouble = step.text if step.stage == "retrying" else ""
        if self._as_json:
            if self._is_due(step, _JSON_SECONDS):
                say(json.dumps(_as_json(step), ensure_ascii=False))
        elif step.progress is None:
            self._say(_sentence(step))
        elif self._bar is not None:
            done, total = step.progress.done_bytes, step.progress.total_bytes
            self._bar.update(
                self._task, description=_doing(step), completed=done, total=total, state=_state(step), visible=True
            )
        elif self._is_due(step, _LINE_SECONDS):
            self._say(f"{_doing(step)}: {_state(step)}")

    def finish(self, pulled: Pulled, estimate: str = "", *, aside: bool = False) -> None:
        """`estimate` is a line about the model. `aside`: on stderr, where stdout is for something else."""
        manifest = pulled.manifest
        if self._as_json:
            say(json.dumps(_outcome(pulled), ensure_ascii=False))
            return
        for note in pulled.notes:
            self._say(shown(Message("note: {text}", text=note)))
        if self._bar is not None:
            self._bar.stop()
        count = len(manifest.files)
        reused = "" if pulled.fetched_bytes else ", all of them present already"
        size = format_bytes(manifest.size_bytes)
        say(f"{manifest.name}  {size}  {count} file{'s' * (count != 1)}{reused}", err=aside, wrap=True)
        if estimate:
            say(estimate, err=True)

    def _is_due(self, step: PullStep, seconds: float) -> bool:
        """Whether to print: the first step of each stage of a file, and then once in so many seconds."""
        now, shown = time.monotonic(), (step.stage, f"{step.number} {step.text}")
        if shown == self._shown and now - self._shown_at < seconds:
            return False
        self._shown, self._shown_at = shown, now
        return True

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, soft_wrap=True, highlight=False)
        else:
            say(line, err=True)


def _sentence(step: PullStep) -> str:
    return {"looking": "looking at ", "keeping": "keeping "}.get(step.stage, "") + step.text


def _doing(step: PullStep) -> str:
    count = f" ({step.number}/{step.count})" if step.count > 1 else ""
    return f"{_WORDS.get(step.stage, step.stage)} {step.text}{count}"


def _amount(step: PullStep) -> str:
    if step.progress is None:
        return ""
    total = step.progress.total_bytes
    return format_bytes(step.progress.done_bytes) + ("" if total is None else f" of {format_bytes(total)}")


def _state(step: PullStep) -> str:
    """ "1.2 GiB of 4.0 GiB, 8.1 MiB/s, about 5:40 left"."""
    progress, parts = step.progress, [_amount(step)]
    if progress is not None and progress.bytes_per_second is not None:
        parts.append(f"{format_bytes(progress.bytes_per_second)}/s")
    if progress is not None and progress.seconds_left is not None:
        parts.append(f"about {format_duration(progress.seconds_left)} left")
    return ", ".join(parts)


def _as_json(step: PullStep) -> dict[str, Any]:
    row: dict[str, Any] = {"stage": step.stage, "text": step.text}
    if step.progress is not None:
        row |= {
            "number": step.number,
            "count": step.count,
            "digest": step.digest,
            "done_bytes": step.progress.done_bytes,
            "total_bytes": step.progress.total_bytes,
            "bytes_per_second": step.progress.bytes_per_second,
            "seconds_left": step.progress.seconds_left,
        }
    return row


def _outcome(pulled: Pulled) -> dict[str, Any]:
    manifest = pulled.manifest
    return {
        "stage": "done",
        "name": str(manifest.name),
        "source": manifest.source,
        "size_bytes": manifest.size_bytes,
        "fetched_bytes": pulled.fetched_bytes,
        "why": pulled.why,
        "notes": list(pulled.notes),
        "files": [
            {
                "name": file.name,
                "role": file.role,
                "format": file.format,
                "quantization": file.quantization,
                "chip": file.target_platform,
                "size_bytes": file.size_bytes,
                "digest": file.digest,
            }
            for file in manifest.files
        ],
    }
