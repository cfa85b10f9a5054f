"""What `tune` may change about llama.cpp on the CPU."""

from trilithon.board.snapshot import Board
from trilithon.engines.base import Placement
from trilithon.engines.variables import Variable, cpu_masks, variable

__all__ = ["cpu_variables"]

_CACHE_DEPTH = 4096
"""Tokens from which on the KV cache's size matters for the time of a step."""


def cpu_variables(placement: Placement, board: Board, depth: int) -> tuple[Variable, ...]:
    """Threads, CPU sets and batches leave every answer as it is; KV types do not."""
    if placement.unit != "cpu":
        return ()
    masks = cpu_masks(board)
    variables = [
        variable("CPUs and threads", 0.4, *({"mask": mask, "t": str(count)} for mask, count in masks if count)),
        variable("threads of a prompt", 0.2, *({"tb": str(count)} for count in dict.fromkeys(n for _, n in masks))),
        variable(
            "micro-batch", 0.1, *({"ub": str(size)} for size in (128, 256, 1024, 2048) if size <= max(depth, 256))
        ),
        variable("flash attention", 0.05, {"fa": "on"}, {"fa": "off"}),
    ]
    if depth >= _CACHE_DEPTH:
        variables.append(variable("KV type", 0.1, {"ctk": "q8_0", "ctv": "q8_0", "fa": "on"}, lossy=True))
    return tuple(variables)
