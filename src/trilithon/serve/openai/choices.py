"""Several answers to one question (`n`), made one after the other by any engine, as one answer of OpenAI's: pure
functions on JSON, but for the clock in the seeds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trilithon.serve.passthrough import event

__all__ = ["Merging", "merged", "with_seed"]

_DONE = b"data: [DONE]\n\n"


def with_seed(body: Mapping[str, Any], choice: int) -> dict[str, Any]:
    """Where a seed is given, each answer has its own: with the same one all would be the same."""
    seed = body.get("seed")
    return {**body, "seed": (seed + choice) % 2**32} if isinstance(seed, int) and seed != -1 else dict(body)


def merged(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whole answers as one: every choice, and all tokens counted once; the clock is the last answer's."""
    choices = [
        {**choice, "index": at}
        for at, choice in enumerate(answer_choice for answer in answers for answer_choice in answer["choices"])
    ]
    usage = _sum(answer.get("usage") or {} for answer in answers)
    return {**answers[-1], "id": answers[0].get("id"), "choices": choices, "usage": usage}


def _sum(usages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The prompt is one and counts once; what was generated adds up."""
    known = list(usages)
    prompt = max((int(usage.get("prompt_tokens") or 0) for usage in known), default=0)
    generated = sum(int(usage.get("completion_tokens") or 0) for usage in known)
    first = known[0] if known else {}
    return {**first, "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


class Merging:
    """Streams of several answers as one stream. Each chunk gets its answer's number; the ends of all but the last,
    and their counts, are held back."""

    def __init__(self) -> None:
        self._rest = b""
        self._id = ""
        self._usages: list[Mapping[str, Any]] = []
        self._last_usage: dict[str, Any] = {}

    def feed(self, chunk: bytes, choice: int) -> bytes:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return b"".join(self._line(line.strip(), choice) for line in lines)

    def finish(self) -> bytes:
        """Once all answers are over: their counts, where they were asked for, and the end."""
        if not self._usages:
            return _DONE
        return event({**self._last_usage, "id": self._id, "usage": _sum(self._usages)}) + _DONE

    def _line(self, line: bytes, choice: int) -> bytes:
        name, _, value = line.partition(b":")
        if name != b"data" or not value.strip() or value.strip() == b"[DONE]":
            return b""
        message = json.loads(value)
        if not isinstance(message, dict):
            return b""
        self._id = self._id or str(message.get("id", ""))
        if message.get("usage") and not message.get("choices"):
            self._usages.append(message["usage"])
            self._last_usage = message
            return b""
        choices = [{**original, "index": choice} for original in message.get("choices") or []]
        return event({**message, "id": self._id, "choices": choices} if choices else message)
