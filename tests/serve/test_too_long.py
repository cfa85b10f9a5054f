"""An input that is longer than the model's context: 400 in the words that each dialect's clients look for."""

import re
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from live_server import Serve

from trilithon.models.synthetic.tiny import write_tiny_model

LONG = "word " * 900
CHAT = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 4}
ENGINES = ["llama.cpp/cpu:t=1,c=256", "scripted/cpu:c=256"]
FIX = "--context"


@pytest.mark.parametrize("placement", ENGINES)
def test_a_prompt_in_every_dialect(serve: Serve, tiny: Path, placement: str) -> None:
    http = serve(tiny, placement=placement).http
    for stream in (False, True):
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/v1/completions", {"prompt": LONG}),
            ("/v1/responses", {"input": LONG}),
        ):
            answer = http.post(path, json={"model": "tiny", "stream": stream, **body})
            error = answer.json()["error"]
            assert answer.status_code == 400, path
            assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")
            assert error["n_ctx"] == 256 < error["n_prompt_tokens"]
            assert "exceeds the available context size" in error["message"]
            assert "maximum context length is 256 tokens" in error["message"]
            assert f"{error['n_prompt_tokens']} tokens" in error["message"]
            assert FIX in error["message"]
        answer = http.post("/v1/messages", json={"model": "tiny", "stream": stream, **CHAT})
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
        assert re.match(r"prompt is too long: \d+ tokens > 256 maximum", error["message"])
        assert FIX in error["message"]
        for path, body in (("/api/chat", {"messages": CHAT["messages"]}), ("/api/generate", {"prompt": LONG})):
            answer = http.post(path, json={"model": "tiny", "stream": stream, **body})
            assert answer.status_code == 400
            assert re.search(r"exceeds the context length: \d+ tokens > 256 maximum", answer.json()["error"])
        answer = http.post("/completion", json={"prompt": LONG, "stream": stream})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (400, 400, "exceed_context_size_error")
        assert error["n_ctx"] == 256 < error["n_prompt_tokens"]


@pytest.mark.parametrize("placement", ENGINES)
def test_an_input_of_an_embedding(serve: Serve, tiny: Path, tmp_path: Path, placement: str) -> None:
    path = write_tiny_model(tmp_path / "vectors.gguf", pooling=1, context=256)
    http = serve(path, placement=placement.replace("c=256", "c=128")).http
    for texts in (LONG, ["short", LONG], [[5] * 900]):
        answer = http.post("/v1/embeddings", json={"model": "vectors", "input": texts})
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")
        assert error["n_ctx"] == 128 < error["n_prompt_tokens"]
        assert f"{FIX}, num_ctx" in error["message"] and "up to 256" in error["message"]
    answer = http.post("/api/embed", json={"model": "vectors", "input": LONG, "truncate": False})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the input length exceeds the context length: ")
    for path_asked, body in (("/api/embed", {"input": ["short", LONG]}), ("/api/embeddings", {"prompt": LONG})):
        assert http.post(path_asked, json={"model": "vectors", **body}).status_code == 200


def test_a_model_at_its_own_limit_says_so(serve: Serve, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "vectors.gguf", pooling=1, context=128)
    http = serve(path, placement=ENGINES[0].replace("c=256", "c=128")).http
    answer = http.post("/v1/embeddings", json={"model": "vectors", "input": LONG})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "maximum context length is 128 tokens" in message
    assert FIX not in message and "shorten" in message


def test_the_clients_know_it(serve: Serve, tiny: Path) -> None:
    server, asked = serve(tiny, placement=ENGINES[0]), dict[str, Any](model="tiny", **CHAT)
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError) as refused,
    ):
        client.chat.completions.create(**asked)
    assert refused.value.code == "context_length_exceeded"
    with (
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as claude,
        pytest.raises(anthropic.BadRequestError, match="prompt is too long"),
    ):
        claude.messages.create(**asked)
