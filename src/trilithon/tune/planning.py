"""A tune's result as the plan of its model, with which `trilithon serve` runs it."""

from trilithon.board.snapshot import read_board
from trilithon.engines.base import Placement
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.placing import has_to_be_named
from trilithon.results.fingerprints import fingerprint_of
from trilithon.results.plans import Plan, keep_plan, read_plan
from trilithon.results.tuned.steps import end_sentence
from trilithon.settings import Configuration
from trilithon.tune.session import TuneOutcome

__all__ = ["plan_outcome"]


def plan_outcome(outcome: TuneOutcome, model: str, workload: str, configuration: Configuration) -> str:
    """Keeps it, and says so in a line; a plan that was set by hand stays. Raises StoreError."""
    best: Placement = outcome.best
    if has_to_be_named(parse_placement(best.name), configuration):
        return f"no plan is made for {best.name}: its engine or device is used only where it is named"
    board = read_board()
    old = read_plan(configuration.data, best.file.sha256, board.identity())
    if old is not None and old.by_hand:
        return f"trilithon serve still runs it on {old.placement}, set by hand"
    keep_plan(
        configuration.data,
        Plan(
            sha256=best.file.sha256,
            placement=best.name,
            board=board.identity(),
            campaign=outcome.campaign,
            sentence=end_sentence(outcome.end),
            model=model,
            decided_by=workload,
            rounds=outcome.conclusion.rounds if outcome.conclusion is not None else 0,
            compared=outcome.conclusion is not None,
            fingerprint=fingerprint_of(best.name, board, configuration),
        ),
    )
    return f"trilithon serve now runs it on {best.name}"
