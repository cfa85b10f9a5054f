"""Two boards behind a gateway: routing, keys, drains, and boards that die, freeze and come back."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_boards import LiveBoard, add_all, certificate, gateway_of, until

from trilithon.fleet.boards import add_board, change_board, keep_key, parse_board
from trilithon.fleet.control import Control, ControlError
from trilithon.fleet.gateway import GatewayTimes
from trilithon.fleet.haproxy import Share, shares
from trilithon.fleet.state import BoardModel, BoardState
from trilithon.serve.access.keys import add_key, remove_key
from trilithon.settings import Configuration

# A busy machine is no board that is down.
TIMES = GatewayTimes(look_seconds=0.1, ask_seconds=0.5, drain_seconds=5.0, health_seconds=10.0)
CHAT = "/v1/chat/completions"


def chat(text: str, tokens: int = 4, *, stream: bool = True, model: str = "tiny") -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "stream": stream, "max_tokens": tokens}


async def answer(http: httpx.AsyncClient, text: str, tokens: int = 4, **headers: str) -> tuple[str, str]:
    """The board, and the whole stream."""
    sent = await http.post(CHAT, json=chat(text, tokens), headers=headers)
    assert sent.status_code == 200, sent.text
    return sent.headers["x-trilithon-board"], sent.text


async def boards_of(http: httpx.AsyncClient, texts: list[str]) -> Counter[str]:
    answers = await asyncio.gather(*(answer(http, text) for text in texts))
    assert all("[DONE]" in text and '"error"' not in text for _, text in answers)
    return Counter(board for board, _ in answers)


async def until_boards(http: httpx.AsyncClient, wanted: set[str]) -> None:
    """Requests reach these boards and no others, sooner or later."""
    async with asyncio.timeout(60):
        while (await boards_of(http, [f"text {number}" for number in range(16)])).keys() != wanted:
            pass


async def begun(http: httpx.AsyncClient, text: str, tokens: int) -> tuple[str, asyncio.Task[tuple[str, str]]]:
    """The board, and the answer that `answer` gives, once its first token is here."""
    has_token: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read() -> tuple[str, str]:
        whole = ""
        async with http.stream("POST", CHAT, json=chat(text, tokens)) as sent:
            async for piece in sent.aiter_text():
                whole += piece
                if '"content": "' in whole and not has_token.done():
                    has_token.set_result(sent.headers["x-trilithon-board"])
            return sent.headers["x-trilithon-board"], whole

    task = asyncio.create_task(read())
    return await asyncio.wait_for(has_token, 60), task


def test_one_bad_file_holds_nothing_else_up(
    haproxy: str, configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys of clients, drains and boards, with a board's files gone and HAProxy's socket failing once."""
    authority = tmp_path / "ca.pem"
    certificate(authority)
    known = keep_key(configuration, parse_board("rock1=https://127.0.0.1:9", ca_file=authority), "trl-first-key")
    add_board(configuration, known)
    key_file = Path(known.key_file)
    weigh = Control.weigh

    async def failing(control: Control, parts: Sequence[Share]) -> None:
        monkeypatch.setattr(Control, "weigh", weigh)
        raise ControlError("once")

    async def visit() -> None:
        async with gateway_of(configuration, haproxy, replace(TIMES, look_seconds=0.02, ask_seconds=0.1)) as (
            gateway,
            http,
        ):

            async def status(key: str = "") -> int:
                return (await http.get("/api/version", headers={"x-api-key": key} if key else {})).status_code

            async def becomes(expected: int, key: str = "") -> None:
                async with asyncio.timeout(30):
                    while await status(key) != expected:
                        pass

            def written(text: str) -> bool:
                return text in gateway._files.configuration.read_text()

            assert await status() == 200
            secret = add_key(configuration, "ann", "chat")
            await becomes(401)
            assert await status(secret) == 200
            key_file.chmod(0o644)
            remove_key(configuration, "ann")
            await becomes(401, secret)
            key_file.write_text("trl-second-key")
            key_file.chmod(0o600)
            await until(lambda: written("trl-second-key"))

            authority.unlink()
            models = (BoardModel(name="tiny:latest"),)
            gateway.states["rock1"] = BoardState(name="rock1", models=models)
            await until(lambda: gateway._refused is not None)
            again = add_key(configuration, "eve", "chat")
            await becomes(200, again)
            certificate(authority)
            (part,) = shares(gateway._boards, gateway.states)
            server = f"{part.backend}/rock1"

            async def weighs(number: int) -> None:
                async with asyncio.timeout(30):
                    while not (await gateway._control.ask(f"get weight {server}")).startswith(f"{number} "):
                        pass

            await weighs(256)
            await until(lambda: gateway._worker != "")
            monkeypatch.setattr(Control, "weigh", failing)
            change_board(configuration, "rock1", lambda board: replace(board, drained=True))
            await weighs(0)
            assert Control.weigh is weigh

    asyncio.run(visit())


