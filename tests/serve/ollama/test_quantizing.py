"""Models in fewer bits by Ollama's API, with a stand-in for llama-quantize."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from live_server import Serve, Server
from process_table import goes
from standin_quantizer import QuantizerStandIn

from trilithon.engines.toolrun import conversions
from trilithon.errors import Interrupted
from trilithon.models.store.model_store import ModelStore
from trilithon.models.synthetic.tiny import requantise
from trilithon.serve.ollama.bodies import CreateBody
from trilithon.serve.ollama.library import _creating
from trilithon.serve.ollama.progress_stream import ProgressStream
from trilithon.settings import Configuration


@pytest.fixture
def quantizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuantizerStandIn:
    standin = QuantizerStandIn(tmp_path / "bin")
    standin.install()
    monkeypatch.setenv("PATH", f"{standin.folder}{os.pathsep}{os.environ['PATH']}")
    return standin


@pytest.fixture
def server(serve: Serve, tiny: Path) -> Server:
    """With one model in F16, and an empty store."""
    return serve(tiny)


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as client:
        yield client


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "small", "from": "tiny", "quantize": "Q8_0"} | more


def assert_nothing_kept(server: Server, configuration: Configuration) -> None:
    assert [row["name"] for row in server.http.get("/api/tags").json()["models"]] == [server.model]
    with ModelStore.open(configuration) as store:
        for folder in ("blobs", "partial"):
            assert store.local.names((folder,)) == []
    work = conversions(configuration)
    assert {each.suffix for each in work.iterdir()} <= {".log"}


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


@pytest.mark.usefixtures("quantizer")
def test_ollamas_client_makes_a_smaller_model(server: Server, client: ollama.Client, tiny: Path) -> None:
    said: dict[str, Any] = {"system": "be brief", "parameters": {"num_predict": 3}, "license": "MIT"}
    parts = list(client.create("small", from_="tiny", quantize="q8_0", stream=True, **said))
    statuses = [part.status or "" for part in parts]
    step = "quantizing F16 model to Q8_0"
    assert statuses[:3] == [step, step, "verifying conversion"]
    assert statuses[3].startswith("creating new layer sha256:")
    assert statuses[4:] == ["writing manifest", "success"]
    size = tiny.stat().st_size
    assert [(part.completed, part.total) for part in parts[:2]] == [(size // 2, size), (size, size)]
    details = client.show("small").details
    assert details is not None and details.quantization_level == "Q8_0"
    assert client.generate("small", "hello").eval_count == 3
    assert client.create("smaller", from_="tiny", quantize="Q4_0").status == "success"
    assert {row.model for row in client.list().models} == {"tiny:latest", "small:latest", "smaller:latest"}


@pytest.mark.usefixtures("quantizer")
def test_an_upload_and_the_older_name_of_the_field(server: Server, client: ollama.Client, tiny: Path) -> None:
    digest = client.create_blob(tiny)
    body = {"model": "small", "files": {"m.gguf": digest}, "quantization": "Q4_0", "stream": False}
    answer = server.http.post("/api/create", json=body)
    assert (answer.status_code, answer.json()) == (200, {"status": "success"})
    assert "X-Trilithon-Ignored" not in answer.headers
    shown = server.http.post("/api/show", json={"model": "small"}).json()
    assert shown["details"]["quantization_level"] == "Q4_0"


@pytest.mark.usefixtures("quantizer")
def test_a_model_can_take_its_own_place(server: Server, client: ollama.Client, tiny: Path) -> None:
    digest = client.create_blob(tiny)
    client.create("mine", files={"m.gguf": digest}, system="be brief")
    client.generate("mine", "hello", options={"num_predict": 1})
    client.create("mine", from_="mine", quantize="Q8_0")
    shown = client.show("mine")
    assert shown.details is not None and shown.details.quantization_level == "Q8_0"
    assert shown.modelfile is not None and "SYSTEM be brief" in shown.modelfile
    assert server.http.head(f"/api/blobs/{digest}").status_code == 404
    assert client.generate("mine", "hello", options={"num_predict": 1}).eval_count == 1


@pytest.mark.usefixtures("quantizer")
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_quantised_is_a_400(
    serve: Serve, configuration: Configuration, tiny: Path, tmp_path: Path, stream: bool
) -> None:
    coarse = requantise(tiny, tmp_path / "coarse.gguf", "Q4_0")
    server, base = serve(coarse), {"from": "coarse"}
    cases = [
        (asked(**base, quantize="Q9"), "Q9 is not a quantization; write for example"),
        (asked(**base, quantize="../../x"), "is not a quantization"),
        (asked(**base), "coarse.gguf is already Q4_0, and gets worse if quantised again; take the F16 file"),
        (asked(**{"from": None, "files": {"m.rkllm": "?"}}), "m.rkllm is not one; leave it out"),
    ]
    with ollama.Client(host=server.url) as client:
        digest = client.create_blob(tiny)
    for body, words in cases:
        sent = {"stream": stream} | body | ({"files": {"m.rkllm": digest}} if "files" in body else {})
        answer = server.http.post("/api/create", json=sent)
        assert (answer.status_code, list(answer.json())) == (400, ["error"]), sent
        assert words in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
    assert server.http.post("/api/create", json=asked(**{"from": "nobody"})).status_code == 404
    assert not conversions(configuration).exists()


def test_without_the_tool_the_fix_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    answer = server.http.post("/api/create", json=asked())
    assert answer.status_code == 501
    assert answer.json()["error"].endswith("compile one with: trilithon engines build")


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True])
def test_whoever_leaves_ends_it(
    server: Server, configuration: Configuration, quantizer: QuantizerStandIn, silent: bool
) -> None:
    halt = quantizer.folder / ("silent" if silent else "slow")
    halt.touch()
    if silent:  # and nothing was answered yet
        content = json.dumps(asked(stream=False))
        head = f"POST /api/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port)) as client:
            client.sendall((head + content).encode())
            until((quantizer.folder / "pid").exists)
    else:
        with server.http.stream("POST", "/api/create", json=asked()) as answer:
            assert json.loads(next(answer.iter_lines()))["status"] == "quantizing F16 model to Q8_0"
    assert goes(quantizer.pid())
    until(lambda: not any(each.is_dir() for each in conversions(configuration).iterdir()))
    assert_nothing_kept(server, configuration)
    halt.unlink()
    until(lambda: server.http.post("/api/create", json=asked(stream=False)).status_code == 200)


def test_one_at_a_time(server: Server, configuration: Configuration, quantizer: QuantizerStandIn) -> None:
    (quantizer.folder / "slow").touch()
    with server.http.stream("POST", "/api/create", json=asked()) as answer:
        lines = answer.iter_lines()
        next(lines)
        second = httpx.post(f"{server.url}/api/create", json=asked(model="other"), timeout=60)
        assert second.status_code == 503
        assert int(second.headers["Retry-After"]) >= 1
        assert "another model is being quantised" in second.json()["error"]
        (quantizer.folder / "slow").unlink()
        assert json.loads(list(lines)[-1]) == {"status": "success"}
    assert server.http.post("/api/create", json=asked(model="other", stream=False)).status_code == 200


def test_a_tool_that_is_killed(server: Server, configuration: Configuration, quantizer: QuantizerStandIn) -> None:
    (quantizer.folder / "slow").touch()
    with server.http.stream("POST", "/api/create", json=asked()) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(quantizer.pid(), signal.SIGKILL)
        (last,) = [json.loads(line) for line in lines]
    assert "llama-quantize failed: killed by signal 9 (Killed)" in last["error"]
    assert_nothing_kept(server, configuration)


def test_a_tool_that_finds_the_disk_full(
    server: Server, configuration: Configuration, quantizer: QuantizerStandIn
) -> None:
    """As llama-quantize says it."""
    quantizer.program.write_text("#!/bin/sh\necho 'failed to quantize: basic_ios::clear: iostream error'; exit 1\n")
    answer = server.http.post("/api/create", json=asked())
    assert answer.status_code == 507
    assert answer.json()["error"].endswith("is full; free some, or name a folder on another disk")
    assert_nothing_kept(server, configuration)


@pytest.mark.usefixtures("quantizer")
def test_whoever_leaves_at_the_very_end_has_the_model(server: Server) -> None:
    """What took minutes is in the store by then."""
    told: list[str] = []

    def tell(body: dict[str, Any]) -> None:
        told.append(body["status"])
        if body["status"].startswith("creating"):
            raise Interrupted("the client left")

    _creating(server.service.shelf, CreateBody.model_validate(asked()))(ProgressStream(tell, lambda: None))
    assert told[-1] == "writing manifest"
    assert "small:latest" in [row["name"] for row in server.http.get("/api/tags").json()["models"]]
