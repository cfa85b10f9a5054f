"""Results as files. These routes are the server's own, so that the door asks for a key as it does for the API."""

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from typing import Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from trilithon.errors import UserError
from trilithon.web.context import AppContext
from trilithon.web.results.listing import read_wanted
from trilithon.web.results.query import Query
from trilithon.web.results.service import results_service_of
from trilithon.web.texts import language_of

__all__ = ["FORMS", "campaign_path", "chart_path", "export_path", "report_path", "router_of"]

FORMS: Mapping[str, tuple[str, str]] = {
    "figures": ("csv", "text/csv"),
    "md": ("md", "text/markdown"),
    "csv": ("csv", "text/csv"),
    "json": ("json", "application/json"),
    "jsonl": ("jsonl", "application/x-ndjson"),
    "sql": ("sql", "application/sql"),
    "trilithon": ("json", "application/json"),
}
"""Suffix and content type of each form: medians with intervals, llama-bench's five, and our own with everything."""

_PICTURES = {"png": "image/png", "svg": "image/svg+xml"}
_PREFIX = "/results"


def export_path(form: str, query: Query) -> str:
    return f"{_PREFIX}/export?form={form}" + (f"&{query.address()}" if query.address() else "")


def campaign_path(form: str, campaign: int) -> str:
    return f"{_PREFIX}/export?" + urlencode({"form": form, "campaign": campaign})


def chart_path(campaign: int, name: str, form: Literal["png", "svg"], language: str) -> str:
    return f"{_PREFIX}/{campaign}/charts/{quote(name)}.{form}?{urlencode({'language': language})}"


def report_path(campaign: int, language: str) -> str:
    return f"{_PREFIX}/{campaign}/report.html?{urlencode({'language': language})}"


def router_of(context: AppContext) -> APIRouter:
    """Its lifespan ends with the bench stopped and the calculator gone."""
    results_service = results_service_of(context)
    calculator = results_service.calculator

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await results_service.close()

    router = APIRouter(prefix=_PREFIX, include_in_schema=False, lifespan=lifespan)

    @router.get("/export")
    async def export(request: Request, form: str = "trilithon", campaign: int | None = None) -> Response:
        if form not in FORMS:
            raise UserError(f"there is no format {form[:40]}; choose {', '.join(FORMS)}")
        wanted: Mapping[int, list[str] | None] = {} if campaign is None else {campaign: None}
        if campaign is None:
            wanted = await asyncio.to_thread(read_wanted, context.store, Query.read(request.query_params))
        answer = await calculator.ask("export", {str(number): names for number, names in wanted.items()}, form)
        suffix, kind = FORMS[form]
        name = "results" if campaign is None else f"campaign-{campaign}"
        return _file(answer["text"].encode(), kind, f"trilithon-{name}-{form}.{suffix}")

    @router.get("/{campaign}/report.html")
    async def report(request: Request, campaign: int, language: str = "") -> HTMLResponse:
        language = language_of(language, request.headers.get("accept-language", ""))
        return HTMLResponse((await calculator.ask("report", campaign, language))["text"])

    @router.get("/{campaign}/charts/{name}.{form}")
    async def chart(
        request: Request, campaign: int, name: str, form: Literal["png", "svg"], language: str = ""
    ) -> Response:
        language = language_of(language, request.headers.get("accept-language", ""))
        answer = await calculator.ask("picture", campaign, name, form, language)
        safe = re.sub(r"[^a-z0-9-]+", "-", name)
        return _file(base64.b64decode(answer["data"]), _PICTURES[form], f"campaign-{campaign}-{safe}.{form}")

    return router


def _file(content: bytes, kind: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=kind, headers=headers)
