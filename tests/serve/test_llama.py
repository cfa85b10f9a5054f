"""llama-server's own endpoints, as its plain clients call them: without naming a model where there is only one."""

import json
from pathlib import Path

import pytest
from live_server import Serve


def test_counting_does_not_wait_for_answers(serve: Serve, tiny: Path) -> None:
    """While the only slot generates for ever; with llama-server too, which answers these between two tokens."""
    server = serve(tiny, placement="scripted/cpu:prefill=50000,decode=2")
    messages = [{"role": "user", "content": "hi"}]
    asked = {"model": server.model, "messages": messages, "stream": True, "max_tokens": 4000}
    with server.http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        next(answer.iter_lines())
        for path, body in {
            "/tokenize": {"content": "a"},
            "/detokenize": {"tokens": [1]},
            "/apply-template": {"messages": messages},
            "/v1/messages/count_tokens": {"messages": messages},
        }.items():
            assert server.http.post(path, json={"model": server.model} | body).status_code == 200


def test_tokens_there_and_back(serve: Serve, tiny: Path) -> None:
    http = serve(tiny, placement="llama.cpp/cpu").http
    tokens = http.post("/tokenize", json={"content": "two stones"}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json()["content"].strip() == "two stones"
    pieces = http.post("/tokenize", json={"model": "tiny", "content": "two stones", "with_pieces": True}).json()[
        "tokens"
    ]
    assert [piece["id"] for piece in pieces] == tokens


def test_the_template(serve: Serve, tiny: Path) -> None:
    answer = serve(tiny).http.post("/apply-template", json={"messages": [{"role": "user", "content": "hello"}]})
    assert answer.json()["prompt"] == "<|user|>\nhello\n<|assistant|>\n"
    assert answer.headers["x-trilithon-placement"].startswith("scripted/cpu")


def test_a_completion_whole_and_streamed(serve: Serve, tiny: Path) -> None:
    http = serve(tiny).http
    whole = http.post("/completion", json={"prompt": "hello", "n_predict": 3}).json()
    assert whole["content"] == "A trilit"
    assert whole["model"] == "tiny:latest"
    assert whole["timings"]["predicted_n"] == 3
    lines = http.post("/completion", json={"prompt": "hello", "n_predict": 3, "stream": True}).text.split("\n\n")
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert "".join(piece["content"] for piece in pieces) == whole["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_guessed_ahead_is_told_and_counted(serve: Serve, tiny: Path, stream: bool) -> None:
    http = serve(tiny, placement="llama.cpp@embedded/cpu:t=1,spec=ngram-map-k").http
    said = "the quick brown fox jumps over the lazy dog and then it runs far away from here. " * 12
    body = {"prompt": said, "n_predict": 300, "ignore_eos": True, "temperature": 0, "stream": stream}
    answer = http.post("/completion", json=body).text
    timings = json.loads(answer.split("\n\n")[-2].removeprefix("data: ") if stream else answer)["timings"]
    assert 0 <= timings["draft_n_accepted"] <= timings["draft_n"] and timings["draft_n"] > 0
    counted = http.get("/metrics").text
    for name, count in (("guessed", timings["draft_n"]), ("guessed_right", timings["draft_n_accepted"])):
        assert f'trilithon_{name}_tokens_total{{model="tiny:latest",unit="cpu"}} {count:.1f}' in counted


def test_what_is_guessed_ahead_has_no_probabilities(serve: Serve, tiny: Path) -> None:
    http = serve(tiny, placement="llama.cpp@embedded/cpu:t=1,spec=ngram-map-k").http
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    answer = http.post("/v1/chat/completions", json=chat | {"logprobs": True})
    assert answer.status_code == 400 and "without spec" in answer.json()["error"]["message"]
    assert http.post("/v1/chat/completions", json=chat).status_code == 200


def test_health_and_props(serve: Serve, tiny: Path) -> None:
    http = serve(tiny).http
    assert http.get("/health").json() == {"status": "ok"}
    props = http.get("/props").json()
    assert props["model_alias"] == "tiny:latest"
    assert props["default_generation_settings"]["n_ctx"] > 0
    assert props["is_loaded"] is False
    http.post("/tokenize", json={"content": "hello"})
    assert http.get("/props", params={"model": "tiny"}).json()["is_loaded"] is True


def test_what_a_client_may_not_say(serve: Serve, tiny: Path) -> None:
    http = serve(tiny).http
    for body in ({"prompt": "a", "id_slot": 0}, {"prompt": ["a", "b"]}, {"prompt": []}, {"prompt": None}):
        assert http.post("/completion", json=body).status_code == 400
    assert http.post("/detokenize", json={"tokens": [-1]}).status_code == 400
    assert http.post("/v1/rerank", json={"query": "a"}).status_code == 400


def test_two_models_must_be_told_apart(serve: Serve, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "other.gguf").symlink_to(tiny)
    http = serve(tiny, tmp_path / "other.gguf").http
    refused = http.post("/tokenize", json={"content": "hello"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert http.post("/tokenize", json={"content": "hello", "model": "other"}).status_code == 200


def test_a_model_that_does_not_rank_says_so(serve: Serve, tiny: Path) -> None:
    for placement in ("scripted/cpu", "llama.cpp/cpu"):
        answer = serve(tiny, placement=placement).http.post("/rerank", json={"query": "a", "documents": ["b"]})
        assert answer.status_code == 400
        assert "does not rank" in answer.json()["error"]["message"]
