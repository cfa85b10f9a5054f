"""GET /api/plans: what a gateway in front of several boards has to know of this one to give it its share."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from trilithon import __version__
from trilithon.errors import ModelError, StoreError
from trilithon.results.speeds import last_speeds
from trilithon.serve.catalog.catalog import CatalogEntry
from trilithon.serve.http.dialects import service_of
from trilithon.serve.http.openapi import ERRORS
from trilithon.serve.service import Service

__all__ = ["router"]

router = APIRouter(tags=["Trilithon"])


@router.get("/api/plans", responses=ERRORS)
async def plans(request: Request) -> dict[str, Any]:
    """The machine, and for each model what runs it, and how fast that was when it was measured here."""
    service = service_of(request)
    loaded = {key.partition(" (")[0] for key in service.pool.placements()}
    models = await asyncio.to_thread(lambda: [_row(service, entry, loaded) for entry in service.shelf.listed()])
    board = service.shelf.board
    machine = {"model": board.model, "chip": board.chip, "memory_bytes": board.memory_bytes}
    return {"version": __version__, "board": machine, "slots": service.shelf.slots, "models": models}


def _row(service: Service, entry: CatalogEntry, loaded: set[str]) -> dict[str, Any]:
    """Rates are in tokens per second, None where they were not measured. `refusal` says why nothing runs it here."""
    shelf = service.shelf
    row: dict[str, Any] = {"name": entry.name, "placement": "", "is_planned": False, "refusal": ""}
    row |= {"tokens_per_second": None, "prefill_tokens_per_second": None}
    row["is_loaded"] = str(entry.manifest.name) in loaded
    try:
        outlook = shelf.outlook(entry)
    except (ModelError, StoreError) as error:  # one file that is broken is not the end of the list
        return row | {"refusal": str(error)}
    try:
        speeds = last_speeds(shelf.configuration.results_database, outlook.file.sha256, outlook.placement, shelf.board)
    except StoreError:  # told by the doctor and the pages; the model answers without it
        speeds = None
    row |= {"placement": outlook.placement, "is_planned": outlook.plan is not None, "refusal": outlook.refusal}
    return row | ({"tokens_per_second": speeds.decode, "prefill_tokens_per_second": speeds.prefill} if speeds else {})
