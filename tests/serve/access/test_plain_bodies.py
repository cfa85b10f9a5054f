"""Bodies as scripts send them, before a framework that looks at their media type."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from trilithon.serve.access.security import SecurityOptions, install


class Body(BaseModel):
    model: str


def answered(content_type: str | None) -> httpx.Response:
    app = FastAPI()

    @app.post("/api/chat")
    async def chat(body: Body) -> dict[str, str]:
        return {"model": body.model}

    install(app, SecurityOptions())

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            headers = {} if content_type is None else {"Content-Type": content_type}
            return await client.post("/api/chat", content=b'{"model": "a"}', headers=headers)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "application/x-www-form-urlencoded",
        "Application/X-WWW-Form-Urlencoded; charset=UTF-8",
        "text/plain;charset=UTF-8",
    ],
)
def test_json_is_taken_for_json(content_type: str | None) -> None:
    answer = answered(content_type)
    assert (answer.status_code, answer.json()) == (200, {"model": "a"})


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", "application/octet-stream", "image/png"])
def test_what_is_something_else_stays_so(content_type: str) -> None:
    assert answered(content_type).status_code == 422
