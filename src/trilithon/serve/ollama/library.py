"""Ollama's API for what changes the library: pull, create, and the blobs that are uploaded for it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from trilithon.errors import Interrupted, ModelError
from trilithon.models.create.from_modelfile import create as make
from trilithon.models.fetch.pull import PullStep
from trilithon.models.names import ModelName, Repository
from trilithon.models.store.manifest import Manifest
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import model_name
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.catalog.pulls import local_name, pullable
from trilithon.serve.http.dialects import service_of
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.json_bodies import JsonRoute
from trilithon.serve.http.keep_alive import NDJSON
from trilithon.serve.ollama.bodies import ERRORS, CreateBody, NamedBody, PullBody
from trilithon.serve.ollama.convert import not_found
from trilithon.serve.ollama.create import modelfile_of, uploaded_files
from trilithon.serve.ollama.progress_stream import ProgressStream, Tell, Work, working
from trilithon.serve.ollama.quantizing import quantized_for
from trilithon.serve.service import Service
from trilithon.serve.validation import wrong

__all__ = ["router"]

_PIECE_BYTES = 4 << 20
_PROGRESS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {NDJSON: {}, "application/json": {}}, "description": "One line per step, or the last one"},
    **ERRORS,
}
_NOWHERE = Path(os.devnull)
"""The folder of a Modelfile that came over the network: no path in it leads to a file of this machine."""
_Digest = Annotated[str, InPath(max_length=80)]

router = APIRouter(tags=["Ollama"], route_class=JsonRoute)


@router.post("/api/pull", response_class=Response, responses=_PROGRESS)
async def pull_model(request: Request, body: PullBody) -> Response:
    """A name of Ollama's registry, or hf.co/user/repo[:quant]. What came is kept when the client leaves."""
    service, reference = service_of(request), pullable(body.model)
    work = _pulling(service, reference, insecure=bool(body.insecure))
    return working(work, _replaced(service, local_name(reference)), body.unknown, stream=body.stream is not False)


@router.post("/api/push", response_class=JSONResponse, responses=ERRORS)
async def push_model(body: NamedBody) -> Response:
    raise ApiError(f"push is not supported; push {body.model[:80]!r} with the program it came from", status=501)


@router.post("/api/create", response_class=Response, responses=_PROGRESS)
async def create_model(request: Request, body: CreateBody) -> Response:
    """From a model that is here, or from uploaded blobs."""
    if body.draft_files:
        words = "draft models are not supported; leave draft_files out"
        raise ApiError(words, status=501, field="draft_files")
    try:
        name = model_name(body.model)
    except ModelError as error:
        raise wrong("model", f"model name {body.model[:80]!r} is invalid") from error
    if not body.base and not body.files:
        raise wrong("from", "neither 'from' or 'files' was specified")
    service = service_of(request)
    work = _creating(service.shelf, body)
    return working(work, _replaced(service, str(name)), body.unknown, stream=body.stream is not False)


def _replaced(service: Service, name: str) -> Callable[[], None]:
    """What had the name may be loaded: it goes as soon as nobody works with it."""
    return lambda: service.pool.keep(name, 0)


@router.head("/api/blobs/{digest}", responses=ERRORS, include_in_schema=False)
async def has_blob(request: Request, digest: _Digest) -> Response:
    shelf, sum_of = service_of(request).shelf, _sum(digest)

    def look() -> bool:
        with ModelStore.open(shelf.configuration) as store:
            return store.has(sum_of)

    return Response(status_code=200 if await asyncio.to_thread(look) else 404)


@router.post("/api/blobs/{digest}", response_class=Response, status_code=201, responses={200: {}, **ERRORS})
async def upload_blob(request: Request, digest: _Digest) -> Response:
    """A file for `create`, under its SHA-256."""
    shelf, sum_of = service_of(request).shelf, _sum(digest)
    async with contextlib.AsyncExitStack() as held:
        store = ModelStore.open(shelf.configuration)
        held.push_async_callback(asyncio.to_thread, store.close)
        if await asyncio.to_thread(store.has, sum_of):
            return Response(status_code=200)
        receiving = store.receive(sum_of, _announced(request), on_wait=_not_twice)
        partial = await asyncio.to_thread(receiving.__enter__)
        held.push_async_callback(asyncio.to_thread, receiving.__exit__, None, None, None)
        try:
            await asyncio.to_thread(partial.restart)
            async for piece in _pieces(request):
                await asyncio.to_thread(partial.append, piece)
            await asyncio.to_thread(partial.finish)
        except ModelError as error:
            raise wrong("digest", str(error)) from error
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody hears; what came is kept
    return Response(status_code=201)


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """Large ones: each is written in a thread of its own turn."""
    kept = bytearray()
    async for chunk in request.stream():
        kept += chunk
        if len(kept) >= _PIECE_BYTES:
            piece, kept = bytes(kept), bytearray()
            yield piece
    yield bytes(kept)


