"""What an engine answers when it refuses, as Trilithon's errors."""

import json
from typing import Any

import pytest

from trilithon.errors import ContextExceeded
from trilithon.runtime.engine_errors import engine_error


@pytest.mark.parametrize(
    ("error", "prompt_tokens", "context"),
    [  # llama.cpp, tools/server/server-context.cpp: b11434, b6800, and the words of 2024
        (
            {
                "code": 400,
                "message": "request (960 tokens) exceeds the available context size (512 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 960,
                "n_ctx": 512,
            },
            960,
            512,
        ),
        (
            {
                "code": 500,
                "message": "input (2002 tokens) is too large to process. increase the physical batch size (current "
                "batch size: 512)",
                "type": "server_error",
            },
            2002,
            512,
        ),
        (
            {"code": 400, "message": "input (700 tokens) is larger than the max context size (512 tokens). skipping"},
            700,
            512,
        ),
        ({"code": 400, "message": "the request exceeds the available context size. try increasing it"}, None, None),
        ({"code": 500, "message": "input is too large to process. increase the physical batch size"}, None, None),
        ({"code": 400, "message": "prompt longer than the context", "type": "exceed_context_size_error"}, None, None),
    ],
)
def test_an_input_that_is_too_long(error: dict[str, Any], prompt_tokens: int | None, context: int | None) -> None:
    refusal = engine_error(error["code"], json.dumps({"error": error}).encode(), "/completion")
    assert isinstance(refusal, ContextExceeded)
    assert (refusal.status, refusal.prompt_tokens, refusal.context) == (400, prompt_tokens, context)
    assert error["message"] in str(refusal)


@pytest.mark.parametrize(
    "body", [b'{"error":{"code":400,"message":"the context is odd","type":"invalid_request_error"}}', b"no JSON", b"{}"]
)
def test_other_refusals_are_not(body: bytes) -> None:
    refusal = engine_error(400, body, "/completion")
    assert refusal.status == 400 and not isinstance(refusal, ContextExceeded)
