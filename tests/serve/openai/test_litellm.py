"""LiteLLM, which many programs put between themselves and a server, by OpenAI's, Anthropic's and the older way."""

from pathlib import Path

import pytest
from litellm_program import said_by
from live_server import Serve

PROGRAM = """
import json, sys
import litellm

base = sys.argv[1]
found = []
user = [{"role": "user", "content": "hello"}]
for model, path in (("openai/tiny", "/v1"), ("anthropic/tiny", ""), ("text-completion-openai/tiny", "/v1")):
    asked = dict(model=model, api_base=base + path, api_key="none", messages=user, max_tokens=6)
    whole = litellm.completion(**asked)
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
    found.append([whole.choices[0].message.content, "".join(parts), whole.usage.completion_tokens])
vectors = litellm.embedding(model="openai/tiny", api_base=base + "/v1", api_key="none", input=["one", "two"])
try:
    litellm.completion(model="openai/nope", api_base=base + "/v1", api_key="none", messages=user)
    error = ""
except litellm.exceptions.NotFoundError as raised:
    error = type(raised).__name__
print(json.dumps({"found": found, "vectors": len(vectors.data), "error": error}))
"""


@pytest.mark.slow
def test_litellm(serve: Serve, tiny: Path) -> None:
    server = serve(tiny)
    said = said_by(PROGRAM, server.url)
    for whole, streamed, tokens in said["found"]:
        assert whole.startswith("A trilithon")
        assert streamed == whole
        assert tokens == 6
    assert said["vectors"] == 2
    assert said["error"] == "NotFoundError"
