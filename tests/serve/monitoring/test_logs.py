"""Lines of the log: JSON, one for each request, and without what nobody should read there."""

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trilithon.engines.wire.messages import Timings
from trilithon.errors import ChildDied, ModelError
from trilithon.serve.access.keys import Keyring
from trilithon.serve.access.security import SecurityOptions, install
from trilithon.serve.monitoring.log_writer import LogWriter
from trilithon.serve.monitoring.logs import JsonLines, log_request, logged_to, without_secrets
from trilithon.serve.request_record import RequestRecord, note_broken, note_generated, note_retried, recording

KEY = "trl-" + "k" * 43
PROMPT = "what I asked in confidence"


@dataclass(frozen=True, slots=True)
class Log:
    path: Path
    writer: LogWriter

    def getvalue(self) -> str:
        self.writer.flush()
        return self.path.read_text()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    path = tmp_path / "log"
    with path.open("w") as stream, logged_to(stream) as writer:
        yield Log(path, writer)


def lines(log: Log) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def asked(*requests: httpx.Request) -> None:
    async def chat(request: Request) -> Response:
        await request.body()
        timings = Timings(cache_n=3, prompt_n=5, prompt_ms=10.0, predicted_n=7, predicted_ms=60.0)
        note_generated(model="a:latest", placement="p+d", prefill_unit="npu", decode_unit="cpu", timings=timings)
        return JSONResponse({"content": PROMPT})

    async def broken(request: Request) -> Response:
        raise ValueError(f"no sense in {(await request.body()).decode()}")

    async def run() -> None:
        app = Starlette(
            routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/broken", broken, methods=["POST"])]
        )
        install(app, SecurityOptions(), Keyring(required=False))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as client:
            for request in requests:
                await client.send(request)

    asyncio.run(run())


def test_a_request_is_one_line_without_what_was_said(log: Log) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "X-Api-Key": KEY, "X-Request-Id": "abc", "Cookie": KEY}
    url = f"http://localhost/v1/chat/completions?key={KEY}&prompt={PROMPT}"
    asked(httpx.Request("POST", url, headers=headers, json={"prompt": PROMPT}))
    (line,) = lines(log)
    assert KEY not in log.getvalue()
    assert PROMPT not in log.getvalue()
    assert line["request_id"] == "abc"
    assert (line["method"], line["route"], line["status"], line["whole"]) == ("POST", "/v1/chat/completions", 200, True)
    assert (line["model"], line["prefill_unit"], line["decode_unit"]) == ("a:latest", "npu", "cpu")
    assert (line["prompt_tokens"], line["cached_tokens"], line["generated_tokens"]) == (5, 3, 7)
    assert (line["prefill_seconds"], line["decode_seconds"]) == (0.01, 0.06)
    assert line["seconds"] > 0
    assert line["level"] == "info"


def test_guesses_are_told_where_there_were_any(log: Log) -> None:
    record = RequestRecord(request_id="abc", method="GET", path="/", began_ns=0, status=200, whole=True)
    plain = Timings(cache_n=3, prompt_n=5, prompt_ms=10.0, predicted_n=7, predicted_ms=60.0)
    with recording(record):
        for timings in (plain, replace(plain, draft_n=8, draft_accepted=6)):
            note_generated(model="a", placement="p", prefill_unit="cpu", decode_unit="cpu", timings=timings)
            log_request(record)
    without, with_guesses = lines(log)
    assert "guessed_tokens" not in without
    assert (with_guesses["guessed_tokens"], with_guesses["guessed_right_tokens"]) == (8, 6)


def test_what_breaks_is_told_by_kind_and_place(log: Log) -> None:
    asked(httpx.Request("POST", "http://localhost/broken", content=PROMPT))
    assert PROMPT not in log.getvalue()
    (line,) = lines(log)
    assert (line["status"], line["error"], line["level"]) == (500, "ValueError", "error")


def test_what_is_told_in_the_middle_of_an_answer_is_in_the_log_by_kind(log: Log) -> None:
    record = RequestRecord(request_id="abc", method="GET", path="/", began_ns=0, status=200, whole=True)
    with recording(record):
        note_broken(ChildDied(f"it died of {PROMPT}", cause="out of memory"))
        log_request(record)
        note_broken(ModelError(PROMPT))
        log_request(record)
    assert [line["error"] for line in lines(log)] == ["ChildDied: out of memory", "ModelError"]
    assert PROMPT not in log.getvalue()


def test_a_death_that_nobody_heard_of_is_in_the_log(log: Log) -> None:
    record = RequestRecord(request_id="abc", method="GET", path="/", began_ns=0, status=200, whole=True)
    with recording(record):
        log_request(record)
        note_retried()
        log_request(record)
    assert [line.get("retried") for line in lines(log)] == [None, 1]


def test_a_key_in_a_path_is_not_kept(log: Log) -> None:
    asked(httpx.Request("GET", f"http://localhost/{KEY}"), httpx.Request("GET", "http://localhost/" + "x" * 5000))
    assert KEY not in log.getvalue()
    assert all(len(line["path"]) <= 200 for line in lines(log))


def test_an_exception_keeps_its_words_only_when_they_are_ours(log: Log) -> None:
    for error in (KeyError(PROMPT), ModelError(f"no model here for {KEY}")):
        try:
            raise error
        except (KeyError, ModelError):
            logging.getLogger("x").exception("that went wrong")
    first, second = lines(log)
    assert (first["exception"], "why" in first) == ("KeyError", False)
    assert first["at"][0].startswith(__file__)
    assert second["why"] == "no model here for trl-…"


def test_what_is_logged_meanwhile_bears_the_requests_id(log: Log) -> None:
    with recording(RequestRecord(request_id="abc", method="GET", path="/", began_ns=0)):
        logging.getLogger("x").warning("odd: %s", "\n\x1b[31mred")
    (line,) = lines(log)
    assert line["request_id"] == "abc"
    assert log.getvalue().count("\n") == 1
    assert "\x1b" not in log.getvalue()


def test_the_lines_of_libraries_that_hold_addresses_are_left_out(log: Log) -> None:
    logging.getLogger("uvicorn.access").info("GET /?key=secret")
    logging.getLogger("httpx").info("HTTP Request: GET https://x/?token=secret")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert [line["message"] for line in lines(log)] == ["Invalid HTTP request received."]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"key {KEY} is", "key trl-… is"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer …"),
        ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic …"),
        ("?api_key=abc&x=1", "?api_key=…&x=1"),
        ("'x-api-key': 'abc', 'a': 1", "'x-api-key': '…', 'a': 1"),
        ('{"authorization": "Bearer abc"}', '{"authorization": "Bearer …"}'),
        ("x-api-key: abc", "x-api-key: …"),
        ("token=abc", "token=…"),
        ("11 tokens were made", "11 tokens were made"),
        ("see data:image/png;base64,AAAA next", "see data:… next"),
    ],
)
def test_secrets_that_a_library_writes_are_struck_out(text: str, left: str) -> None:
    assert without_secrets(text) == left


@given(st.text(), st.text(max_size=40))
def test_any_message_is_one_line_of_json(message: str, fact: str) -> None:
    made = logging.LogRecord("x", logging.INFO, "f", 1, message, None, None)
    made.facts = {"fact": fact}
    line = JsonLines().format(made)
    assert "\n" not in line
    assert json.loads(line)["fact"] == fact
