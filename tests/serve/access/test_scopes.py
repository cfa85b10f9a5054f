"""What a key with a scope may do: at the guard, and for every route that the server has."""

from pathlib import Path
from typing import Any

import pytest
from live_server import Serve
from small_server import CHAT, Door, at_the_door

from trilithon.serve.access.keys import add_key, key_store
from trilithon.serve.access.scopes import SCOPES, is_allowed, scope_of_page, scope_of_request
from trilithon.serve.access.security import SecurityOptions
from trilithon.settings import Configuration

MODELS = {"/api/blobs/{digest}", "/api/copy", "/api/create", "/api/delete", "/api/pull", "/api/push"}


def test_every_route_needs_the_scope_that_it_should(serve: Serve) -> None:
    """A new route that nobody put into the table needs the whole key, and is told here."""
    paths = serve().http.get("/openapi.json").json()["paths"]
    needed = {path: scope_of_request(path) for path in [*paths, "/api/blobs/{digest}", "/openapi.json"]}
    assert {path for path, scope in needed.items() if scope == "models"} == MODELS
    assert [path for path, scope in needed.items() if scope == "metrics"] == ["/metrics"]
    assert [path for path, scope in needed.items() if scope == "admin"] == []
    assert scope_of_request("/api/unknown") == "admin"


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/", "chat"),
        ("/models", "models"),
        ("/board", "admin"),
        ("/results/7/report.html", "admin"),
        ("/_nicegui/x", "chat"),
    ],
)
def test_pages(path: str, scope: str) -> None:
    assert scope_of_page(path) == scope


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("chat", {CHAT}),
        ("models", {CHAT, "/api/pull"}),
        ("metrics", {"/metrics"}),
        ("gateway", {CHAT}),
        ("admin", {CHAT, "/api/pull", "/metrics", "/careless"}),
    ],
)
def test_a_key_does_what_it_is_for_and_no_more(tmp_path: Path, scope: str, allowed: set[str]) -> None:
    configuration = Configuration(data=tmp_path, cache=tmp_path)
    headers = {"Authorization": f"Bearer {add_key(configuration, 'ann', scope)}"}

    async def visit(door: Door) -> None:
        answers: dict[str, Any] = {}
        for path in (CHAT, "/api/pull", "/metrics", "/careless"):
            answers[path] = await door.http.get(path, headers=headers)
        assert {path for path, answer in answers.items() if answer.status_code != 403} == allowed
        for path, answer in answers.items():
            if path not in allowed:
                assert f"this key is for {scope} only" in answer.text
                assert "trilithon key add NAME --scope" in answer.text

    at_the_door(SecurityOptions(key_store=key_store(configuration)), visit)


def test_without_authentication_a_key_takes_nothing_away(tmp_path: Path) -> None:
    configuration = Configuration(data=tmp_path, cache=tmp_path)
    headers = {"Authorization": f"Bearer {add_key(configuration, 'ann', 'chat')}"}

    async def visit(door: Door) -> None:
        assert (await door.http.get("/careless", headers=headers)).status_code != 403

    at_the_door(SecurityOptions(key_store=key_store(configuration), keys_required=False), visit)


def test_the_whole_key_may_do_what_any_other_may() -> None:
    assert all(is_allowed("admin", needed) for needed in SCOPES)
