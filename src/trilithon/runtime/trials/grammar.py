"""Tries out the schema or grammar of a request before the engine gets it.

llama.cpp's grammars take time and memory that grow with the square of a pattern or worse, on the thread that serves all
requests, and nothing there can interrupt it. A small schema is passed on; another one is first given to the engine's
twin, in a child with limits. Results are remembered, whether the model stays loaded or not."""

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trilithon.engines.base import Engine, Placement
from trilithon.errors import ChildDied, EngineError, EngineTimeout, RunError
from trilithon.runtime.process import workspace
from trilithon.runtime.trials.twin import MEMORY_BYTES, excess, opened, templates_of, twin_of

__all__ = ["GrammarTrial", "is_tried"]

_CPU_SECONDS = 10  # with the start of the twin, which takes 0.5 s (see trials.template)
_TOKENS = 128
_CHAT = "/v1/chat/completions"
_FIELDS = {
    _CHAT: ("response_format", "json_schema", "grammar", "tools", "tool_choice"),
    "/completion": ("json_schema", "grammar"),
    "/infill": ("json_schema", "grammar"),
}
# What may be expensive: patterns, grammars, long repetitions, and very many properties. What describes is no part of a
# grammar, and most of what an agent sends.
_TEXTS = ("pattern", "grammar")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_LONG = 100
_DESCRIBING = ("description", "title", "$comment")
_LITERALS = ("const", "enum")  # all that is in them is part of the grammar
_LARGE_LETTERS = 30_000
_REMEMBERED = 256
# By what is tried, and where: how it ended.
_results: OrderedDict[str, str] = OrderedDict()


def is_tried(path: str, body: Mapping[str, Any]) -> bool:
    """Whether the request's schema or grammar is one that is tried out first, which takes seconds."""
    return _is_expensive(_constraint(path, body))


class GrammarTrial:
    """Of one runner."""

    def __init__(self, engine: Engine, placement: Placement):
        self._engine = engine
        self._placement = placement
        self._one_at_a_time = asyncio.Lock()

    async def check(self, path: str, body: Mapping[str, Any]) -> None:
        """Raises EngineError (400) for a schema or grammar that takes too much."""
        constraint = _constraint(path, body)
        if not _is_expensive(constraint):
            return
        key = self._key(path, constraint)
        reason = _results.get(key)
        if reason is None:  # else it does not wait for the trial of another one
            async with self._one_at_a_time:
                reason = _results.get(key)
                if reason is None and (reason := await self._trouble(path, constraint)) is not None:
                    _results[key] = reason
                    while len(_results) > _REMEMBERED:
                        _results.popitem(last=False)
        if reason:
            message = f"the schema or grammar {reason}; make its patterns simpler and its repetitions shorter"
            raise EngineError(message, status=400, cause="refused")

    def _key(self, path: str, constraint: Mapping[str, Any]) -> str:
        build, file = self._placement.build, self._placement.file
        where = [build.engine, build.name, build.fingerprint, self._placement.unit, str(file.path), file.sha256]
        tried = json.dumps([path, _CPU_SECONDS, *where, constraint], sort_keys=True, default=str)
        return hashlib.sha256(tried.encode(errors="replace")).hexdigest()

    async def _trouble(self, path: str, constraint: Mapping[str, Any]) -> str | None:
        """As the end of a sentence; empty where it can be used, where the engine refuses it itself, and where there is
        no twin; None where the twin does not start. In a folder of its own: the runner's is removed with it."""
        with workspace() as folder:
            twin = await asyncio.to_thread(self._twin, folder)
            return "" if twin is None else await self._trouble_of(twin, folder, path, constraint)

    async def _trouble_of(self, twin: Placement, folder: Path, path: str, constraint: Mapping[str, Any]) -> str | None:
        limits = {"memory_bytes": MEMORY_BYTES, "cpu_seconds": _CPU_SECONDS}
        try:
            async with opened(self._engine, twin, folder / "twin", **limits) as runner:
                for where, body in _requests(path, constraint):
                    try:
                        async with runner.relay(where, body) as answer:
                            await answer.read()
                    except EngineError as error:  # the engine itself will refuse it
                        if reason := excess(error, **limits):
                            return reason
        except (ChildDied, EngineTimeout) as error:
            reason = excess(error, **limits)
            return reason or f"ends the engine: {error.cause}"
        except RunError:  # the twin does not start: nothing is known of the grammar
            return None
        return ""

    def _twin(self, folder: Path) -> Placement | None:
        return twin_of(self._engine, self._placement, folder / "twin.gguf", templates_of(self._placement))


def _constraint(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in _FIELDS.get(path, ()) if body.get(name)}


def _is_expensive(constraint: Mapping[str, Any]) -> bool:
    """A property may be called "pattern": what counts is the pattern's text."""
    letters, waiting = 0, list[tuple[Any, bool]]([(constraint, False)])
    while waiting and letters < _LARGE_LETTERS:
        value, is_literal = waiting.pop()
        letters += 1  # for what holds no letters, so that the search ends
        if isinstance(value, Mapping):
            for name, inner in value.items():
                if isinstance(inner, str) and name in _DESCRIBING and not is_literal:
                    continue
                if _costs_much(name, inner):
                    return True
                letters += len(name)
                waiting.append((inner, is_literal or name in _LITERALS))
        elif isinstance(value, list | tuple):
            waiting += ((part, is_literal) for part in value)
        else:
            letters += len(str(value))
    return letters >= _LARGE_LETTERS


def _costs_much(keyword: str, value: Any) -> bool:
    if isinstance(value, str):
        return keyword in _TEXTS
    if isinstance(value, int | float):
        return keyword in _COUNTS and value >= _LONG
    return keyword == "patternProperties" and bool(value)


def _requests(path: str, constraint: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The constraint, and its patterns alone: a short answer may end before it reaches them."""
    chat = {"max_tokens": _TOKENS, "messages": [{"role": "user", "content": "x"}]}
    if alone := [{"type": "string", "pattern": pattern} for pattern in sorted(set(_patterns(constraint)))]:
        form = {"type": "json_schema", "json_schema": {"schema": {"anyOf": alone}}}
        yield _CHAT, chat | {"response_format": form}
    if path == _CHAT:
        yield _CHAT, chat | dict(constraint)
    else:
        yield "/completion", {"prompt": "x", "n_predict": _TOKENS} | dict(constraint)


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(pattern := value.get("pattern"), str):
            yield pattern
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _patterns(part)
