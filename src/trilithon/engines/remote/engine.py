"""The engine "http": a server that Trilithon did not start, measured through its API.

It has no builds, and is in no list of engines: a placement that begins with http:// or https:// means it."""

from pathlib import Path

from trilithon.engines.base import Build, FallbackStep, Launch, Placement, Settings, Unit
from trilithon.errors import PlacementError
from trilithon.language import Message
from trilithon.models.files.model_file import ModelFile
from trilithon.settings import Configuration

__all__ = ["HttpServer"]

_NOT_STARTED = Message(
    "a server at an address is measured, and is not started by Trilithon; name an engine of this machine"
)


class HttpServer:
    name = "http"
    only_when_named = True

    def __init__(self, _: Configuration | None = None) -> None:
        """Engines are constructed with the configuration; this one does not use it."""

    def builds(self) -> list[Build]:
        return []

    def missing(self) -> str:
        return _NOT_STARTED

    def problems(self) -> tuple[str, ...]:
        return ()

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        return _NOT_STARTED

    def launch(self, placement: Placement, folder: Path) -> Launch:
        raise PlacementError("placement {text}: {names}", text=placement.name, names=_NOT_STARTED)

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        return ()

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        return ()
