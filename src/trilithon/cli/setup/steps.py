"""What `trilithon setup` offers on a machine: each step is a command of this program, and one that takes it back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from trilithon.board.chips import Chip, find_chip
from trilithon.board.snapshot import Board
from trilithon.engines.build_findings import build_findings
from trilithon.engines.install.sources import source_of
from trilithon.engines.llamacpp.source import LLAMA_CPP
from trilithon.engines.registry import registered
from trilithon.engines.table import engines
from trilithon.errors import ModelError, UserError
from trilithon.estimate.recommend import RecommendedModel, recommended
from trilithon.language import Message
from trilithon.models.fetch.demo import DEMO
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import makes_text, model_name
from trilithon.settings import Configuration
from trilithon.units import format_bytes

__all__ = ["STEP_NAMES", "SetupStep", "chat_models", "offered_steps", "remaining_undo"]

STEP_NAMES = ("runtime", "model", "build", "service")
"""In the order of the questions."""

_LEAST_TOKENS_PER_SECOND = 5.0  # the default of `trilithon recommend`
_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class SetupStep:
    """`undo` takes back what `command` did; both are words after `trilithon`. A `background` command goes on after the
    setup has ended."""

    name: str
    question: Message
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
    question = Message(
        "Fetch {title} {version}, for models on the NPU ({address})?\n  licence: {licence}, {licence_url}",
        title=source.title,
        version=source.version,
        address=source.address,
        licence=source.licence,
        licence_url=source.licence_url,
    )
    name = source.build_name
    return SetupStep(
        "runtime", question, ("engines", "install", source.engine, "--yes"), ("engines", "remove", "--delete", name)
    )


def _model(board: Board, configuration: Configuration, model: str | None) -> SetupStep | None:
    if chat_models(configuration):
        return None
    if model is not None:
        return SetupStep("model", Message("Fetch the model {model}?", model=model), ("pull", model), ("rm", model))
    chosen, memory = _first_model(board), board.memory_available_bytes or 0
    name, size = chosen.candidate.pull, format_bytes(chosen.estimate.memory.weights)
    low, high = chosen.estimate.decode.within_80
    question = Message(
        "Fetch the model {name}, about {size}? {free} of memory are free.\n"
        "  estimated: decode {low:.4g} to {high:.4g} tokens/s, {needed} in use\n  licence: {licence}",
        name=name,
        size=size,
        free=format_bytes(memory),
        low=float(f"{low:.2g}"),
        high=float(f"{high:.2g}"),
        needed=format_bytes(chosen.estimate.memory.needed),
        licence=chosen.candidate.licence,
    )
    return SetupStep("model", question, ("pull", name), ("rm", name))


def chat_models(configuration: Configuration) -> list[str]:
    """Names of the models that are here to talk to: the installation's demo model completes text, synthetic models have
    random weights, and embedding models and rerankers make no text."""
    with ModelStore.open(configuration) as store:
        names = [str(stored.name) for stored in store.list() if stored.name != DEMO and not stored.synthetic]
        return [name for name in names if _makes_text(name, store)]


def _makes_text(name: str, store: ModelStore) -> bool:
    try:
        return makes_text(name, store)
    except ModelError:  # damaged: the command that opens it says so
        return False


def _first_model(board: Board) -> RecommendedModel:
    """The best that fits into the free memory and is fast enough; where none is, the smallest."""
    chip = find_chip(board.chip) or Chip(name="this machine", compatible="", npu_cores=0)
    models = partial(recommended, chip, task="chat", context=_CONTEXT, shift={})
    if suitable := models(room=board.memory_available_bytes or 0, least=_LEAST_TOKENS_PER_SECOND):
        return suitable[0]
    return min(models(room=None, least=0), key=lambda model: model.estimate.memory.total)


def _build(configuration: Configuration) -> SetupStep | None:
    name = f"{LLAMA_CPP.prefix}-{LLAMA_CPP.version}"
    if not build_findings(configuration) or any(entry.name == name for entry in registered(configuration)):
        return None
    question = Message("Compile llama.cpp for this CPU, in the background? It takes 10 minutes or more.")
    return SetupStep("build", question, ("engines", "build"), ("engines", "remove", "--delete", name), background=True)


def _service() -> SetupStep | None:
    from trilithon.cli.service.systemd import installed_scope, require_systemd

    try:
        require_systemd("user")
    except UserError:
        return None
    try:
        installed_scope(None)
    except UserError:
        question = Message("Run the server from boot on, on this machine's address alone (127.0.0.1)?")
        return SetupStep("service", question, ("service", "install", "--user"), ("service", "uninstall", "--user"))
    return None


def remaining_undo(name: str, undo: Sequence[str], configuration: Configuration) -> list[str]:
    """The words of `undo` for what the step `name` has left; none where there is nothing of it."""
    if name == "model":
        with ModelStore.open(configuration) as store:
            models = [word for word in undo[1:] if _is_stored(word, store)]
        return [undo[0], *models] if models else []
    if name == "service":
        from trilithon.cli.service.systemd import unit_paths

        there = any(path.exists() for path in unit_paths("user"))
    else:
        there = any(entry.name == undo[-1] for entry in registered(configuration))
    return [*undo] if there else []


def _is_stored(word: str, store: ModelStore) -> bool:
    try:
        return store.is_local(model_name(word))
    except ModelError:  # an address, of which nothing has been received
        return False
