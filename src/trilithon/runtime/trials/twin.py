"""The twin of a placement: the same engine with a tiny model that has the same chat template, in a child with limits.

With it is tried out what a model's author, or a client, makes an engine execute."""

import contextlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from trilithon.engines.base import Engine, Placement, Settings
from trilithon.errors import EngineTimeout, PlacementError, RunError
from trilithon.models.files.gguf_parts import read_header
from trilithon.models.files.model_file import read_model_file
from trilithon.models.synthetic.twin import write_twin
from trilithon.runtime.memory_need import stack_bytes
from trilithon.runtime.runner import Runner
from trilithon.units import format_bytes

__all__ = ["MEMORY_BYTES", "TEMPLATE_KEY", "excess", "opened", "templates_of", "twin_of"]

MEMORY_BYTES = (512 << 20) + stack_bytes()
# The CPU time is what counts: this bounds a wait for a machine that others keep busy.
_SECONDS = 300.0
_CONTEXT = 2048  # tokens

TEMPLATE_KEY = "tokenizer.chat_template"
_KEYS = (TEMPLATE_KEY, "tokenizer.chat_template.tool_use")


def templates_of(placement: Placement) -> dict[str, str]:
    """The templates that the engine would execute, by GGUF key. Raises ModelError."""
    if form := placement.file.prompt_form:
        return {TEMPLATE_KEY: form.template}
    values = read_header(placement.file.path).values
    return {key: text for key in _KEYS if isinstance(text := values.get(key), str) and text.strip()}


def twin_of(engine: Engine, placement: Placement, path: Path, templates: Mapping[str, str]) -> Placement | None:
    """The placement of a twin with these templates, on the CPU where the engine can; None if it executes none."""
    file = read_model_file(write_twin(path, templates), None)
    settings = Settings(threads=1, context=_CONTEXT)
    for unit, options in (("cpu", ()), (placement.unit, placement.settings.options)):
        twin = replace(placement, file=file, unit=unit, settings=replace(settings, options=options), prefill=None)
        with contextlib.suppress(PlacementError):
            return twin if engine.launch(twin, path.parent).runs_template else None
    return None


def opened(
    engine: Engine, twin: Placement, folder: Path, *, memory_bytes: int, cpu_seconds: int
) -> AbstractAsyncContextManager[Runner]:
    """A runner of the twin within these limits. Raises RunError, of which `excess` says the reason."""
    return Runner.open(
        engine,
        twin,
        folder,
        start_seconds=_SECONDS,
        hang_seconds=_SECONDS,
        memory_bytes=memory_bytes,
        cpu_seconds=cpu_seconds,
    )


def excess(error: RunError, *, memory_bytes: int, cpu_seconds: int) -> str:
    """Which limit a twin exceeded, as the end of a sentence; empty where it failed for another reason."""
    # A twin is on the CPU where its engine can: its memory is what this process may have.
    if error.cause.startswith(("needs more than", "out of memory")) or "bad_alloc" in str(error):
        return f"needs more than {format_bytes(memory_bytes)} of memory"
    if "SIGXCPU" in error.cause or isinstance(error, EngineTimeout) or error.cause == "not ready in time":
        return f"takes more than {cpu_seconds} s of CPU time"
    if "SIGSEGV" in error.cause:
        return "calls itself without end"
    return ""