@pytest.mark.slow
def test_routing_refusals_lists_and_drains(
    haproxy: str, live_boards: list[LiveBoard], configuration: Configuration
) -> None:
    add_all(configuration, live_boards)

    async def visit() -> None:
        async with gateway_of(configuration, haproxy, TIMES) as (_, http):
            both = await boards_of(http, [f"text {number}" for number in range(16)])
            assert both.keys() == {"rock1", "rock2"}
            for number in range(3):  # one conversation stays where its beginning is cached, as it grows
                chosen: Counter[str] = Counter()
                for _ in range(5):
                    chosen[(await answer(http, f"text {number}"))[0]] += 1
                    await asyncio.sleep(0.1)  # HAProxy counts an answer for a moment after its end
                assert max(chosen.values()) >= 4
            listed = (await http.get("/v1/models")).json()["data"]
            assert [(row["id"], row["boards"]) for row in listed] == [("tiny:latest", ["rock1", "rock2"])]
            assert [row["name"] for row in (await http.get("/api/tags")).json()["models"]] == ["tiny:latest"]
            assert (await http.get("/v1/models/tiny")).json()["id"] == "tiny:latest"
            assert (await http.get("/health")).json() == {"status": "ok"}
            whole = await http.post("/api/chat", json=chat("whole", stream=False, model="TINY:latest"))
            assert whole.json()["done"] is True

            absent = [
                await http.post(path, json=chat("x", model="absent")) for path in (CHAT, "/api/chat", "/v1/messages")
            ]
            assert [refused.status_code for refused in absent] == [404, 404, 404]
            assert absent[0].json()["error"]["code"] == "model_not_found"
            assert "tiny:latest" in absent[1].json()["error"]
            assert absent[2].json()["type"] == "error"
            forged = await http.post(CHAT, json=chat("x", model="a\r\nx-trilithon-refusal: key\r\nb: "))
            assert (forged.status_code, "'a??x-trilithon-refusal:?key??b:?'" in forged.text) == (404, True)
            unnamed = await http.post(CHAT, json={"messages": []})
            assert (unnamed.status_code, "model is required" in unnamed.text) == (400, True)
            for method, path in (
                ("POST", "/api/pull"),
                ("DELETE", "/api/delete"),
                ("POST", "/api/create"),
                ("GET", "/x"),
            ):
                assert (await http.request(method, path, json={"model": "tiny"})).status_code == 404, path
            unloading = await http.post("/api/generate", json={"model": "tiny", "keep_alive": 0})
            assert (unloading.status_code, "unloads no models" in unloading.text) == (400, True)
            foreign = await http.post(CHAT, json=chat("x"), headers={"Origin": "http://evil.example"})
            assert foreign.status_code == 403

            _, before = await begun(http, "text 1", 200)
            change_board(configuration, "rock1", lambda board: replace(board, drained=True))
            await until_boards(http, {"rock2"})
            assert "[DONE]" in (await before)[1]  # what runs on a drained board is not cut
            change_board(configuration, "rock1", lambda board: replace(board, drained=False))
            await until_boards(http, {"rock1", "rock2"})

    asyncio.run(visit())


