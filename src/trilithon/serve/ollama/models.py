"""Ollama's API for what there is: list, show, running models, copies and removals."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from trilithon.engines.base import Placement
from trilithon.errors import ModelError
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.gguf_header import HeaderReader
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import model_name
from trilithon.runtime.pool.pool import Loaded
from trilithon.serve.catalog.catalog import Catalog, CatalogEntry
from trilithon.serve.http.dialects import service_of
from trilithon.serve.http.json_bodies import JsonRoute
from trilithon.serve.ollama import library
from trilithon.serve.ollama.about import (
    ModelDescription,
    about,
    capabilities,
    details,
    expires_at,
    license_text,
    model_info,
    modelfile_text,
    parameters_text,
    plain_values,
    rfc3339,
    template_text,
)
from trilithon.serve.ollama.bodies import ERRORS, CopyBody, NamedBody, ShowBody
from trilithon.serve.ollama.convert import not_found
from trilithon.serve.removal import remove
from trilithon.serve.service import Service
from trilithon.serve.validation import wrong

__all__ = ["router"]

T = TypeVar("T")

router = APIRouter(tags=["Ollama"], route_class=JsonRoute)
router.include_router(library.router)


@router.get("/api/tags", responses=ERRORS)
@router.head("/api/tags", include_in_schema=False)
async def tags(request: Request) -> dict[str, Any]:
    service = service_of(request)
    return {"models": await _with_store(service, lambda store: _rows(service.shelf.listed(), store))}


@router.get("/api/ps", responses=ERRORS)
async def ps(request: Request) -> dict[str, Any]:
    """Loaded models, with the placement that each one runs on."""
    service = service_of(request)
    loaded = service.pool.loaded()
    return {"models": await _with_store(service, lambda store: _running(loaded, service.shelf, store))}


@router.post("/api/show", responses=ERRORS)
async def show(request: Request, body: ShowBody) -> dict[str, Any]:
    service = service_of(request)
    entry = await _entry(service, body.model)
    return await _with_store(service, lambda store: _shown(entry, store, verbose=bool(body.verbose)))


@router.post("/api/copy", response_class=Response, responses=ERRORS)
async def copy(request: Request, body: CopyBody) -> Response:
    """The same files under another name, in place of what had it."""
    service = service_of(request)
    for field, name in (("source", body.source), ("destination", body.destination)):
        _require_name(name, field)
    entry, target = await _entry(service, body.source), model_name(body.destination)
    kept = await _with_store(service, lambda store: store.put(replace(entry.manifest, name=target)))
    service.pool.keep(str(kept.name), 0)  # what had the name goes as soon as nobody works with it
    return Response()


@router.delete("/api/delete", response_class=Response, responses=ERRORS)
async def delete(request: Request, body: NamedBody) -> Response:
    """A name of the store, and the files that no other name uses. Another program's models stay."""
    service = service_of(request)
    entry = await _entry(service, body.model, service.shelf.find_named)  # never what an alias means
    await remove(service, entry)
    return Response()


async def _with_store(service: Service, work: Callable[[ModelStore], T]) -> T:
    """In a thread: disks are slow."""

    def opened() -> T:
        with ModelStore.open(service.shelf.configuration) as store:
            return work(store)

    return await asyncio.to_thread(opened)


async def _entry(service: Service, name: str, find: Callable[[str], CatalogEntry] | None = None) -> CatalogEntry:
    """Raises Problem, in Ollama's words, where there is none of that name."""
    if not name:
        raise wrong("model", "model is required")
    try:
        return await asyncio.to_thread(find or service.shelf.find, name)
    except ModelError as error:
        raise not_found(name) from error


def _require_name(name: str, field: str) -> None:
    try:
        model_name(name)
    except ModelError as error:
        raise wrong(field, f"{field} {name[:80]!r} is invalid") from error


def _about(entry: CatalogEntry, store: ModelStore) -> ModelDescription | None:
    """None where the file cannot be read: a list of models must not end at one that is broken."""
    try:
        return about(entry.manifest, store)
    except ModelError:
        return None


def _row(entry: CatalogEntry, store: ModelStore) -> dict[str, Any]:
    known = _about(entry, store)
    return {
        "name": entry.name,
        "model": entry.name,
        "modified_at": rfc3339(entry.modified),
        "size": entry.size_bytes,
        "digest": entry.digest,
        "details": details(entry.manifest, known),
        "capabilities": capabilities(known) if known else [],
    }


