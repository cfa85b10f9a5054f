"""Requests that the kind of a model rules out: 400 in the dialect's own words, and no engine starts."""

from pathlib import Path
from typing import Any

import pytest
from live_server import Serve
from other_ggufs import write_adapter, write_bert, write_gguf

from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import model_name
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.settings import Configuration

SAID = [{"role": "user", "content": "x"}]


@pytest.fixture
def minilm(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "minilm.gguf", {"general.architecture": "bert", "bert.pooling_type": 1})


@pytest.fixture
def ranker(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "ranker.gguf", {"general.architecture": "qwen3", "qwen3.pooling_type": 4})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["minilm", "ranker"])
@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/chat", {"messages": SAID}, "chat"),
        ("/api/generate", {"prompt": "x"}, "generate"),
        ("/api/generate", {"prompt": "x", "raw": True}, "generate"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "generate"),
    ],
)
def test_in_ollamas_words(
    serve: Serve, minilm: Path, ranker: Path, name: str, path: str, body: dict[str, Any], words: str, stream: bool
) -> None:
    server = serve(minilm, ranker)
    answer = server.http.post(path, json={"model": name, **body, "stream": stream})
    assert (answer.status_code, answer.json()) == (400, {"error": f'"{name}" does not support {words}'})
    assert server.pool.loaded() == ()


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/chat/completions", {"messages": SAID}, "chat"),
        ("/v1/chat/completions", {"messages": SAID, "n": 2}, "chat"),
        ("/v1/completions", {"prompt": "x"}, "completion"),
        ("/v1/responses", {"input": "x"}, "chat"),
        ("/completion", {"prompt": "x"}, "completion"),
        ("/apply-template", {"messages": SAID}, "chat"),
    ],
)
@pytest.mark.parametrize("name", ["minilm", "ranker:latest"])
@pytest.mark.parametrize("stream", [False, True])
def test_in_openais_form(
    serve: Serve, minilm: Path, ranker: Path, name: str, path: str, body: dict[str, Any], words: str, stream: bool
) -> None:
    server = serve(minilm, ranker)
    streams = {} if path == "/apply-template" else {"stream": stream}
    answer = server.http.post(path, json={"model": name, **body, **streams})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith(f'"{name}" does not support {words}; it ')
    assert (error["type"], error["param"]) == ("invalid_request_error", "model")
    assert server.pool.loaded() == ()


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_in_anthropics_form(serve: Serve, minilm: Path, path: str) -> None:
    server = serve(minilm)
    body = {"model": "minilm", "messages": SAID} | ({} if path.endswith("tokens") else {"max_tokens": 5})
    answer = server.http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["message"].startswith('"minilm" does not support chat')
    assert server.pool.loaded() == ()


def test_what_ranks_makes_no_vectors_and_the_other_way_round(serve: Serve, minilm: Path, ranker: Path) -> None:
    server = serve(minilm, ranker)
    for path in ("/v1/embeddings", "/api/embed"):
        answer = server.http.post(path, json={"model": "ranker", "input": "x"})
        assert answer.status_code == 400
        assert '"ranker" does not support embeddings' in answer.text.replace("\\", "")
    answer = server.http.post("/v1/rerank", json={"model": "minilm", "query": "a", "documents": ["b"]})
    assert answer.status_code == 400 and "does not rank texts" in answer.json()["error"]["message"]
    assert server.pool.loaded() == ()


def test_what_show_and_tags_say_of_it(serve: Serve, minilm: Path, ranker: Path, tiny: Path) -> None:
    http = serve(minilm, ranker, tiny).http
    kinds = {
        "minilm": ("embedding", ["embedding"]),
        "ranker": ("reranker", ["rerank"]),
        "tiny": ("base", ["completion"]),
    }
    for name, (kind, able) in kinds.items():
        shown = http.post("/api/show", json={"model": name}).json()
        assert (shown["kind"], shown["capabilities"]) == (kind, able)
    tags = {row["name"]: row["capabilities"] for row in http.get("/api/tags").json()["models"]}
    assert tags == {f"{name}:latest": able for name, (_, able) in kinds.items()}


def test_an_embedding_model_counts_tokens_loads_and_makes_vectors(serve: Serve, tmp_path: Path) -> None:
    """A real engine: it is loaded once, for vectors."""
    server = serve(write_tiny_model(tmp_path / "small.gguf", pooling=1), placement="llama.cpp/cpu:t=1")
    assert server.http.post("/tokenize", json={"content": "two stones"}).json()["tokens"]
    answer = server.http.post("/api/embed", json={"model": "small", "input": ["one", "two"]})
    assert [len(vector) for vector in answer.json()["embeddings"]] == [64, 64]
    assert server.http.post("/api/generate", json={"model": "small"}).json()["done_reason"] == "load"
    assert [loaded.key for loaded in server.pool.loaded()] == ["small:latest (vectors)"]
    answer = server.http.post("/api/chat", json={"model": "small", "messages": SAID})
    assert (answer.status_code, answer.json()) == (400, {"error": '"small" does not support chat'})
    assert server.http.post("/api/generate", json={"model": "small", "keep_alive": 0}).status_code == 200


@pytest.mark.slow
def test_a_real_bert_does_what_it_is_for_and_nothing_else(serve: Serve, tmp_path: Path) -> None:
    """Each would abort when it is asked to chat: llama.cpp's server expects a decoder."""
    makers: list[dict[str, Any]] = [{"pooling": 1}, {}, {"pooling": 2}, {"ranks": True}, {"pooling": 4, "ranks": True}]
    files = [write_bert(tmp_path / f"bert{number}.gguf", **words) for number, words in enumerate(makers)]
    server = serve(*files, placement="llama.cpp/cpu:t=1")
    for path, words in zip(files, makers, strict=True):
        if words.get("ranks"):
            body = {"model": path.stem, "query": "abc", "documents": ["abc", "xyz"]}
            results = server.http.post("/v1/rerank", json=body).json()["results"]
            assert len({row["relevance_score"] for row in results}) == 2
        else:
            answer = server.http.post("/api/embed", json={"model": path.stem, "input": ["abc", "de"]})
            assert [len(vector) for vector in answer.json()["embeddings"]] == [64, 64]
        answer = server.http.post("/api/chat", json={"model": path.stem, "messages": SAID})
        assert (answer.status_code, answer.json()) == (400, {"error": f'"{path.stem}" does not support chat'})


def test_a_stored_adapter_is_the_clients_mistake(
    serve: Serve, configuration: Configuration, tiny: Path, tmp_path: Path
) -> None:
    """Earlier releases stored one as a model."""
    with ModelStore.open(configuration) as store:
        path = write_adapter(tmp_path / "style.gguf")
        digest = store.add(path)
        file = StoredFile(
            role="weights", digest=digest, size_bytes=path.stat().st_size, name="style.gguf", format="gguf"
        )
        store.put(Manifest(name=model_name("style"), files=(file,), source="here", created=now()))
    server = serve(tiny)
    for path_asked in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        body = {"model": "style", "messages": SAID, "max_tokens": 5} if "v1" in path_asked else {}
        answer = server.http.post(path_asked, json=body or {"model": "style", "messages": SAID})
        assert answer.status_code == 400
        assert "is a LoRA adapter: no engine runs it alone; name it with ADAPTER" in answer.text
    assert server.pool.loaded() == ()
