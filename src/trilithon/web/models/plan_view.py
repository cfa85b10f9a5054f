"""A model's plan in its details: the placement, where it comes from, what has changed since, and its removal."""

import asyncio
import re
from collections.abc import Awaitable, Callable

from trilithon.errors import TrilithonError
from trilithon.results.fingerprints import StaleFact
from trilithon.results.plan_list import KnownPlan
from trilithon.results.plans import Plan
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.http.errors import api_error_of
from trilithon.web.elements import box, words
from trilithon.web.models.elements import button
from trilithon.web.models.library import ModelListRow
from trilithon.web.quantities import quantity
from trilithon.web.texts import Texts

__all__ = ["PlanView", "changes_text", "origin_text"]

_QUANTITY = re.compile(r"\b\d+(\.\d+)? (GiB|MHz)\b")


class PlanView:
    """`removed` is awaited once the plan is gone."""

    def __init__(
        self, known: KnownPlan, row: ModelListRow, shelf: Catalog, text: Texts, removed: Callable[[], Awaitable[None]]
    ):
        self._row, self._shelf, self._text, self._removed = row, shelf, text, removed
        words("h3", text("models.plan.title"))
        with box(classes="plan") as self._box:
            with box("p"):
                words("code", known.plan.placement)
                words("span", f" · {origin_text(known.plan, text)}")
            if known.stale:
                words("p", text("models.plan.stale", changes=changes_text(known.stale, text)), "warning")
                with box("p"):
                    words("span", text("models.plan.renew"))
                    words("code", f" {known.renewal}").props('lang="en"')
            label = text("models.plan.remove_of", name=row.name)
            button(text("models.plan.remove"), label, self._remove, icon="delete")
        self._told = words("p").props('role="status"')

    async def _remove(self) -> None:
        try:
            await asyncio.to_thread(self._shelf.remove_plan, self._row.entry)
        except TrilithonError as error:
            self._told.set_text(str(api_error_of(error)))
            return
        if not self._box.is_deleted:
            self._box.set_visibility(False)
            self._told.set_text(self._text("models.plan.removed"))
        await self._removed()


def origin_text(plan: Plan, text: Texts) -> str:
    if plan.by_hand:
        return text("models.plan.by_hand")
    if not plan.rounds:
        return text("models.plan.campaign", number=plan.campaign)
    return text("models.plan.campaign_rounds", number=plan.campaign, rounds=plan.rounds)


def changes_text(stale: tuple[StaleFact, ...], text: Texts) -> str:
    """ "kernel: 6.1.43 → 6.1.75"."""

    def value(written: str) -> str:
        return _QUANTITY.sub(lambda match: quantity(match[0], text), written)

    return ", ".join(text(_key(fact), before=value(fact.before), after=value(fact.after)) for fact in stale)


def _key(fact: StaleFact) -> str:
    return f"models.plan.fact_{fact.fact.lower().replace(' ', '_')}"
