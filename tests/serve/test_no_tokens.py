"""A limit of no tokens, in every API: the prompt is evaluated, and nothing is generated; and the paths without /v1."""

import json
from pathlib import Path
from typing import Any

import pytest
from live_server import Serve

from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.serve.no_tokens import one_token

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("placement", ["scripted/cpu:prefill=50000,decode=5000", "llama.cpp@embedded/cpu"])
def test_nothing_is_generated(serve: Serve, tmp_path: Path, placement: str) -> None:
    http = serve(write_tiny_model(tmp_path / "tiny.gguf", seed=1), placement=placement).http

    def posted(path: str, **body: Any) -> dict[str, Any]:
        answer = http.post(path, json={"model": "tiny", **body})
        assert answer.status_code == 200, answer.text
        value = answer.json()
        assert isinstance(value, dict)
        return value

    for limit in ("max_tokens", "max_completion_tokens"):
        chat = posted("/v1/chat/completions", messages=MESSAGES, **{limit: 0})
        choice = chat["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
        assert chat["usage"]["completion_tokens"] == 0 < chat["usage"]["prompt_tokens"] == chat["usage"]["total_tokens"]
    several = posted("/v1/chat/completions", messages=MESSAGES, max_tokens=0, n=2)
    assert [choice["message"]["content"] for choice in several["choices"]] == ["", ""]
    text = posted("/v1/completions", prompt="hi", max_tokens=0, echo=True)
    assert (text["choices"][0]["text"], text["usage"]["completion_tokens"]) == ("hi", 0)
    message = posted("/v1/messages", messages=MESSAGES, max_tokens=0)
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == ([], "max_tokens", 0)
    own = posted("/completion", prompt="hi", n_predict=0)
    assert (own["content"], own["tokens_predicted"]) == ("", 0)
    stream = {"model": "tiny", "messages": MESSAGES, "max_tokens": 0, "stream": True}
    lines = http.post("/v1/chat/completions", json=stream).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-2]]
    assert not any(choice["delta"].get("content") for choices in deltas for choice in choices)
    assert [choice["finish_reason"] for choices in deltas for choice in choices][-1] == "length"


def test_only_nought_is_no_token() -> None:
    assert one_token({"max_tokens": 0, "a": 1}) == {"max_tokens": 1, "n_predict": 1, "a": 1}
    for body in ({"max_tokens": 1}, {"n_predict": -1}, {}, {"max_tokens": None, "n_predict": 3}, {"n_predict": False}):
        assert one_token(body) is None


def test_paths_of_llama_server(serve: Serve, tiny: Path) -> None:
    http = serve(tiny).http
    assert http.get("/v1/health").json() == http.get("/health").json()
    assert http.get("/models").json() == http.get("/v1/models").json()
    answer = http.post("/chat/completions", json={"model": "tiny", "messages": MESSAGES, "max_tokens": 2})
    assert answer.json()["object"] == "chat.completion"
