"""Whatever a client sends, the answer is an answer or an error that says whose fault it is: never a 500."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import Serve, Server

from trilithon.models.synthetic.tiny import write_tiny_model

WORDS = st.sampled_from(
    [
        "user",
        "assistant",
        "tool",
        "text",
        "image_url",
        "function",
        "function_call",
        "message",
        "auto",
        "required",
        "json_schema",
    ]
)
KEYS = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "input",
        "schema",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(KEYS, each, max_size=4),
    max_leaves=8,
)
MESSAGES = st.just([{"role": "user", "content": "hello"}]) | st.lists(
    st.dictionaries(KEYS, JSON, max_size=3), max_size=3
)
FIELDS = {
    "/v1/chat/completions": [
        "stop",
        "n",
        "seed",
        "tools",
        "tool_choice",
        "response_format",
        "logit_bias",
        "stream_options",
    ],
    "/v1/completions": ["stop", "n", "echo", "logprobs", "best_of", "prompt", "stream_options", "logit_bias"],
    "/v1/embeddings": ["input", "dimensions", "encoding_format"],
    "/v1/responses": ["input", "tools", "tool_choice", "text", "reasoning", "include", "metadata", "instructions"],
    "/v1/messages": ["system", "tools", "tool_choice", "thinking", "output_config", "stop_sequences", "metadata"],
    "/v1/messages/count_tokens": ["system", "tools", "thinking"],
    "/tokenize": ["content", "with_pieces", "add_special"],
    "/detokenize": ["tokens"],
    "/apply-template": ["add_generation_prompt", "tools"],
    "/completion": ["prompt", "n_probs", "stop", "seed"],
    "/v1/rerank": ["query", "documents", "top_n"],
}
BEGINNINGS: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 2,
    "max_output_tokens": 2,
    "n_predict": 2,
    "input": "a",
    "prompt": "a",
}


@pytest.fixture
def server(serve: Serve, tmp_path: Path) -> Server:
    model = write_tiny_model(tmp_path / "tiny.gguf", template="{{ tools }}{{ messages }}")
    return serve(model, placement="scripted/cpu:prefill=1000000,decode=1000000")


@pytest.mark.slow
@pytest.mark.parametrize("path", FIELDS)
def test_whatever_is_sent(server: Server, path: str) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    @given(MESSAGES, st.dictionaries(st.sampled_from(FIELDS[path]), JSON, max_size=3), st.booleans())
    def send(messages: Any, fields: dict[str, Any], stream: bool) -> None:
        body = BEGINNINGS | {"messages": messages, "stream": stream, "query": "a"} | fields
        answer = server.http.post(path, json=body)
        assert answer.status_code in (200, 400, 501), (answer.status_code, body, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]

    send()


def test_what_is_no_json_is_told_by_its_place(serve: Serve, tiny: Path) -> None:
    http = serve(tiny).http
    answer = http.post("/v1/chat/completions", content='{"model":', headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "the body is not JSON" in error["message"] and "character 9" in error["message"]
    assert error["param"] is None
