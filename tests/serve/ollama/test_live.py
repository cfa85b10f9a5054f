"""Ollama's API over real HTTP: the scripted engine, llama.cpp itself, and Ollama's own client."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from live_server import Serve, Server

from trilithon.models.synthetic.tiny import write_tiny_model

LLAMA = "llama.cpp@embedded/cpu"
TEMPLATE = (
    "{%- if tools %}{{ tools | tojson }}{% endif -%}"
    "{%- for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor -%}"
    "<|assistant|>"
)
THINKING = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def agree(last: dict[str, Any]) -> None:
    """Counts and durations of a last line."""
    assert last["done"] is True
    assert last["total_duration"] >= last["prompt_eval_duration"] + last["eval_duration"]
    assert last["timings"]["prompt_n"] == last["prompt_eval_count"]
    assert last["timings"]["decode_unit"] == "cpu"
    assert last["created_at"].endswith("Z")
    assert datetime.fromisoformat(last["created_at"][:26] + "+00:00") <= datetime.now(UTC)


@pytest.fixture
def server(serve: Serve, tiny: Path) -> Server:
    return serve(tiny)


def test_what_clients_look_at_first(server: Server) -> None:
    assert server.http.get("/").text == "Ollama is running"
    assert server.http.head("/").status_code == 200
    version = server.http.get("/api/version").json()["version"]
    assert all(part.isdecimal() for part in version.split("."))
    assert server.http.head("/api/version").status_code == server.http.head("/api/tags").status_code == 200
    assert server.http.get("/api/status").json()["cloud"]["disabled"] is True


@pytest.mark.parametrize(("language", "title"), [("en-GB,ru;q=0.5", "is running"), ("ru-RU,en;q=0.5", "работает")])
def test_a_person_is_told_more_than_clients_are(server: Server, language: str, title: str) -> None:
    """Without web pages; with them, the chat is at this address."""
    page = server.http.get("/", headers={"accept": "text/html,*/*;q=0.8", "accept-language": language})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<h1>Trilithon {title}</h1>" in page.text
    assert "Ollama is running" not in page.text
    assert f"OPENAI_BASE_URL={str(server.http.base_url).rstrip('/')}/v1" in page.text
    assert "<code>make install</code>" in page.text
    assert server.http.get("/", headers={"accept": "*/*"}).text == "Ollama is running"


def test_a_model_that_is_loaded_twice_is_listed_once(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement=LLAMA)
    http = server.http
    assert http.post("/api/chat", json={"model": server.model}).status_code == 200
    for _ in range(2):
        answer = http.post("/api/embed", json={"model": server.model, "input": "stone"}).json()
        assert answer["load_duration"] >= 0  # ollama-ai-provider-v2 needs it
    assert "load_duration" in http.post("/api/embed", json={"model": server.model, "input": ""}).json()
    unnamed = http.post("/v1/embeddings", json={"input": "stone"}).json()
    assert (unnamed["model"], len(unnamed["data"])) == (server.model, 1)
    assert len(server.pool.loaded()) == 2
    (row,) = http.get("/api/ps").json()["models"]
    assert (row["name"], row["placement"], len(row["also_loaded"])) == (server.model, LLAMA, 1)
    assert row["size"] > row["also_loaded"][0]["size"]


def test_a_chat_streams_by_itself(server: Server) -> None:
    asked = {"model": server.model, "messages": [{"role": "user", "content": "hello"}], "options": {"num_predict": 5}}
    *pieces, last = lines_of(server.http.post("/api/chat", json=asked))
    assert pieces
    assert all(piece["message"]["role"] == "assistant" and not piece["done"] for piece in pieces)
    assert last["done_reason"] == "length"
    assert last["eval_count"] == 5
    assert last["message"]["content"] == ""
    agree(last)
    whole = server.http.post("/api/chat", json=asked | {"stream": False}).json()
    assert whole["message"]["content"] == "".join(piece["message"]["content"] for piece in pieces)
    agree(whole)


def test_what_was_in_the_cache_is_counted_apart(server: Server) -> None:
    asked = {"model": server.model, "prompt": "hello there", "stream": False, "options": {"num_predict": 2}}
    cold = server.http.post("/api/generate", json=asked).json()
    warm = server.http.post("/api/generate", json=asked).json()
    assert "prompt_cached_count" not in cold
    assert cold["load_duration"] > 0
    assert "load_duration" not in warm
    assert warm["prompt_cached_count"] + warm["prompt_eval_count"] == cold["prompt_eval_count"]
    assert warm["prompt_eval_count"] < cold["prompt_eval_count"]


def test_an_empty_prompt_loads_and_unloads(server: Server) -> None:
    for path, empty in (("/api/generate", {"prompt": ""}), ("/api/chat", {"messages": []})):
        loaded = server.http.post(path, json={"model": server.model, "keep_alive": "1h30m"} | empty).json()
        assert loaded["done_reason"] == "load"
        assert loaded["load_duration"] > 0
        (row,) = server.http.get("/api/ps").json()["models"]
        left = datetime.fromisoformat(row["expires_at"]) - datetime.now(UTC)
        assert 5300 < left.total_seconds() <= 5400
        unloaded = server.http.post(path, json={"model": server.model, "keep_alive": 0} | empty).json()
        assert unloaded["done_reason"] == "unload"
        assert server.http.get("/api/ps").json() == {"models": []}


def test_a_negative_keep_alive_is_for_ever(server: Server) -> None:
    for keep_alive in (-1, 60, "-1", "1m", "-1m"):
        server.http.post("/api/generate", json={"model": server.model, "keep_alive": keep_alive})
        (row,) = server.http.get("/api/ps").json()["models"]
        assert (datetime.fromisoformat(row["expires_at"]).year > 2300) == str(keep_alive).startswith("-")
    assert row["decode_unit"] == "cpu"
    assert row["size_vram"] == 0
    assert len(row["digest"]) == 64


def test_keep_alive_0_unloads_after_the_answer(server: Server) -> None:
    server.http.post("/api/generate", json={"model": server.model, "prompt": "hi", "keep_alive": 0, "stream": False})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not server.http.get("/api/ps").json()["models"]:
            return
    pytest.fail("it is still loaded")


def test_an_unknown_model_is_told_in_ollamas_words(server: Server) -> None:
    for path in ("/api/generate", "/api/chat", "/api/show", "/api/embed", "/api/delete"):
        method = "DELETE" if path == "/api/delete" else "POST"
        for name in ("nobody", "/etc/passwd", "../x"):
            answer = server.http.request(method, path, json={"model": name, "prompt": "x", "input": "x"})
            assert (answer.status_code, answer.json()) == (404, {"error": f"model '{name}' not found"})
        assert server.http.request(method, path, json={}).status_code == 400


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"think": True}, "does not support thinking"),
    ({"think": "very"}, "invalid value for 'think'"),
    ({"format": "xml"}, "invalid format"),
    ({"top_logprobs": 3}, "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "less than or equal to 20"),
    ({"options": {"temperature": "hot"}}, "temperature"),
    ({"keep_alive": "soon"}, "not a duration"),
    ({"raw": True, "system": "x"}, "raw mode does not support"),
    ({"raw": True, "format": "json"}, "format needs the model's own template"),
    ({"images": ["bm90IGEgcGljdHVyZQ=="]}, "not an image"),
    ({"template": "{{ range .Messages }}x{{ end }}"}, "not supported in a request"),
    ({"prompt": 3}, "valid string"),
    ({"prompt": "\ud800"}, "surrogate"),
]


def test_what_cannot_be_is_refused_by_name(server: Server) -> None:
    for body, words in REFUSED:
        asked = json.dumps({"model": server.model, "prompt": "x"} | body)
        answer = server.http.post("/api/generate", content=asked, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body
        assert words in answer.json()["error"]


def test_what_means_nothing_here_is_named(server: Server) -> None:
    asked = {"model": server.model, "prompt": "x", "shift": True, "context": [1, 2], "width": 3}
    answer = server.http.post("/api/generate", json=asked | {"options": {"num_gpu": 9, "warp": 1, "num_predict": 1}})
    assert answer.headers["x-trilithon-ignored"] == "context, options.num_gpu, options.warp, shift, width"


def test_an_error_in_the_middle_is_a_line(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement="scripted/cpu:prefill=50000,decode=5000,crash_after=3")
    first, *_, last = lines_of(server.http.post("/api/generate", json={"model": server.model, "prompt": "hi"}))
    assert first["response"]
    assert list(last) == ["error"]


def test_whoever_leaves_ends_the_work(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement="scripted/cpu:prefill=50000,decode=20")
    asked = {"model": server.model, "prompt": "hi"}
    with server.http.stream("POST", "/api/generate", json=asked) as answer:
        assert json.loads(next(answer.iter_lines()))["response"]
    server.http.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        (row,) = httpx.get(f"{server.url}/api/ps").json()["models"]
        if row["requests"] == 0:
            return
    pytest.fail("it still works for nobody")


def test_what_home_assistant_and_open_webui_ask(serve: Serve, talkers: list[Path]) -> None:
    server = serve(talkers[0], placement=LLAMA)
    http = server.http
    (row,) = http.get("/api/tags").json()["models"]
    asked = {
        "model": row["model"],
        "messages": [{"role": "system", "content": "You are a house."}, {"role": "user", "content": "hello"}],
        "tools": [{"type": "function", "function": {"name": "HassTurnOn", "parameters": {"type": "object"}}}],
        "stream": True,
        "keep_alive": "-1s",
        "options": {"num_ctx": 8192, "num_predict": 10},
        "think": False,
    }
    *_, last = lines_of(http.post("/api/chat", json=asked))
    assert last["done"] is True
    (running,) = http.get("/api/ps").json()["models"]
    datetime.fromisoformat(running["expires_at"])
    assert running["context_length"] == 2048  # what the model was trained for
    assert http.post("/api/generate", json={"model": row["model"], "prompt": "", "keep_alive": 0}).status_code == 200
    assert http.get("/api/ps").json() == {"models": []}


def test_suffixes_need_a_model_that_fills_in(server: Server) -> None:
    answer = server.http.post("/api/generate", json={"model": server.model, "prompt": "a", "suffix": "b"})
    assert (answer.status_code, answer.json()["error"]) == (400, f'"{server.model}" does not support insert')


@pytest.fixture(scope="module")
def talkers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Tiny models whose templates offer tools; that of the second thinks too."""
    folder = tmp_path_factory.mktemp("talkers")
    return [
        write_tiny_model(folder / "talker.gguf", template=TEMPLATE),
        write_tiny_model(folder / "thinker.gguf", template=TEMPLATE + THINKING),
    ]