def _announced(request: Request) -> int | None:
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _not_twice() -> None:
    raise ApiError(
        "another client is uploading the same file; wait until it is complete", status=503, retry_after_seconds=5.0
    )


def _sum(digest: str) -> str:
    """sha256:… with 64 digits, as Ollama's clients write it."""
    kind, _, hexadecimal = digest.partition(":")
    if kind != "sha256" or len(hexadecimal) != 64 or set(hexadecimal) - set("0123456789abcdef"):
        raise wrong("digest", f"invalid digest format: {digest[:80]!r}; write sha256: and 64 hexadecimal digits")
    return hexadecimal


# Pulling


def _pulling(service: Service, reference: ModelName | Repository, *, insecure: bool) -> Work:
    def work(client: ProgressStream) -> None:
        pulled = service.pulls.run(reference, _CreateReport(client.tell), insecure=insecure)
        for note in pulled.notes:
            client.tell({"status": f"note: {note}"})

    return work


class _CreateReport:
    """A pull's steps in Ollama's words."""

    def __init__(self, tell: Tell):
        self._tell = tell
        self._told = ""

    def __call__(self, step: PullStep) -> None:
        """Nothing is said while it looks, so that an unknown model can still be a 404."""
        if step.stage == "looking":
            return
        if not self._told:
            self._say("pulling manifest")
        match step.stage:
            case "fetching" | "waiting" if step.progress is not None:
                shown = step.digest[:12] or step.text
                sizes = {"total": step.progress.total_bytes, "completed": step.progress.done_bytes}
                digest = {"digest": f"sha256:{step.digest}"} if step.digest else {}
                known = {name: value for name, value in sizes.items() if value is not None}
                self._told = f"pulling {shown}"
                self._tell({"status": self._told} | digest | known)
            case "checking":
                self._say("verifying sha256 digest")
            case "keeping":
                self._say("writing manifest")
            case _:
                self._say(step.text)

    def _say(self, status: str) -> None:
        if status != self._told and status:
            self._told = status
            self._tell({"status": status})


# Creating


def _creating(shelf: Catalog, body: CreateBody) -> Work:
    """What takes long comes first: once it is done, whoever leaves has the model all the same."""
    kind = body.quantize or body.quantization

    def work(client: ProgressStream) -> None:
        name, said = model_name(body.model), modelfile_of(body)
        with ModelStore.open(shelf.configuration) as store:
            base = _base(shelf, body, store)
            before = {file.digest for file in base.files}
            tell = client.tell
            if kind:
                base = quantized_for(client, replace(base, name=name), kind, store, shelf.configuration)
                tell = _unless_gone(tell)
            for file in base.files:
                if file.digest:
                    how = "using existing" if file.digest in before else "creating new"
                    tell({"status": f"{how} layer sha256:{file.digest}"})
            created = make(name, said, _NOWHERE, store, lambda _: base)
            tell({"status": "writing manifest"})
            store.put(created.manifest)
        for remark in created.remarks:
            tell({"status": f"note: {remark}"})

    return work


def _unless_gone(tell: Tell) -> Tell:
    def told(body: dict[str, Any]) -> None:
        with contextlib.suppress(Interrupted):
            tell(body)

    return told


def _base(shelf: Catalog, body: CreateBody, store: ModelStore) -> Manifest:
    """What FROM would bring: the model that is named, or the uploaded files, with the adapters."""
    adapters = uploaded_files(body.adapters or {}, store, adapters=True)
    if not body.base:
        made = uploaded_files(body.files or {}, store)
        return Manifest(name=model_name(body.model), files=(*made, *adapters), source="uploaded files", created=_EPOCH)
    try:
        base = shelf.find(body.base).manifest
    except ModelError as error:
        raise not_found(body.base) from error
    return replace(base, files=(*base.files, *adapters))


_EPOCH = "1970-01-01T00:00:00+00:00"  # of what never gets into the store
