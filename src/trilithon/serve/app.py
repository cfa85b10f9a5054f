"""The server: every dialect's routes over one service, each error in the words of the dialect that asked."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from trilithon import __version__
from trilithon.errors import TrilithonError
from trilithon.serve import llama, plans
from trilithon.serve.access.security import SecurityOptions, install
from trilithon.serve.anthropic import routes as anthropic
from trilithon.serve.http.connections import quiet_accept_errors
from trilithon.serve.http.dialects import error_body
from trilithon.serve.http.errors import ApiError, api_error_of
from trilithon.serve.http.keep_alive import StreamTimes
from trilithon.serve.http.openapi import describe
from trilithon.serve.monitoring import metrics
from trilithon.serve.ollama import models as ollama_models
from trilithon.serve.ollama import routes as ollama
from trilithon.serve.openai import responses
from trilithon.serve.openai import routes as openai
from trilithon.serve.openai.response_store import ResponseStore
from trilithon.serve.request_record import note_broken
from trilithon.serve.service import Service

__all__ = ["ServeOptions", "create_app"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """`drain_seconds` is how long requests at work may go on once the server is told to end. `response_store_bytes`
    bounds what is kept of OpenAI's responses, 0 for nothing."""

    security: SecurityOptions = field(default_factory=SecurityOptions)
    drain_seconds: float = 30.0
    response_store_bytes: int = 256 << 20
    stream_times: StreamTimes = field(default_factory=StreamTimes)


def create_app(service: Service, options: ServeOptions | None = None) -> FastAPI:
    """The ASGI application. Its lifespan ends with every child stopped."""
    options = options or ServeOptions()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        quiet_accept_errors(asyncio.get_running_loop())
        try:
            yield
        finally:
            service.pulls.close()
            await service.pool.drain(options.drain_seconds)

    app = FastAPI(
        title="Trilithon",
        version=__version__,
        summary="Ollama's, OpenAI's and Anthropic's APIs over every engine of this machine",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
    )
    app.state.service = service
    store_path = service.shelf.configuration.data / "responses.sqlite"
    app.state.responses = ResponseStore(store_path, options.response_store_bytes)
    app.state.stream_times = options.stream_times
    for module in (openai, ollama, ollama_models, responses, anthropic, llama, plans, metrics):
        app.include_router(module.router)
    app.include_router(openai.unversioned)
    app.add_exception_handler(TrilithonError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    describe(app)
    install(app, options.security)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    problem = api_error_of(error)
    if problem.status >= 500:
        note_broken(error)
    return _answer(request, problem)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        at, why = first["loc"][-1], first["ctx"]["error"]
        return _answer(request, ApiError(f"the body is not JSON: {why} at character {at}", status=400))
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return _answer(request, ApiError(f"{where or 'body'}: {first['msg']}", status=400, field=where))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    api_error = ApiError(str(error.detail), status=error.status_code, kind=kind)
    return _answer(request, api_error, error.headers)


def _answer(request: Request, problem: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    more = dict(headers or {})
    if problem.retry_after_seconds is not None:
        more["Retry-After"] = str(max(1, math.ceil(problem.retry_after_seconds)))
    return JSONResponse(error_body(request.url.path, problem), status_code=problem.status, headers=more)
