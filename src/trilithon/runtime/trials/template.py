"""Tries out a model's chat template before the model is loaded.

A template is a program of the model's author, which the engine executes while it loads and for every request, without a
limit. Here the same engine runs it first with a tiny model, in a child with limits of memory and CPU time. Results are
remembered by the template's content."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trilithon.engines.base import Engine, Placement
from trilithon.errors import ChildDied, EngineError, RunError, StartError, UserError
from trilithon.files import read_text, save_text
from trilithon.models.files.prompt_form import BASE_TEMPLATE
from trilithon.runtime.process import workspace
from trilithon.runtime.trials.twin import MEMORY_BYTES, TEMPLATE_KEY, excess, opened, templates_of, twin_of
from trilithon.settings import Configuration

__all__ = ["TemplateReplay", "try_template"]

# A template of a known model takes 10 ms and a megabyte for a conversation; the start of llama.cpp's server in Python
# takes 0.5 s of CPU time on x86-64 and 4 s on a Cortex-A53.
_CPU_SECONDS = 20
_MEMORY_BYTES = MEMORY_BYTES
# How long no template is tried after the engine has failed with a good one.
_FAILED_SECONDS = 3600.0

_RENDERING = frozenset({"/v1/chat/completions", "/apply-template"})
_RENDERED = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt")
_PLAIN = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
_PARAMETERS = {"type": "object", "properties": {"x": {"type": "string"}}}
_TOOL = {"type": "function", "function": {"name": "f", "description": "Doubles.", "parameters": _PARAMETERS}}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": '{"x": "1"}'}}


def _conversations() -> list[dict[str, Any]]:
    """What clients send: one turn, many turns, a system prompt, tools and their results, thinking on and off."""
    question, answer = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
    system = {"role": "system", "content": "Be brief."}
    result = {"role": "tool", "tool_call_id": _CALL["id"], "content": "2"}
    return [
        {"messages": [question]},
        {"messages": [system, *[question, answer] * 20, question]},
        {"messages": [system, question], "tools": [_TOOL]},
        {"messages": [question, answer | {"tool_calls": [_CALL]}, result, answer, question], "tools": [_TOOL]},
        *({"messages": [question], "chat_template_kwargs": {"enable_thinking": thinks}} for thinks in (True, False)),
    ]


async def try_template(engine: Engine, placement: Placement, folder: Path, configuration: Configuration) -> None:
    """Raises StartError for a template that takes too much memory or time, or that ends the engine. Nothing is tried
    where the engine executes none. `folder` is private, as for `Runner.open`."""
    file = placement.file
    if file.format != "gguf" or (file.prompt_form and file.prompt_form.template == BASE_TEMPLATE):
        return
    folder.mkdir(parents=True, exist_ok=True)
    twin = await asyncio.to_thread(twin_of, engine, placement, folder / "plain.gguf", {TEMPLATE_KEY: _PLAIN})
    if twin is None:
        return
    templates = await asyncio.to_thread(templates_of, placement)
    if not templates:
        return
    remembered = _remembered(configuration.cache, placement, templates)
    reason = await asyncio.to_thread(_read, remembered)
    plain_failed = _remembered(configuration.cache, placement, {})
    if reason is None and await asyncio.to_thread(_is_recent, plain_failed):
        return
    if reason is None:
        tried = await asyncio.to_thread(twin_of, engine, placement, folder / "twin.gguf", templates)
        reason = await _trouble(engine, tried or twin, folder / "trial")
        if reason and (trouble := await _trouble(engine, twin, folder / "again")):
            # The engine does not even run a good template; its own start will say why.
            await _keep(plain_failed, trouble)
            return
        await _keep(remembered, reason)
    if reason:
        raise StartError(
            f"{placement.name} is not started: the model's chat template {reason}",
            cause=f"the chat template {reason}",
            advice="use another conversion of the model, or put a better chat_template.jinja beside its file",
        )


def _remembered(cache: Path, placement: Placement, templates: Mapping[str, str]) -> Path:
    """The file with the result: an empty one for a good template, else what is wrong with it. Without templates: why
    the engine does not run a good one."""
    build = placement.build
    tried = [build.engine, build.version, build.fingerprint, _CPU_SECONDS, _MEMORY_BYTES, _conversations(), templates]
    return cache / "templates" / hashlib.sha256(json.dumps(tried, sort_keys=True).encode()).hexdigest()


async def _keep(path: Path, reason: str) -> None:
    with contextlib.suppress(UserError):  # a cache that cannot be written: tried again the next time
        await asyncio.to_thread(save_text, path, reason)


def _is_recent(path: Path) -> bool:
    """The machine's memory may have been full for a moment, or its clock have been set."""
    try:
        return abs(time.time() - path.stat().st_mtime) < _FAILED_SECONDS
    except OSError:  # the good template has not failed
        return False


def _read(path: Path) -> str | None:
    try:
        return read_text(path)
    except (OSError, ValueError):  # not tried yet, or written by something else
        return None


async def _trouble(engine: Engine, twin: Placement, folder: Path) -> str:
    """What is wrong with the twin's template, as the end of a sentence; empty if nothing is. The template may refuse a
    conversation."""
    limits = {"memory_bytes": _MEMORY_BYTES, "cpu_seconds": _CPU_SECONDS}
    try:
        async with opened(engine, twin, folder, **limits) as runner:
            for conversation in _conversations():
                try:
                    await runner.apply_template(conversation)
                except EngineError as error:
                    if reason := excess(error, **limits):
                        return reason
    except RunError as error:
        return excess(error, **limits) or f"cannot be used: {error.cause}"
    return ""


class TemplateReplay:
    """Tells whether the chat template is why an engine died at a request: the twin gets the same conversation."""

    def __init__(self, engine: Engine, placement: Placement):
        self._engine = engine
        self._placement = placement
        self._one_at_a_time = asyncio.Lock()

    async def check(self, path: str, body: Mapping[str, Any], error: ChildDied) -> None:
        """Raises EngineError where the template ends the twin too. It has a folder of its own: that of a dead engine is
        removed meanwhile, and several requests may have been at work in it."""
        if path not in _RENDERING or self._placement.file.format != "gguf":
            return
        async with self._one_at_a_time:
            with contextlib.suppress(UserError, OSError), workspace() as folder:  # nothing is known of the template
                await self._replay(folder, body, error)

    async def _replay(self, folder: Path, body: Mapping[str, Any], error: ChildDied) -> None:
        templates = await asyncio.to_thread(templates_of, self._placement)
        twin = await asyncio.to_thread(twin_of, self._engine, self._placement, folder / "twin.gguf", templates)
        if not templates or twin is None:
            return
        limits = {"memory_bytes": _MEMORY_BYTES, "cpu_seconds": _CPU_SECONDS}
        conversation = {name: body[name] for name in _RENDERED if name in body}
        try:
            async with opened(self._engine, twin, folder / "twin", **limits) as runner:
                await runner.apply_template(conversation)
        except ChildDied as death:
            reason = excess(death, **limits) or f"ends the engine ({death.cause})"
            message = f"{self._placement.name} died: the model's chat template {reason} with this conversation"
            raise EngineError(message, status=500, cause=f"the chat template {reason}") from error
        except RunError:  # it refuses the conversation, and lives; or the twin does not start
            return