@pytest.fixture
def client(serve: Serve, talkers: list[Path]) -> Iterator[ollama.Client]:
    """Ollama's own client, before llama.cpp."""
    with ollama.Client(host=serve(*talkers, placement=LLAMA).url) as client:
        yield client


MODEL, THINKER = "talker:latest", "thinker:latest"


def test_ollamas_client_lists_and_shows(client: ollama.Client) -> None:
    models = client.list().models
    assert {row.model for row in models} == {MODEL, THINKER}
    row = models[0]
    assert row.digest is not None and len(row.digest) == 64
    assert row.details is not None and row.details.family == "llama"
    shown = client.show(MODEL)
    assert shown.capabilities == ["completion", "tools"]
    assert client.show(THINKER).capabilities == ["completion", "tools", "thinking"]
    assert shown.template is not None and "tools" in shown.template
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 2048


def test_ollamas_client_generates(client: ollama.Client) -> None:
    options = {"num_predict": 8, "seed": 7, "temperature": 0.5, "num_ctx": 512}
    one = client.generate(MODEL, "hello", options=options)
    assert one.eval_count == 8
    assert one.done_reason == "length"
    parts = list(client.generate(MODEL, "hello", options=options, stream=True))
    assert "".join(part.response or "" for part in parts) == one.response
    raw = client.generate(MODEL, "hello", raw=True, options=options)
    filled = client.generate(MODEL, "hello", template="{{ .Prompt }}", options=options)
    assert raw.response == filled.response


