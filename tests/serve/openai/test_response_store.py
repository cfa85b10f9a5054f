"""Responses that later ones go on from: kept within bounds, for the client that they were made for, over restarts."""

import asyncio
import json
import stat
import threading
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Serve

from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.serve.access.security import SecurityOptions
from trilithon.serve.app import ServeOptions
from trilithon.serve.http.errors import ApiError
from trilithon.serve.openai.response_store import ResponseStore

KEYS = ("a-key-of-the-first-client", "a-key-of-another-client")


def asked(http: httpx.Client, text: str, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/responses", json={"model": "tiny", "input": text, "max_output_tokens": 4, **fields})
    assert answer.status_code == 200, answer.text
    if not fields.get("stream"):
        return dict(answer.json())
    last = answer.text.strip().splitlines()[-1]
    return dict(json.loads(last.removeprefix("data: "))["response"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on(serve: Serve, tmp_path: Path, stream: bool) -> None:
    http = serve(write_tiny_model(tmp_path / "tiny.gguf", seed=1)).http
    first = asked(http, "how heavy are the stones?", stream=stream, instructions="be short")
    assert first["store"] is True
    second = asked(http, "and the lintel?", previous_response_id=first["id"], stream=stream)
    assert second["previous_response_id"] == first["id"]
    third = asked(http, "why?", previous_response_id=second["id"])
    said = [first["output"][0]["content"][0]["text"], second["output"][0]["content"][0]["text"]]
    whole = [
        {"role": "user", "content": "how heavy are the stones?"},
        {"role": "assistant", "content": said[0]},
        {"role": "user", "content": "and the lintel?"},
        {"role": "assistant", "content": said[1]},
        {"role": "user", "content": "why?"},
    ]
    again = asked(http, whole, store=False)  # type: ignore[arg-type]
    assert third["usage"]["input_tokens"] == again["usage"]["input_tokens"] > second["usage"]["input_tokens"]
    assert http.get(f"/v1/responses/{third['id']}").json()["output"] == third["output"]
    items = http.get(f"/v1/responses/{second['id']}/input_items").json()["data"]
    assert [entry["content"] for entry in items] == ["and the lintel?"]
    assert http.delete(f"/v1/responses/{second['id']}").json()["deleted"] is True
    for gone in (second["id"], again["id"], "resp_none"):
        assert http.get(f"/v1/responses/{gone}").status_code == 404
        body = {"model": "tiny", "input": "x", "previous_response_id": gone}
        refused = http.post("/v1/responses", json=body)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (400, "previous_response_not_found")
        assert error["param"] == "previous_response_id"


def test_each_key_has_its_own(serve: Serve, tiny: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\n".join(KEYS))
    keys.chmod(0o600)
    server = serve(tiny, options=ServeOptions(security=SecurityOptions(api_key_file=keys)))
    http = server.http
    http.headers["Authorization"] = f"Bearer {KEYS[0]}"
    first = asked(http, "hello")
    http.headers["Authorization"] = f"Bearer {KEYS[1]}"
    assert http.get(f"/v1/responses/{first['id']}").status_code == 404
    assert http.delete(f"/v1/responses/{first['id']}").status_code == 404
    body = {"model": "tiny", "input": "x", "previous_response_id": first["id"]}
    assert http.post("/v1/responses", json=body).status_code == 400
    file = server.service.shelf.configuration.data / "responses.sqlite"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_nothing_is_kept_where_that_is_off(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, options=ServeOptions(response_store_bytes=0))
    first = asked(server.http, "hello")
    assert first["store"] is False
    assert server.http.get(f"/v1/responses/{first['id']}").status_code == 404


def run(work: Callable[[ResponseStore], Any], path: Path, **bounds: int) -> Any:
    return asyncio.run(work(ResponseStore(path, **{"most_bytes": 1 << 20, **bounds})))


def made(name: str, previous: str | None = None, size: int = 100) -> dict[str, Any]:
    return {"id": name, "previous_response_id": previous, "output": [{"type": "message", "content": "x" * size}]}


def test_what_is_used_stays_and_the_rest_goes(tmp_path: Path) -> None:
    async def work(store: ResponseStore) -> None:
        assert await store.put(made("a"), [{"content": "1"}], "")
        assert await store.put(made("b", "a"), [{"content": "2"}], "")
        for number in range(20):
            assert await store.put(made(f"other{number}"), [], "")
            conversation = await store.conversation("b", "")
            assert [entry["content"][0] for entry in conversation] == ["1", "x", "2", "x"]
        with pytest.raises(ApiError, match="other3"):
            await store.conversation("other3", "")
        assert await store.conversation("other19", "")

    run(work, tmp_path / "store", most_responses=5)


def test_the_file_is_bound(tmp_path: Path) -> None:
    async def work(store: ResponseStore) -> None:
        assert not await store.put(made("huge", size=300_000), [], "")  # more than a quarter
        for number in range(40):
            assert await store.put(made(f"r{number}", size=100_000), [], "")
        assert await store.conversation("r39", "")

    path = tmp_path / "store"
    run(work, path)
    assert path.stat().st_size < 1.3 * (1 << 20)


def test_a_large_response_is_not_made_into_text_on_the_event_loop(tmp_path: Path) -> None:
    readers = set()

    class Response(UserDict[str, Any]):
        def keys(self) -> Any:
            readers.add(threading.get_ident())
            return super().keys()

    async def work(store: ResponseStore) -> None:
        assert await store.put(Response(made("a")), [{"content": "1"}], "")
        stored = await store.get("a", "")
        assert json.loads(stored.response) == made("a") | {"store": True}
        assert json.loads(stored.items) == [{"content": "1"}]
        assert readers and threading.get_ident() not in readers

    run(work, tmp_path / "store")


def test_a_damaged_file_is_told_and_ends_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "store"
    path.write_bytes(b"no database" * 1000)

    async def work(store: ResponseStore) -> None:
        assert not await store.put(made("a"), [], "")
        with pytest.raises(ApiError, match="remove that file"):
            await store.conversation("a", "")

    run(work, path)
    assert "was not stored" in caplog.text
