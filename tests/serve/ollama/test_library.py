"""What changes the library by Ollama's API: pulls, uploads, models made of them, copies and removals."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from live_server import Serve, Server
from standin_registry import RegistryStandIn
from standin_web import Fault

from trilithon.models.fetch.pull import PullStep
from trilithon.models.names import parse_reference
from trilithon.models.store.locks import try_lock
from trilithon.models.store.model_store import ModelStore
from trilithon.serve.ollama.library import _CreateReport
from trilithon.settings import Configuration, load_configuration


@pytest.fixture
def configuration(home: Path) -> Configuration:
    """Its owner allows pulls from registries on this machine."""
    return load_configuration({**os.environ, "TRILITHON_PULL_HOSTS": "127.0.0.1"})


@pytest.fixture
def server(serve: Serve) -> Server:
    """With an empty store."""
    return serve()


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as client:
        yield client


@pytest.fixture
def registry() -> Iterator[RegistryStandIn]:
    with RegistryStandIn() as registry:
        yield registry


@pytest.fixture
def uploaded(client: ollama.Client, tiny: Path) -> str:
    """The digest of a model that was sent to the server."""
    return client.create_blob(tiny)


def test_a_blob_is_sent_once(server: Server, client: ollama.Client, uploaded: str, tiny: Path) -> None:
    assert uploaded == f"sha256:{hashlib.sha256(tiny.read_bytes()).hexdigest()}"
    path = f"/api/blobs/{uploaded}"
    assert server.http.head(path).status_code == 200
    assert server.http.post(path, content=tiny.read_bytes()).status_code == 200
    assert server.http.head(f"/api/blobs/sha256:{'0' * 64}").status_code == 404
    wrong = server.http.post(f"/api/blobs/sha256:{'0' * 64}", content=b"GGUF")
    assert wrong.status_code == 400
    assert server.http.head(f"/api/blobs/sha256:{'0' * 64}").status_code == 404
    for digest in ("sha256:short", "md5:" + "0" * 64, "..%2f..%2fetc", "sha256:" + "Z" * 64):
        assert server.http.post(f"/api/blobs/{digest}", content=b"x").status_code in (400, 404)


def test_a_model_is_made_of_a_blob_and_answers(client: ollama.Client, uploaded: str) -> None:
    said: dict[str, Any] = {
        "system": "be brief",
        "parameters": {"temperature": 0.1, "stop": ["<end>"], "num_predict": 3},
        "license": ["MIT", "more"],
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }
    statuses = [part.status for part in client.create("mine:one", files={"m.gguf": uploaded}, stream=True, **said)]
    assert statuses == [f"using existing layer {uploaded}", "writing manifest", "success"]
    shown = client.show("mine:one")
    assert shown.parameters is not None and 'stop                           "<end>"' in shown.parameters
    assert shown.license == "MIT\nmore"
    assert shown.modelfile is not None and "SYSTEM be brief" in shown.modelfile
    assert shown.details is not None and shown.details.quantization_level == "F16"
    answer = client.generate("mine:one", "hello")
    assert answer.eval_count == 3
    client.create("mine:two", from_="mine:one", system="be long")
    rows = {row.model: row for row in client.list().models}
    assert set(rows) == {"mine:one", "mine:two"}
    assert rows["mine:one"].digest != rows["mine:two"].digest


SOURCES = ("/etc/passwd", "./model.gguf", "../../x", "~/m.gguf", "https://example.com/m.gguf", "nobody:here")


def test_no_path_and_no_address_is_a_source(server: Server, client: ollama.Client) -> None:
    for source in SOURCES:
        answer = server.http.post("/api/create", json={"model": "x", "from": source})
        assert answer.status_code == 404, source
    assert client.list().models == []


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "neither 'from' or 'files'"),
    ({"files": {"m.gguf": f"sha256:{'0' * 64}"}}, 400, "there is no blob"),
    ({"files": {"m.gguf": "../../etc/passwd"}}, 400, "there is no blob"),
    ({"from": "y", "draft_files": {"m.gguf": f"sha256:{'0' * 64}"}}, 501, "leave draft_files out"),
    ({"from": "y", "model": "../x"}, 400, "is invalid"),
    ({"from": "y", "parameters": {"temperature": "hot"}}, 400, "temperature"),
    ({"from": "y", "messages": [{"role": "tool", "content": ""}]}, 400, "role"),
]


def test_what_makes_no_model_is_refused(server: Server) -> None:
    for body, status, words in REFUSED:
        answer = server.http.post("/api/create", json={"model": "x", "stream": False} | body)
        assert answer.status_code == status, body
        assert words in answer.json()["error"]


def test_a_copy_takes_a_name_and_a_removal_frees_it(server: Server, client: ollama.Client, uploaded: str) -> None:
    client.create("mine", files={"m.gguf": uploaded})
    client.copy("mine", "yours:v1")
    client.generate("mine", "hello", options={"num_predict": 1})
    client.delete("mine")
    assert [row.model for row in client.list().models] == ["yours:v1"]
    assert client.ps().models == []
    assert client.generate("yours:v1", "hello", options={"num_predict": 1}).eval_count == 1
    client.delete("yours:v1")
    assert server.http.head(f"/api/blobs/{uploaded}").status_code == 404
    for name in ("yours:v1", "../x", "/tmp"):
        with pytest.raises(ollama.ResponseError) as caught:
            client.delete(name)
        assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.copy("nobody", "x")
    assert server.http.post("/api/copy", json={"source": "mine", "destination": "../x"}).status_code == 400


def test_the_owners_files_stay(serve: Serve, tiny: Path) -> None:
    server = serve(tiny)
    answer = server.http.request("DELETE", "/api/delete", json={"name": server.model})
    assert answer.status_code == 400
    assert "remove it there" in answer.json()["error"]
    assert tiny.is_file()
    assert server.http.get("/api/tags").json()["models"][0]["name"] == server.model


def test_a_pull_tells_how_far_it_is(client: ollama.Client, registry: RegistryStandIn, tiny: Path) -> None:
    registry.add("library/tiny", "1", [("model", tiny.read_bytes()), ("system", "be brief"), ("license", "MIT")])
    name = f"{registry.host}/library/tiny:1"
    parts = list(client.pull(name, insecure=True, stream=True))
    assert parts[0].status == "pulling manifest"
    assert parts[-1].status == "success"
    statuses = [part.status for part in parts]
    assert statuses.index("writing manifest") == len(statuses) - 2
    told = [part for part in parts if part.total]
    assert told and told[0].digest is not None
    assert told[0].digest.startswith("sha256:")
    assert told[0].status == f"pulling {told[0].digest.removeprefix('sha256:')[:12]}"
    assert client.show(name).modelfile is not None
    assert client.pull(name, insecure=True).status == "success"


def test_an_unknown_model_to_pull_is_a_404(server: Server, registry: RegistryStandIn) -> None:
    for stream in (True, False):
        body = {"model": f"{registry.host}/library/none:1", "insecure": True, "stream": stream}
        answer = server.http.post("/api/pull", json=body)
        assert answer.status_code == 404
        assert answer.json()["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "10.0.0.1", "169.254.169.254"])
def test_a_pull_reaches_public_hosts_alone(serve: Serve, registry: RegistryStandIn, host: str) -> None:
    """Anyone who may use the server could have it ask the owner's network."""
    server = serve(configuration_of_its_own=load_configuration())
    port = registry.host.rpartition(":")[2]
    told = set()
    for place in (f"{host}:{port}", f"{host}:1", host):
        for insecure in (True, False):
            body = {"model": f"{place}/library/m:1", "insecure": insecure, "stream": False}
            answer = server.http.post("/api/pull", json=body)
            told.add((answer.status_code, answer.json()["error"]))
    ((status, message),) = told
    assert status == 400
    assert message.startswith(f"{host} is not a public host, and pulls over the API reach no others; ")
    assert message.endswith("or allow the host with pull_hosts in config.toml")
    assert registry.asked == []


