"""An engine in a package of its own: the server of the xllamacpp wheel, here with a micro-batch of 64 only."""

from dataclasses import replace
from pathlib import Path

from trilithon.engines.base import Build, FallbackStep, Launch, ModelFile, Placement, Settings, Unit
from trilithon.engines.llamacpp.argv import embedded_argv
from trilithon.settings import Configuration

__all__ = ["SampleEngine"]

_MICRO_BATCH = 64


class SampleEngine:
    name = "sample"
    only_when_named = False

    def __init__(self, configuration: Configuration):
        pass

    def builds(self) -> list[Build]:
        features = frozenset({"logprobs"})
        return [Build(engine=self.name, name="only", version="5", units=("npu",), features=features, where="package")]

    def missing(self) -> str:
        return ""

    def problems(self) -> tuple[str, ...]:
        return ()

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        return "" if file.format == "gguf" else "sample runs GGUF files"

    def launch(self, placement: Placement, folder: Path) -> Launch:
        slots, socket = folder / "slots", folder / "wire.sock"
        slots.mkdir(exist_ok=True)
        if placement.settings.micro_batch != _MICRO_BATCH:
            command = "echo sample: the micro-batch is too large; kill -SEGV $$"
            return Launch(argv=("/bin/sh", "-c", command), socket=socket)
        return Launch(argv=embedded_argv(placement, socket, slots), socket=socket, exclusive="npu")

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        settings = replace(placement.settings, micro_batch=_MICRO_BATCH)
        return (FallbackStep(name=f"micro-batch {_MICRO_BATCH}", settings=settings),)

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        return ("the sample engine is for tests",)
