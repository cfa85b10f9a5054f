"""Tries out a model's chat template before the model is loaded.

A template is a program of the model's author, which the engine executes while it loads and for every request, without a
limit. Here the same engine runs it first with a tiny model, in a child with limits of memory and CPU time. Results are
remembered by the template's content."""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trilithon.engines.base import Engine, Placement, Settings
from trilithon.errors import EngineError, EngineTimeout, PlacementError, RunError, StartError, UserError
from trilithon.files import read_text, save_text
from trilithon.models.files.gguf_parts import read_header
from trilithon.models.files.model_file import read_model_file
from trilithon.models.files.prompt_form import BASE_TEMPLATE
from trilithon.models.synthetic.twin import write_twin
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration
from trilithon.units import format_bytes

__all__ = ["try_template"]

# A template of a known model takes 10 ms and a megabyte for a conversation; the start of llama.cpp's server in Python
# takes 0.5 s of CPU time on x86-64 and 4 s on a Cortex-A53. Threads have stacks, and there are some for each CPU.
_CPU_SECONDS = 20
_MEMORY_BYTES = (512 << 20) + (16 << 20) * (os.cpu_count() or 1)
# The CPU time is what counts: this bounds a wait for a machine that others keep busy.
_SECONDS = 300.0
_CONTEXT = 2048  # tokens
_TOO_LARGE = f"needs more than {format_bytes(_MEMORY_BYTES)} of memory for a short conversation"

_KEYS = ("tokenizer.chat_template", "tokenizer.chat_template.tool_use")
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
    twin = await asyncio.to_thread(_twin, engine, placement, folder / "plain.gguf", {_KEYS[0]: _PLAIN})
    if twin is None:
        return
    templates = await asyncio.to_thread(_templates, placement)
    if not templates:
        return
    remembered = _remembered(configuration.cache, placement, templates)
    reason = await asyncio.to_thread(_read, remembered)
    if reason is None:
        tried = await asyncio.to_thread(_twin, engine, placement, folder / "twin.gguf", templates)
        reason = await _trouble(engine, tried or twin, folder / "trial")
        if reason and await _trouble(engine, twin, folder / "again"):
            return  # the engine does not even run a good template; its own start will say why
        with contextlib.suppress(UserError):  # a cache that cannot be written: tried again the next time
            await asyncio.to_thread(save_text, remembered, reason)
    if reason:
        raise StartError(
            f"{placement.name} is not started: the model's chat template {reason}",
            cause=f"the chat template {reason}",
            advice="use another conversion of the model, or put a better chat_template.jinja beside its file",
        )


def _templates(placement: Placement) -> dict[str, str]:
    """The templates that the engine would execute, by GGUF key. Raises ModelError."""
    if form := placement.file.prompt_form:
        return {_KEYS[0]: form.template}
    values = read_header(placement.file.path).values
    return {key: text for key in _KEYS if isinstance(text := values.get(key), str) and text.strip()}


def _twin(engine: Engine, placement: Placement, path: Path, templates: Mapping[str, str]) -> Placement | None:
    """The placement of a twin with these templates, on the CPU where the engine can; None if it executes none."""
    file = read_model_file(write_twin(path, templates), None)
    settings = Settings(threads=1, context=_CONTEXT, options=placement.settings.options)
    for unit, options in (("cpu", ()), (placement.unit, placement.settings.options)):
        twin = replace(placement, file=file, unit=unit, settings=replace(settings, options=options), prefill=None)
        with contextlib.suppress(PlacementError):
            return twin if engine.launch(twin, path.parent).runs_template else None
    return None


def _remembered(cache: Path, placement: Placement, templates: Mapping[str, str]) -> Path:
    """The file with the result: an empty one for a good template, else what is wrong with it."""
    build = placement.build
    tried = [build.engine, build.version, build.fingerprint, _CPU_SECONDS, _MEMORY_BYTES, _conversations(), templates]
    return cache / "templates" / hashlib.sha256(json.dumps(tried, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> str | None:
    try:
        return read_text(path)
    except (OSError, ValueError):  # not tried yet, or written by something else
        return None


async def _trouble(engine: Engine, twin: Placement, folder: Path) -> str:
    """What is wrong with the twin's template, as the end of a sentence; empty if nothing is. The template may refuse a
    conversation."""
    try:
        async with Runner.open(
            engine,
            twin,
            folder,
            start_seconds=_SECONDS,
            hang_seconds=_SECONDS,
            memory_bytes=_MEMORY_BYTES,
            cpu_seconds=_CPU_SECONDS,
        ) as runner:
            for conversation in _conversations():
                try:
                    await runner.apply_template(conversation)
                except EngineError as error:
                    if "bad_alloc" in str(error):
                        return _TOO_LARGE
    except RunError as error:
        return _reason(error)
    return ""


def _reason(error: RunError) -> str:
    if error.cause.startswith("needs more than"):
        return _TOO_LARGE
    if "SIGXCPU" in error.cause or isinstance(error, EngineTimeout) or error.cause == "not ready in time":
        return f"takes more than {_CPU_SECONDS} s of CPU time for a short conversation"
    if "SIGSEGV" in error.cause:
        return "calls itself without end"
    return f"cannot be used: {error.cause}"