def test_thoughts_stand_apart(serve: Serve, talkers: list[Path]) -> None:
    server = serve(talkers[1], placement="scripted/cpu:prefill=50000,decode=5000,thinking=hm,text=four")
    for path, where in (("/api/chat", "content"), ("/api/generate", "response")):
        asked = {"model": THINKER, "messages": [{"role": "user", "content": "2+2?"}], "prompt": "2+2?"}
        *pieces, last = lines_of(server.http.post(path, json=asked | {"think": "high"}))
        told = [piece.get("message", piece) for piece in pieces]
        assert "".join(each.get("thinking", "") for each in told) == "hm"
        assert "".join(each[where] for each in told) == "four"
        assert last["done_reason"] == "stop"
        whole = server.http.post(path, json=asked | {"stream": False}).json()
        whole = whole.get("message", whole)
        assert (whole["thinking"], whole[where]) == ("hm", "four")


def test_ollamas_client_does_without_thoughts(client: ollama.Client) -> None:
    for model in (MODEL, THINKER):
        assert client.generate(model, "go", think=False, options={"num_predict": 4}).response
    with pytest.raises(ollama.ResponseError, match=f'"{MODEL}" does not support thinking'):
        client.generate(MODEL, "go", think=True)


def test_ollamas_client_holds_an_answer_to_a_schema(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    options = {"num_predict": 64, "temperature": 0}
    answer = client.chat(MODEL, [{"role": "user", "content": "go"}], format=schema, options=options)
    assert isinstance(json.loads(answer.message.content or "")["ok"], bool)
    one = client.generate(MODEL, "go", format="json", options=options | {"num_predict": 200, "seed": 1})
    assert (one.response or "").lstrip().startswith("{")


def test_ollamas_client_gets_logprobs(client: ollama.Client) -> None:
    for asked in ({"raw": True}, {"raw": False}):
        options = {"num_predict": 4, "temperature": 0}
        answer = client.generate(MODEL, "hello", logprobs=True, top_logprobs=3, options=options, **asked)
        assert answer.logprobs is not None
        assert 1 <= len(answer.logprobs) <= 4  # llama.cpp tells no probability of a part of a character
        for each in answer.logprobs:
            assert each.logprob <= 0
            assert each.top_logprobs is not None and len(each.top_logprobs) == 3


def test_ollamas_client_embeds(client: ollama.Client) -> None:
    answer = client.embed(MODEL, ["one", "two words"])
    assert len(answer.embeddings) == 2
    assert sum(number**2 for number in answer.embeddings[0]) == pytest.approx(1, abs=1e-3)
    assert answer.prompt_eval_count
    short = client.embed(MODEL, "one", dimensions=8).embeddings[0]
    assert len(short) == 8
    assert sum(number**2 for number in short) == pytest.approx(1, abs=1e-3)
    assert len(client.embeddings(MODEL, "one").embedding) == len(answer.embeddings[0])
    long = "word " * 5000
    assert len(client.embed(MODEL, long).embeddings[0]) == len(answer.embeddings[0])
    with pytest.raises(ollama.ResponseError):
        client.embed(MODEL, long, truncate=False)


def test_ollamas_client_offers_tools(client: ollama.Client) -> None:
    def add(a: int, b: int) -> int:
        """Add.

        Args:
          a: one number
          b: another
        """
        return a + b

    messages = [
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]},
        {"role": "tool", "tool_name": "add", "content": "3"},
    ]
    answer = client.chat(MODEL, messages, tools=[add], options={"num_predict": 4})
    assert answer.eval_count == 4


def test_ollamas_client_is_told_what_is_wrong(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate("nobody", "x")
    assert caught.value.status_code == 404
    picture = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    with pytest.raises(ollama.ResponseError, match="does not support images"):
        client.chat(MODEL, [{"role": "user", "content": "what?", "images": [picture]}])
    with pytest.raises(ollama.ResponseError, match="context"):
        client.generate(MODEL, "word " * 9000)
