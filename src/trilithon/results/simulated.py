"""Which placements were measured on simulated hardware: engines and runtimes that stand in for hardware, GPUs that are
software on the CPU. Their figures never stand as those of real hardware, in no table, chart or export."""

from trilithon.engines.table import simulated_engines
from trilithon.measure.records import Campaign, PlacementRecord

__all__ = ["SIMULATED", "SOFTWARE", "STAND_IN", "simulation"]

SIMULATED = "simulated"
"""The must-match fact that says so; its values are `STAND_IN` and `SOFTWARE`."""
STAND_IN, SOFTWARE = "stand-in", "software renderer"


def simulation(campaign: Campaign, placement: PlacementRecord) -> str:
    """ "stand-in", "software renderer", or "" for real hardware. Results of older versions lack the fact: there the
    engine says so, or an NPU on a machine that has none."""
    kind = placement.must_match.get("model_type", "")  # where an export to llama-bench's formats says it
    marks = [
        word for word in (STAND_IN, SOFTWARE) if placement.must_match.get(SIMULATED) == word or f"({word})" in kind
    ]
    if marks:
        return marks[0]
    engines = {placement.engine, placement.must_match.get("prefill build", "").partition(" ")[0]}
    board = campaign.board
    no_npu = "npu" in board and board["npu"] is None and not board.get("device_tree_hidden")
    on_npu = placement.unit == "npu" or "/npu" in placement.name
    return STAND_IN if engines & simulated_engines() or (on_npu and no_npu) else ""