@pytest.mark.slow
def test_a_client_shows_its_own_key_and_the_board_sees_its_name(
    haproxy: str, live_boards: list[LiveBoard], configuration: Configuration
) -> None:
    add_all(configuration, live_boards[:1])
    secret = add_key(configuration, "ann", "chat")
    only_metrics = add_key(configuration, "prometheus", "metrics")

    async def visit() -> None:
        async with gateway_of(configuration, haproxy, TIMES) as (_, http):
            assert (await http.get("/health")).status_code == 200
            for headers in ({}, {"x-api-key": "made-up"}, {"x-api-key": only_metrics}):
                assert (await http.get("/v1/models", headers=headers)).status_code == 401
                refused = await http.post(CHAT, json=chat("hi"), headers=headers)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            claims = {"X-Trilithon-Client": "bob", "X-Trilithon-Backend": "about", "X-Trilithon-Refusal": "unload"}
            for shown in ({"Authorization": f"Bearer {secret}"}, {"x-api-key": secret}):
                board, _ = await answer(http, "hi", **shown, **claims)
                assert board == "rock1"
            assert (
                await http.post(CHAT, json=chat("hi"), headers={"x-api-key": live_boards[0].key})
            ).status_code == 401
            added = add_key(configuration, "eve", "chat")
            remove_key(configuration, "ann")
            async with asyncio.timeout(60):
                while (await http.get("/v1/models", headers={"x-api-key": secret})).status_code != 401:
                    pass
            await answer(http, "hi", **{"x-api-key": added})
            assert (await http.post(CHAT, json=chat("hi"), headers={"x-api-key": secret})).status_code == 401

    asyncio.run(visit())
    clients = {entry.get("key") for line in live_boards[0].log.splitlines() if (entry := _logged(line))}
    assert {"gateway-here/ann", "gateway-here/eve"} <= clients
    assert "gateway-here/bob" not in clients


def _logged(line: str) -> dict[str, Any]:
    return json.loads(line) if line.startswith("{") else {}


@pytest.mark.slow
def test_a_killed_board_loses_no_request_before_its_first_token_and_comes_back(
    haproxy: str, live_boards: list[LiveBoard], configuration: Configuration
) -> None:
    add_all(configuration, live_boards)

    async def visit() -> None:
        async with gateway_of(configuration, haproxy, TIMES) as (_, http):
            name, held = await begun(http, "held", 1000)
            asked = [asyncio.create_task(answer(http, f"text {number}", 20)) for number in range(20)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert not held.done()
            killed, other = live_boards if name == "rock1" else live_boards[::-1]
            killed.send(signal.SIGKILL)
            assert f"board {name} was lost in the middle of this answer" in (await held)[1]
            answers = [text for _, text in await asyncio.gather(*asked)]
            assert all("[DONE]" in text and '"error"' not in text for text in answers)
            await until_boards(http, {f"rock{live_boards.index(other) + 1}"})
            await asyncio.to_thread(killed.again)
            await until_boards(http, {"rock1", "rock2"})

    asyncio.run(visit())


@pytest.mark.slow
def test_a_frozen_board_gets_nothing_new_and_what_it_holds_ends(
    haproxy: str, live_boards: list[LiveBoard], configuration: Configuration
) -> None:
    """With less patience than a real gateway has."""
    add_all(configuration, live_boards)

    async def visit() -> None:
        async with gateway_of(configuration, haproxy, replace(TIMES, frozen_seconds=1.0, health_seconds=2.0)) as (
            gateway,
            http,
        ):
            texts = [f"text {number}" for number in range(12)]
            of_rock1 = [text for text in texts if (await answer(http, text))[0] == "rock1"]
            _, held = await begun(http, of_rock1[0], 500)
            waiting = asyncio.create_task(http.post("/api/chat", json=chat(of_rock1[1], stream=False)))
            await asyncio.sleep(0.5)
            live_boards[0].send(signal.SIGSTOP)
            try:
                await until(lambda: "rock1" in gateway.down)
                assert (await boards_of(http, texts)).keys() == {"rock2"}
                board, text = await held
                assert (board, "board rock1 was lost" in text) == ("rock1", True)
                assert (await waiting).json()["done"] is True  # no token of it was there: another board answers
            finally:
                live_boards[0].send(signal.SIGCONT)
            await until(lambda: "rock1" not in gateway.down)

    asyncio.run(visit())