def test_only_names_are_pulled(server: Server) -> None:
    for name in ("", "a b", "http://127.0.0.1:1/m.gguf", "https://example.com/m.gguf", "../m"):
        assert server.http.post("/api/pull", json={"name": name}).status_code in (400, 404)


def test_nothing_is_pushed(server: Server) -> None:
    answer = server.http.post("/api/push", json={"model": "x"})
    assert (answer.status_code, list(answer.json())) == (501, ["error"])


def test_a_model_that_cannot_be_read_is_still_listed(
    server: Server, client: ollama.Client, uploaded: str, configuration: Configuration
) -> None:
    client.create("mine", files={"m.gguf": uploaded})
    with ModelStore.open(configuration) as store:
        path = store.blob_path(uploaded.removeprefix("sha256:"))
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(b"X" * len(content))
    (row,) = server.http.get("/api/tags").json()["models"]
    assert (row["name"], row["capabilities"]) == ("mine:latest", [])
    assert row["details"]["quantization_level"] == "F16"
    assert server.http.post("/api/show", json={"model": "mine"}).status_code == 404


def test_steps_are_told_in_ollamas_words() -> None:
    told: list[dict[str, Any]] = []
    telling = _CreateReport(told.append)
    telling(PullStep("looking", str(parse_reference("a"))))
    assert told == []
    telling(PullStep("chosen", "the smallest that is good"))
    telling(PullStep("checking", "m.gguf"))
    telling(PullStep("checking", "m.gguf"))
    telling(PullStep("keeping", "m"))
    words = ["pulling manifest", "the smallest that is good", "verifying sha256 digest", "writing manifest"]
    assert [each["status"] for each in told] == words
    json.dumps(told)


def test_whoever_leaves_ends_the_pull(server: Server, registry: RegistryStandIn, configuration: Configuration) -> None:
    (digest,) = registry.add("library/big", "1", [("model", b"GGUF" + bytes(400_000))])
    registry.fault = lambda asked: Fault(pace=100_000) if asked.path.endswith(digest) else None
    body = {"model": f"{registry.host}/library/big:1", "insecure": True}
    with server.http.stream("POST", "/api/pull", json=body) as answer:
        lines = (json.loads(line) for line in answer.iter_lines())
        assert next(line for line in lines if line.get("completed"))["total"] == 400_004
    server.http.close()
    with ModelStore.open(configuration) as store:
        for _ in range(1200):
            held = try_lock(store.local, f"receive-sha256-{digest}")
            if held is not None:
                held.release()
                break
            time.sleep(0.05)
        assert held is not None
        assert not store.has(digest)
