"""HAProxy's configuration: what HAProxy itself says of it, and who takes which part of the requests."""

import asyncio
import hashlib
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_boards import certificate

from trilithon.errors import TrilithonError
from trilithon.fleet.about import answering_at
from trilithon.fleet.boards import FleetBoard
from trilithon.fleet.haproxy import KEY_REQUIRED, Door, HaproxyFiles, shares
from trilithon.fleet.http_parts import Head, content, read_head
from trilithon.fleet.state import BoardModel, BoardState

BOARDS = (
    FleetBoard(name="rock1", url="https://10.0.0.11:11435"),
    FleetBoard(name="rock2", url="https://nas.local:8443"),
    FleetBoard(name="six", url="http://[fd00::1]:11435", private_network=True),
)


def state(name: str, *models: BoardModel, slots: int = 1) -> BoardState:
    return BoardState(name=name, models=models, slots=slots)


def model(name: str, rate: float | None = None, refusal: str = "") -> BoardModel:
    return BoardModel(name=name, tokens_per_second=rate, refusal=refusal)


STATES = {
    "rock1": state("rock1", model("qwen3:4b", 10.0), model("big:latest", refusal="too large"), slots=4),
    "rock2": state("rock2", model("qwen3:4b", 30.0), model("Only:latest")),
    "six": state("six", model("Qwen3:4B")),
}


def test_each_model_is_shared_by_those_that_can_run_it_as_they_are_fast() -> None:
    parts = shares(BOARDS, STATES)
    assert [(part.model, part.board, part.weight, part.slots) for part in parts] == [
        ("only:latest", "rock2", 256, 1),
        ("qwen3:4b", "rock1", 85, 4),
        ("qwen3:4b", "rock2", 256, 1),
        ("qwen3:4b", "six", 171, 1),  # as the mean of the others
    ]
    drained = FleetBoard(name="rock2", url="https://nas.local:8443", drained=True)
    weights = {part.board: part.weight for part in shares((BOARDS[0], drained), STATES) if part.model == "qwen3:4b"}
    assert weights == {"rock1": 85, "rock2": 0}
    assert shares(BOARDS, {}) == ()


@pytest.mark.parametrize("states", [STATES, {}])
def test_haproxy_takes_the_configuration(
    haproxy: str, tmp_path: Path, states: dict[str, BoardState], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = HaproxyFiles(tmp_path)
    authority = tmp_path / 'a "$HOME" \\ ca.pem'  # letters that mean something within double quotes
    certificate(authority)
    signed = FleetBoard(name="signed", url="https://nas.local:8444", ca_file=str(authority))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        door = Door(descriptors=(listening.fileno(),))
        files.write_keys({"0" * 64: "ann", KEY_REQUIRED: "yes"})
        files.write((*BOARDS, signed), {"rock1": "trl-secret_key=="}, shares(BOARDS, states), door)
        files.check(haproxy, door.descriptors)
        text = files.configuration.read_text()
        assert text.count("trl-secret_key==") == 1
        assert [path.stat().st_mode & 0o077 for path in tmp_path.iterdir()] == [0] * len(list(tmp_path.iterdir()))
        maps = (tmp_path / "models.map").read_text().splitlines()
        assert [line.split()[0] for line in maps] == (["only:latest", "only", "qwen3:4b"] if states else [])
        files.configuration.write_text(text + "nonsense\n")
        with pytest.raises(TrilithonError, match=r"HAProxy refuses its configuration: .*nonsense"):
            files.check(haproxy, door.descriptors)


ANN = "trl-of-ann"


@pytest.fixture
def passed(haproxy: str) -> Any:
    """`passed(path, body)`: what HAProxy tells the relay of a request; the answer where it does not get there."""
    heads: list[Head] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        async for _ in content(reader, head):
            pass
        heads.append(head)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async def visit(requests: list[tuple[str, bytes]], key: str) -> list[Head | httpx.Response]:
        with socket.create_server(("127.0.0.1", 0)) as listening, tempfile.TemporaryDirectory() as name:
            files = HaproxyFiles(Path(name))
            door = Door(descriptors=(listening.fileno(),))
            files.write_keys({hashlib.sha256(ANN.encode()).hexdigest(): "ann", KEY_REQUIRED: "yes"})
            files.write(BOARDS, {}, shares(BOARDS, STATES), door)
            server = await asyncio.start_unix_server(relay, str(files.folder / "relay.sock"))
            words = [haproxy, "-db", "-f", str(files.configuration)]
            quiet = asyncio.subprocess.DEVNULL
            child = await asyncio.create_subprocess_exec(*words, pass_fds=tuple(door.descriptors), stderr=quiet)
            try:
                async with asyncio.timeout(60), answering_at(files.folder / "about.sock", lambda: STATES):
                    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
                    headers = {"Authorization": f"Bearer {key}"}
                    results: list[Head | httpx.Response] = []
                    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, headers=headers) as http:
                        for path, body in requests:
                            answer = await http.post(path, content=body)
                            results.append(heads.pop() if heads else answer)
                    return results
            finally:
                child.kill()
                await child.wait()
                server.close()

    return lambda requests, key=ANN: asyncio.run(visit(requests, key))


def chat(*texts: str, roles: str = "uauaua", **fields: Any) -> bytes:
    """As Python's json writes it: letters that are not ASCII are \\uXXXX."""
    names = {"u": "user", "a": "assistant", "s": "system"}
    messages = [{"role": names[role], "content": text} for role, text in zip(roles, texts, strict=False)]
    return json.dumps({"messages": messages, "model": "qwen3:4b", **fields}).encode()


def test_what_haproxy_reads_of_a_body(passed: Any) -> None:
    beginnings = [
        chat("Привет", "Да", "Ещё"),
        chat("Пока"),
        chat("back\\u0441lash"),
        chat("Будь краток", "Привет", roles="su"),
        chat("Будь краток", "Пока", roles="su"),
        chat("Be brief", "Пока", roles="su"),
        chat("Пока", system="Будь точен"),
        json.dumps({"model": "qwen3:4b", "input": "Привет"}).encode(),
        json.dumps({"model": "qwen3:4b", "input": "Пока"}).encode(),
        json.dumps({"model": "qwen3:4b", "prompt": "Пока"}).encode(),
    ]
    again = chat("Привет", "Да", "Ещё", "Нет", stream=True)
    heads = passed([("/v1/chat/completions", body) for body in [again, *beginnings]])
    first, *others = [head.get("x-trilithon-conversation") for head in heads]
    assert first == others[0]
    assert len(set(others)) == len(others)
    assert heads[0].get("x-trilithon-client") == "ann"

    generate = json.dumps({"model": "qwen3:4b", "prompt": "Пока", "keep_alive": 0}).encode()
    shown, generated, absent, unnamed = passed(
        [
            ("/api/show", b'{"name": "Qwen3:4b"}'),
            ("/api/generate", generate),
            ("/api/chat", b'{"model": "%b"}' % (b"n" * 100_000)),
            ("/api/chat", b'{"name": "qwen3:4b"}'),
        ]
    )
    assert (
        shown.get("x-trilithon-backend") == generated.get("x-trilithon-backend") == heads[0].get("x-trilithon-backend")
    )
    assert (absent.status_code, "no board has the model 'nnn" in absent.text) == (404, True)
    assert (unnamed.status_code, "model is required" in unnamed.text) == (400, True)
    (refused,) = passed([("/api/chat", chat("hi"))], "trl-of-nobody")
    assert refused.status_code == 401
