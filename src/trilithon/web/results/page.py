"""The page of results: the list and the bench, or a closer look, as its address says."""

from nicegui import ui

from trilithon.web.context import AppContext, PageSession
from trilithon.web.elements import at, box, words
from trilithon.web.results.bench_view import BenchView
from trilithon.web.results.campaign_view import show_campaign, show_comparison
from trilithon.web.results.elements import way
from trilithon.web.results.list_view import ResultList
from trilithon.web.results.query import Chosen, Query
from trilithon.web.results.service import results_service_of
from trilithon.web.texts import Texts

__all__ = ["build"]


async def build(context: AppContext, session: PageSession, text: Texts) -> None:
    ui.add_head_html(f'<link rel="stylesheet" href="{at("/_pages/results.css")}">')
    request = ui.context.client.request
    parameters = dict(request.query_params) if request else {}
    calculator = results_service_of(context).calculator
    with box(classes="results-page"):
        if parameters.get("campaign", "").isdecimal():
            show_campaign(calculator, int(parameters["campaign"][:15]), text)
        elif "a" in parameters or "b" in parameters:
            a, b = Chosen.read(parameters.get("a", "")), Chosen.read(parameters.get("b", ""))
            if a is None or b is None:
                words("p", text("results.not_two"), "bad")
                way(text("results.back"), "/results")
            else:
                show_comparison(calculator, a, b, text)
        else:
            await _overview(context, Query.read(parameters), text)


async def _overview(context: AppContext, query: Query, text: Texts) -> None:
    words("h1", text("results.title"))
    words("p", text("results.lead"), "muted")
    bench_place = box(classes="benching")
    listed = ResultList(context.store, query, text)
    with bench_place:
        bench = BenchView(context, text, listed.reload)
    await listed.reload()
    ui.timer(0, bench.fill, once=True)
