"""LiteLLM's asynchronous client, by Ollama's, OpenAI's and Anthropic's way; its proxy uses it."""

from pathlib import Path

import pytest
from litellm_program import said_by
from live_server import Serve
from tool_caller import SENTENCE, write_tool_caller

PROGRAM = """
import asyncio, json, sys
import litellm

base = sys.argv[1]
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "description": "Tells.", "parameters": parameters}}]
user = [{"role": "user", "content": "hello"}]

async def answers(model, path):
    common = dict(model=model, api_base=base + path, api_key="none", messages=user, max_tokens=64, temperature=0)
    whole = await litellm.acompletion(**common)
    stream = await litellm.acompletion(**common, stream=True)
    parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    called = await litellm.acompletion(**common, tools=tools)
    call = called.choices[0].message.tool_calls[0].function
    return [whole.choices[0].message.content, "".join(parts), call.name, json.loads(call.arguments)]

async def main():
    routes = (("ollama_chat/caller", ""), ("openai/caller", "/v1"), ("anthropic/caller", ""))
    print(json.dumps([await answers(*route) for route in routes]))

asyncio.run(main())
"""


@pytest.mark.slow
def test_litellms_asynchronous_client(serve: Serve, tmp_path: Path) -> None:
    server = serve(write_tool_caller(tmp_path / "caller.gguf"), placement="llama.cpp@embedded/cpu:t=1")
    sentence = "".join(SENTENCE)
    for whole, streamed, name, arguments in said_by(PROGRAM, server.url):
        assert (whole.strip(), streamed.strip()) == (sentence, sentence)
        assert (name, arguments) == ("weather", {"city": "a"})
