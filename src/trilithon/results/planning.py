"""From a campaign to plans: what is recommended becomes the plan, unless the plan that there is has better grounds."""

import shlex
from collections.abc import Callable

from trilithon.board.snapshot import Board
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.placing import has_to_be_named, refuse_server
from trilithon.errors import PlacementError
from trilithon.measure.records import Campaign, PlacementRecord
from trilithon.results.fingerprints import fingerprint_of, stale_facts
from trilithon.results.plans import Plan, change_plan, read_plan
from trilithon.results.verdict import DECIDES, recommended, unplanned, verdict_sentence
from trilithon.settings import Configuration

__all__ = ["plan_campaign"]


def plan_campaign(
    campaign: Campaign, name_of: Callable[[PlacementRecord], str], board: Board, configuration: Configuration
) -> list[str]:
    """Keep, replace or remove the plans of the files that were measured; a line for the user on each.

    A plan is the reference or "same" as it, and of no engine or device that is used only where the user names it.
    `name_of` gives what `trilithon plan` takes for the placement's file. Raises StoreError."""
    lines, planned = [], set()
    for recommendation in recommended(campaign):
        record = recommendation.placement
        sha256, name = str(record.model.get("sha256", "")), shlex.quote(name_of(record))
        objection = _objection(record, configuration)
        if objection or not sha256:
            lines.append(_no_plan(record, name, objection or "its file has no SHA-256"))
            continue
        new = Plan(
            sha256=sha256,
            placement=record.spec,
            board=board.identity(),
            campaign=campaign.id,
            sentence=verdict_sentence(campaign),
            model=name_of(record),
            decided_by=recommendation.decided_by,
            rounds=recommendation.rounds,
            compared=recommendation.compared,
            fingerprint=fingerprint_of(record.spec, board, configuration),
        )
        decision = _Decision(campaign, name, board, configuration, new)
        change_plan(configuration.data, sha256, new.board, decision)
        lines.append(decision.line)
        planned.add(sha256)
    lines += [_no_plan(record, shlex.quote(name_of(record)), reason) for record, reason in unplanned(campaign)]
    for sha256, record in {str(record.model.get("sha256", "")): record for record in campaign.placements}.items():
        if sha256 not in planned and read_plan(configuration.data, sha256, board.identity()):
            decision = _Decision(campaign, shlex.quote(name_of(record)), board, configuration)
            change_plan(configuration.data, sha256, board.identity(), decision)
            lines += filter(None, [decision.line])
    return lines


class _Decision:
    """Between the plan that there is and `new`, the campaign's, which is None where it recommends nothing. `line` tells
    of it; empty where nothing changes and there is nothing to tell."""

    def __init__(
        self, campaign: Campaign, name: str, board: Board, configuration: Configuration, new: Plan | None = None
    ):
        self._campaign, self._name, self._board, self._configuration = campaign, name, board, configuration
        self._new = new
        self.line = ""

    def __call__(self, old: Plan | None) -> Plan | None:
        refuted = "" if old is None else self._refuted(old)
        new = self._new
        if new is None:
            return self._without(old, refuted)
        if old is None or old.placement == new.placement or (refuted and not old.by_hand):
            self.line = self._now(new, old)
            return old if old is not None and old.placement == new.placement and self._weaker(new, old) else new
        reason = self._weaker(new, old)
        if not reason:
            self.line = self._now(new, old)
            return new
        self.line = (
            f"trilithon serve still runs it on {old.placement}: {reason}{f', although {refuted}' * bool(refuted)}; "
            f"to run it on {new.placement} instead: {self._set(new.placement)}"
        )
        return old

    def _without(self, old: Plan | None, refuted: str) -> Plan | None:
        if old is None or not refuted:
            return old
        if old.by_hand:
            self.line = f"trilithon serve runs it on {old.placement}, set by hand, although {refuted}; {self._undo()}"
            return old
        self.line = f"trilithon serve no longer runs it on {old.placement}: {refuted}"
        return None

    def _refuted(self, old: Plan) -> str:
        """What this campaign knows against the plan; empty for nothing."""
        for record in self._campaign.placements:
            if (record.spec, record.model.get("sha256")) == (old.placement, old.sha256) and record.quality:
                verdict = record.quality.verdict
                return f"its answers are {verdict}" if verdict in ("degraded", "broken") else ""
        return ""

    def _weaker(self, new: Plan, old: Plan) -> str:
        """Why the campaign's grounds are worse than the plan's; empty where they are not. A plan of version 0.1 does
        not tell its grounds, and is taken for one that compared placements."""
        if old.by_hand:
            return "that was set by hand"
        if not new.compared and (old.compared or not old.rounds):
            return f"this campaign has too few rounds to compare placements, unlike {old.origin}"
        if stale_facts(old, self._board, self._configuration):
            return ""
        if new.rounds < old.rounds:
            return f"{old.origin} has more than this one's {new.rounds}"
        if _rank(new.decided_by) > _rank(old.decided_by):
            return f"{old.origin} measured {old.decided_by}, which says more than {new.decided_by}"
        return ""

    def _now(self, new: Plan, old: Plan | None) -> str:
        before = "" if old is None or old.placement == new.placement else old.placement
        no_longer = f", no longer on {before}" * bool(before)
        back = f", or back to that: {self._set(before)}" if before else ""
        return f"trilithon serve now runs it on {new.placement}{no_longer} ({self._undo()}{back})"

    def _undo(self) -> str:
        return f"undo: trilithon plan rm {self._name}"

    def _set(self, placement: str) -> str:
        return f"trilithon plan set {self._name} {shlex.quote(placement)}"


def _rank(test: str) -> int:
    return DECIDES.index(test) if test in DECIDES else len(DECIDES)


def _objection(record: PlacementRecord, configuration: Configuration) -> str:
    """Why a placement that is recommended is not planned here; empty where it is."""
    try:
        refuse_server(parse_placement(record.spec))
        named = has_to_be_named(parse_placement(record.spec), configuration)
    except PlacementError as error:
        return f"it cannot run here any more ({error})"
    return "it computes on a device that is used only where it is named" if named else ""


def _no_plan(record: PlacementRecord, name: str, reason: str) -> str:
    if record.unit == "server":
        return f"no plan is made for {record.name}: a server is measured, and not served from"
    return (
        f"no plan is made for {record.spec}: {reason}; to serve it there all the same: "
        f"trilithon plan set {name} {shlex.quote(record.spec)}"
    )
