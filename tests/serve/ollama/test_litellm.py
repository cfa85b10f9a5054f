"""LiteLLM as a client of Ollama's API: it looks at show first, and makes OpenAI's form of everything."""

from pathlib import Path

import pytest
from litellm_program import said_by
from live_server import Serve

from trilithon.models.synthetic.tiny import write_tiny_model

TEMPLATE = "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
PROGRAM = """
import json, sys
import litellm
from litellm.llms.ollama.completion.transformation import OllamaConfig

base = sys.argv[1]
found = []
for model in ("ollama_chat/talker", "ollama/talker"):
    asked = dict(model=model, api_base=base, messages=[{"role": "user", "content": "hi"}], max_tokens=5, temperature=0)
    whole = litellm.completion(**asked)
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
    found.append([whole.choices[0].message.content, "".join(parts), whole.usage.completion_tokens])
vectors = litellm.embedding(model="ollama/talker", input=["a", "b"], api_base=base)
info = OllamaConfig().get_model_info("talker", api_base=base)
try:
    litellm.completion(model="ollama_chat/nope", messages=[{"role": "user", "content": "a"}], api_base=base)
    error = ""
except litellm.exceptions.NotFoundError as raised:
    error = str(raised)
print(json.dumps({"found": found, "vectors": len(vectors.data), "info": dict(info), "error": error}))
"""


@pytest.mark.slow
def test_litellm(serve: Serve, tmp_path: Path) -> None:
    server = serve(write_tiny_model(tmp_path / "talker.gguf", template=TEMPLATE), placement="llama.cpp@embedded/cpu")
    said = said_by(PROGRAM, server.url)
    for whole, streamed, tokens in said["found"]:
        assert streamed.strip() == whole.strip()
        assert tokens == 5
    assert said["vectors"] == 2
    assert said["info"]["max_input_tokens"] == 2048
    assert said["info"]["supports_function_calling"] is True
    assert "model 'nope' not found" in said["error"]