def _rows(entries: tuple[CatalogEntry, ...], store: ModelStore) -> list[dict[str, Any]]:
    """The newest first, as Ollama lists them."""
    rows = [_row(entry, store) for entry in entries]
    return sorted(rows, key=lambda row: datetime.fromisoformat(row["modified_at"]), reverse=True)


def _running(loaded: tuple[Loaded, ...], shelf: Catalog, store: ModelStore) -> list[dict[str, Any]]:
    """A model that was removed while it is loaded is not named any more."""
    now = datetime.now(UTC)
    by_name = {entry.name: entry for entry in shelf.models()}
    running: dict[str, dict[str, Any]] = {}
    for model in sorted(loaded, key=lambda model: model.key):  # what answers before what makes vectors
        entry = by_name.get(model.key) or by_name.get(model.key.partition(" (")[0])
        if entry is None or model.state == "leaving":
            continue
        row = _running_row(model, entry, store, now) | _plan_of(model.placement, entry, shelf)
        running[entry.name] = _together(running[entry.name], row) if entry.name in running else row
    return list(running.values())


def _together(row: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A model that is loaded twice, for text and for vectors, or on two placements: clients know it by its name."""
    sums = ("size", "size_vram", "requests", "waiting")
    also = {name: other[name] for name in ("placement", "size", "context_length", "state")}
    return (
        row
        | {name: row[name] + other[name] for name in sums}
        | {
            "expires_at": max(row["expires_at"], other["expires_at"]),
            "pinned": row["pinned"] or other["pinned"],
            "also_loaded": [*row.get("also_loaded", ()), also],
        }
    )


def _plan_of(placement: Placement, entry: CatalogEntry, shelf: Catalog) -> dict[str, Any]:
    """Of a model that runs on its plan: where that comes from, and what makes it stale."""
    known = shelf.known_plan(entry, placement.file)
    if known is None or known.plan.placement != placement.name:
        return {}
    stale = [str(fact) for fact in known.stale]
    return {"plan": {"from": known.plan.origin, "stale": stale, "renewal": known.renewal}}


def _running_row(loaded: Loaded, entry: CatalogEntry, store: ModelStore, now: datetime) -> dict[str, Any]:
    row, placement = _row(entry, store), loaded.placement
    prefill = placement.prefill or placement
    return (
        {name: row[name] for name in ("name", "model", "digest", "details")}
        | {
            "size": loaded.size_bytes,
            "size_vram": loaded.size_bytes if placement.unit != "cpu" else 0,
            "expires_at": expires_at(loaded.expires_in_seconds, now),
            "context_length": placement.settings.context or 0,
            "placement": placement.name,
            "engine": placement.build.engine,
            "build": placement.build.name,
            "prefill_unit": prefill.unit,
            "decode_unit": placement.unit,
            "state": loaded.state,
            "pinned": loaded.pinned,
            "requests": loaded.users,
            "waiting": loaded.waiting,
        }
        | ({"handover": asdict(loaded.handover)} if loaded.handover else {})
    )


def _shown(entry: CatalogEntry, store: ModelStore, *, verbose: bool) -> dict[str, Any]:
    manifest, known = entry.manifest, about(entry.manifest, store)
    fields: dict[str, Any] = {
        "license": license_text(manifest, store),
        "modelfile": modelfile_text(manifest),
        "parameters": parameters_text(manifest),
        "template": template_text(manifest, known, store),
        "system": manifest.system,
        "details": details(manifest, known),
        "messages": [{"role": message.role, "content": message.content} for message in manifest.messages],
        "model_info": model_info(known, verbose=verbose),
        "capabilities": capabilities(known),
        "kind": known.file.kind,
        "modified_at": rfc3339(entry.modified),
    }
    encoder = known.file.vision_encoder
    if encoder is not None and encoder.suffix.lower() == ".gguf":
        with HeaderReader(encoder) as header:
            fields["projector_info"] = plain_values(header.values(), verbose=verbose)
    if verbose and known.file.format == "gguf":
        tensors = read_gguf(known.file.path).tensors
        fields["tensors"] = [
            {"name": tensor.name, "type": tensor.type, "shape": list(tensor.shape)} for tensor in tensors
        ]
    return {name: value for name, value in fields.items() if value or name not in ("license", "system", "messages")}
