"""Which of a repository's files this board wants: by its chip, its memory, and the engines that are installed."""

from pathlib import Path

from trilithon.board.chips import platform_of
from trilithon.board.snapshot import Board
from trilithon.engines import table
from trilithon.engines.base import ModelFile, Settings
from trilithon.models.fetch.choose import Target
from trilithon.models.names import Reference, Repository
from trilithon.settings import Configuration

__all__ = ["wanted"]


def wanted(reference: Reference, board: Board, configuration: Configuration, chip: str | None = None) -> Target:
    """For this board, or for another `chip`: how much memory that one's board has is not known."""
    choice = reference.choice if isinstance(reference, Repository) else ""
    if chip is None or platform_of(chip) == platform_of(board.chip):
        return Target(
            chip=board.chip,
            memory_bytes=board.memory_bytes,
            npu_gguf=isinstance(reference, Repository) and board.npu is not None and _npu_takes_gguf(configuration),
            quantization=choice,
        )
    return Target(chip=chip, quantization=choice, chip_by_name=True)


def _npu_takes_gguf(configuration: Configuration) -> bool:
    """Whether something is installed here that computes a GGUF in 8 bits on the NPU."""
    file = ModelFile(
        path=Path("model.gguf"), format="gguf", name="", architecture="", quantization="Q8_0", size_bytes=0, sha256=""
    )
    for engine in table.engines(configuration):
        if engine.only_when_named:
            continue
        for build in engine.builds():
            if "npu" in build.units and not engine.refusal(file, build, "npu", Settings()):
                return True
    return False
