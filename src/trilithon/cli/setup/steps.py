"""What `trilithon setup` offers on a machine: each step is a command of this program, and one that takes it back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trilithon.board.chips import find_chip
from trilithon.board.snapshot import Board
from trilithon.engines.build_findings import build_findings
from trilithon.engines.install.sources import source_of
from trilithon.engines.llamacpp.source import LLAMA_CPP
from trilithon.engines.registry import registered
from trilithon.engines.table import engines
from trilithon.errors import UserError
from trilithon.models.store.model_store import ModelStore
from trilithon.settings import Configuration
from trilithon.tables import table_beside
from trilithon.units import format_bytes

__all__ = ["STEP_NAMES", "SetupStep", "offered_steps"]

STEP_NAMES = ("runtime", "model", "build", "service")
"""In the order of the questions."""


@dataclass(frozen=True, slots=True)
class SetupStep:
    """`undo` takes back what `command` did; both are words after `trilithon`. A `background` command goes on after the
    setup has ended."""

    name: str
    question: str
    command: tuple[str, ...]
    undo: tuple[str, ...]
    background: bool = False


def offered_steps(board: Board, configuration: Configuration, model: str | None) -> Iterator[SetupStep]:
    """What this machine lacks. `model` is the user's choice instead of one by memory."""
    makers: tuple[Callable[[], SetupStep | None], ...] = (
        lambda: _runtime(board, configuration),
        lambda: _model(board, configuration, model),
        lambda: _build(configuration),
        _service,
    )
    for make in makers:
        if step := make():
            yield step


def _runtime(board: Board, configuration: Configuration) -> SetupStep | None:
    chip, npu = find_chip(board.chip), board.npu
    source = source_of("rkllm", None, configuration)
    if not (chip and chip.rkllm and npu and npu.driver == "rknpu"):
        return None
    if any(engine.builds() for engine in engines(configuration) if engine.name.startswith(source.engine)):
        return None
    question = (
        f"Fetch {source.title} {source.version}, for models on the NPU ({source.address})?\n"
        f"  licence: {source.licence}, {source.licence_url}"
    )
    name = source.build_name
    return SetupStep(
        "runtime", question, ("engines", "install", source.engine, "--yes"), ("engines", "remove", "--delete", name)
    )


def _model(board: Board, configuration: Configuration, model: str | None) -> SetupStep | None:
    with ModelStore.open(configuration) as store:
        if store.list():
            return None
    if model is not None:
        return SetupStep("model", f"Fetch the model {model}?", ("pull", model), ("rm", model))
    memory = board.memory_available_bytes or 0
    table = table_beside(__file__, "steps.toml")
    fitting = (row for row in table["models"] if row["bytes"] * table["room"] <= memory)
    name, size = next(fitting, table["models"][-1]).values()
    question = f"Fetch the model {name}, about {format_bytes(size)}? {format_bytes(memory)} of memory are free."
    return SetupStep("model", question, ("pull", name), ("rm", name))


def _build(configuration: Configuration) -> SetupStep | None:
    name = f"{LLAMA_CPP.prefix}-{LLAMA_CPP.version}"
    if not build_findings(configuration) or any(entry.name == name for entry in registered(configuration)):
        return None
    question = "Compile llama.cpp for this CPU, in the background? It takes 10 minutes or more."
    return SetupStep("build", question, ("engines", "build"), ("engines", "remove", "--delete", name), background=True)


def _service() -> SetupStep | None:
    from trilithon.cli.service.manager import installed_scope, require_systemd

    try:
        require_systemd("user")
    except UserError:
        return None
    try:
        installed_scope(None)
    except UserError:
        question = "Run the server from boot on, on this machine's address alone (127.0.0.1)?"
        return SetupStep("service", question, ("service", "install", "--user"), ("service", "uninstall", "--user"))
    return None
