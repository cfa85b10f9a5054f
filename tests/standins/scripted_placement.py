"""Placements of the scripted engine, whose model no one reads."""

from pathlib import Path

from trilithon.engines.base import Placement, Settings
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.models.files.model_file import ModelFile


def scripted_placement(
    name: str = "scripted/cpu", settings: Settings | None = None, *, size_bytes: int = 1
) -> Placement:
    """It needs `size_bytes` of memory: the format is one whose caches no one knows."""
    file = ModelFile(
        path=Path("any.rkllm"),
        format="rkllm",
        name="any",
        architecture="none",
        quantization="none",
        size_bytes=size_bytes,
        sha256="",
    )
    build = ScriptedEngine().builds()[0]
    return Placement(name=name, file=file, build=build, unit="cpu", settings=settings or Settings())
