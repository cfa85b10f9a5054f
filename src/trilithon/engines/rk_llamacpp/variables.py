"""What `tune` may change about rk-llama.cpp: what the NPU computes with, its cores, and the CPUs beside it."""

from trilithon.board.chips import find_chip
from trilithon.board.snapshot import Board
from trilithon.engines.base import Placement
from trilithon.engines.rk_llamacpp.backend import facts
from trilithon.engines.variables import Variable, cpu_masks, variable

__all__ = ["npu_variables"]


def npu_variables(placement: Placement, board: Board, device: str) -> tuple[Variable, ...]:
    """Pipelines compute in other numbers, so each is compared with the default first. `device` is RKNPU_DEVICE."""
    if not device or placement.unit != "npu":
        return ()
    known = facts()["devices"][device]["pipelines"]
    others = [name for name in known if name != facts()["default_pipeline"] and name != "CPU_STANDARD"]
    variables = [variable("pipeline", 0.3, *({"pipeline": name} for name in others), lossy=True)]
    chip = find_chip(board.chip)
    cores = chip.npu_cores if chip is not None else 1
    if cores > 1:
        variables.append(
            variable("NPU cores", 0.2, *({"cores": "+".join(map(str, range(n)))} for n in range(1, cores)))
        )
    masks = ({"mask": mask, "t": str(count)} for mask, count in cpu_masks(board))
    return (
        *variables,
        variable("CPUs and threads", 0.3, *masks),
        variable("micro-batch", 0.1, {"ub": "256"}, {"ub": "1024"}),
    )
