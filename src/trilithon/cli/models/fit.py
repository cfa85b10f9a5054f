"""The part of `trilithon show` on this machine: the memory that a model needs, and what can run it or why not."""

from typing import Any

from trilithon.board.snapshot import read_board
from trilithon.cli.output import shown
from trilithon.engines.placing import Suitability, what_runs
from trilithon.language import Message
from trilithon.models.files.memory import memory_by_context
from trilithon.models.files.model_file import ModelFile
from trilithon.settings import Configuration
from trilithon.units import format_bytes

__all__ = ["fit_json", "fit_lines"]


def fit_lines(file: ModelFile, configuration: Configuration) -> list[str]:
    """The memory at several context lengths, and a line for each placement."""
    lines = [shown(Message("memory"))]
    needs = memory_by_context(file)
    if not needs:
        weights = Message("{size} of weights, and the memory for the context", size=format_bytes(file.size_bytes))
        lines.append(f"  {shown(weights)}")
    for context, need in needs.items():
        parts = Message(
            "weights {weights}, KV cache {cache}, work {work}",
            weights=format_bytes(need.weights_bytes),
            cache=format_bytes(need.kv_bytes),
            work=format_bytes(need.compute_bytes),
        )
        tokens = shown(Message("{count:,} token", plural="{count:,} tokens", count=context))
        lines.append(f"  {tokens:>14}  {shown(format_bytes(need.total_bytes)):>10}  {shown(parts)}")
    verdicts = what_runs(file, read_board(), configuration)
    widest = max((len(verdict.placement) for verdict in verdicts), default=0)
    return [*lines, "", shown(Message("runs here")), *(f"  {_line(verdict, widest)}" for verdict in verdicts)]


def fit_json(file: ModelFile, configuration: Configuration) -> dict[str, Any]:
    """The same for `--json`; an empty `refusal` means that the placement can run the model."""
    memory = [
        {
            "context": context,
            "weights_bytes": need.weights_bytes,
            "kv_bytes": need.kv_bytes,
            "compute_bytes": need.compute_bytes,
            "total_bytes": need.total_bytes,
        }
        for context, need in memory_by_context(file).items()
    ]
    verdicts = what_runs(file, read_board(), configuration)
    return {
        "capabilities": sorted(file.capabilities),
        "bytes_per_token": file.bytes_per_token,
        "memory": memory,
        "placements": [{"placement": verdict.placement, "refusal": verdict.refusal} for verdict in verdicts],
    }


def _line(verdict: Suitability, width: int) -> str:
    answer = Message("no: {reason}", reason=verdict.refusal) if verdict.refusal else Message("yes")
    return f"{verdict.placement.ljust(width)}  {shown(answer)}"
