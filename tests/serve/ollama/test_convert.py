"""Ollama's requests as the one internal request, without a server."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from trilithon.models.files.capabilities import Capability
from trilithon.models.files.model_file import ModelFile
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, PresetMessage, now
from trilithon.serve.http.errors import ApiError
from trilithon.serve.ollama.bodies import EmbedBody, GenerateBody, OllamaChatBody
from trilithon.serve.ollama.convert import KnownModel, OllamaRequest, chat_asked, embed_asked, generate_asked

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ADD = {"type": "function", "function": {"name": "add", "description": None, "parameters": {"type": "object"}}}


def known(*can: Capability, **said: Any) -> KnownModel:
    file = ModelFile(
        path=Path("m.gguf"), format="gguf", name="m", architecture="llama", quantization="Q8_0", size_bytes=1,
        sha256="", capabilities=frozenset(can),
    )  # fmt: skip
    name = ModelName("registry.ollama.ai", "library", "m", "latest")
    return KnownModel(manifest=Manifest(name=name, files=(), source="", created=now(), **said), file=file)


def chat(model: KnownModel, *messages: dict[str, Any], **fields: Any) -> OllamaRequest:
    return chat_asked(OllamaChatBody.model_validate({"model": "m", "messages": list(messages)} | fields), model)


def generate(model: KnownModel, **fields: Any) -> OllamaRequest:
    return generate_asked(GenerateBody.model_validate({"model": "m", "prompt": "hi"} | fields), model)


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text} | more


def test_a_chat_is_the_engines_chat() -> None:
    asked = chat(known(), user("hi"), keep_alive="5m", options={"num_predict": 3, "num_ctx": 900})
    generation = asked.generation
    assert (generation.path, generation.model) == ("/v1/chat/completions", "m")
    assert (generation.keep_alive_seconds, generation.context, generation.needs) == (300, 900, frozenset())
    assert generation.body["messages"] == [{"role": "user", "content": "hi"}]
    assert generation.body["max_tokens"] == 3
    assert generation.body["stream"] is True


def test_a_models_own_words_come_first() -> None:
    model = known(system="be brief", messages=(PresetMessage("user", "a"), PresetMessage("assistant", "b")))
    roles = [each["role"] for each in chat(model, user("hi")).generation.body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    own = chat(model, {"role": "system", "content": "be long"}, user("hi")).generation.body["messages"]
    assert [each["content"] for each in own if each["role"] == "system"] == ["be long"]
    for system, first in ((None, "be brief"), ("mine", "mine")):
        assert generate(model, system=system).generation.body["messages"][0]["content"] == first
    assert generate(model, system="").generation.body["messages"][0]["role"] == "user"


def test_tools_and_their_answers_get_ids() -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1, "b": [2]}}}
    messages = [
        user("go"),
        {"role": "assistant", "content": "", "tool_calls": [call, {"function": {"name": "sub", "arguments": {}}}]},
        {"role": "tool", "tool_name": "sub", "content": "3"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "tool_calls": [{"id": "own", "function": {"name": "add", "arguments": {}}}]},
        {"role": "tool", "tool_call_id": "own", "content": "5"},
        {"role": "tool", "tool_name": "stray", "content": "6"},
    ]
    asked = chat(known("tools"), *messages, tools=[ADD])
    _, both, sub, add, again, own, stray = asked.generation.body["messages"]
    assert json.loads(both["tool_calls"][0]["function"]["arguments"]) == {"a": 1, "b": [2]}
    ids = [each["id"] for each in both["tool_calls"]]
    assert (sub["tool_call_id"], add["tool_call_id"]) == (ids[1], ids[0])
    assert (add["name"], again["tool_calls"][0]["id"], own["tool_call_id"]) == ("add", "own", "own")
    assert stray["name"] == "stray"
    assert asked.generation.body["tools"] == [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]  # fmt: skip # noqa: E501


def test_tools_need_a_model_that_calls_them() -> None:
    with pytest.raises(ApiError, match='"m" does not support tools'):
        chat(known(), user("hi"), tools=[ADD])
    for tools in ([{"type": "search"}], [{"function": {}}]):
        with pytest.raises(ApiError, match="not a function"):
            chat(known("tools"), user("hi"), tools=tools)


def test_pictures_stand_in_the_message() -> None:
    for asked in (chat(known(), user("what?", images=[PIXEL])), generate(known(), images=[PIXEL])):
        _, picture = asked.generation.body["messages"][0]["content"]
        assert picture["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
        assert asked.generation.needs == {"vision"}
    for image in ("no base64!", base64.b64encode(b"text").decode(), "/etc/passwd", "http://example.com/a.png"):
        with pytest.raises(ApiError) as caught:
            chat(known(), user("what?", images=[image]))
        assert caught.value.status == 400


@pytest.mark.parametrize(
    ("think", "fields"),
    [
        (None, {}),
        (True, {"chat_template_kwargs": {"enable_thinking": True}}),
        (False, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("false", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("high", {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"}),
    ],
)
def test_thinking_is_switched_by_the_template(think: object, fields: dict[str, Any]) -> None:
    for asked in (chat(known("thinking"), user("hi"), think=think), generate(known("thinking"), think=think)):
        body = asked.generation.body
        found = {name: body[name] for name in ("chat_template_kwargs", "reasoning_effort") if name in body}
        assert found == fields


def test_who_cannot_think_is_told_only_when_asked_to() -> None:
    assert "chat_template_kwargs" not in chat(known(), user("hi"), think=False).generation.body
    assert chat(known(parameters={"think": True}), user("hi"))
    with pytest.raises(ApiError, match='"m" does not support thinking'):
        chat(known(), user("hi"), think=True)
    with pytest.raises(ApiError, match="invalid value for 'think'"):
        chat(known("thinking"), user("hi"), think="much")
    quiet = chat(known("thinking", parameters={"think": False}), user("hi")).generation.body
    assert quiet["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_form_is_a_grammars_business() -> None:
    assert chat(known(), user("hi"), format="").generation.needs == frozenset()
    for asked in (chat(known(), user("hi"), format="json"), generate(known(), format="json")):
        assert asked.generation.body["response_format"] == {"type": "json_object"}
        assert asked.generation.needs == {"grammar"}
    schema = chat(known(), user("hi"), format=SCHEMA).generation.body["response_format"]
    assert schema["json_schema"]["schema"] == SCHEMA
    with pytest.raises(ApiError, match="format"):
        chat(known(), user("hi"), format={"enum": ["x" * 300_000]})


def test_prompts_with_a_form_of_their_own_are_completed() -> None:
    raw = generate(known(), raw=True, options={"num_predict": 4}).generation
    assert (raw.path, raw.body["prompt"], raw.body["n_predict"]) == ("/completion", "hi", 4)
    own = generate(known(system="s"), template="{{ .System }}|{{ .Prompt }}").generation
    assert (own.path, own.body["prompt"]) == ("/completion", "s|hi")
    filled = generate(known(), suffix="end").generation
    assert (filled.path, filled.body["input_prefix"], filled.body["input_suffix"]) == ("/infill", "hi", "end")
    for more in ({"think": True}, {"format": "json"}, {"images": [PIXEL]}):
        with pytest.raises(ApiError, match="the model's own template"):
            generate(known(), raw=True, **more)


def test_probabilities_are_asked_for_in_each_form() -> None:
    told = chat(known(), user("hi"), logprobs=True, top_logprobs=5)
    assert (told.generation.body["logprobs"], told.generation.body["top_logprobs"]) == (True, 5)
    assert (told.top_logprobs, told.generation.needs) == (5, {"logprobs"})
    assert generate(known(), raw=True, logprobs=True).generation.body["n_probs"] == 1
    assert chat(known(), user("hi")).top_logprobs is None


def test_what_means_nothing_is_named() -> None:
    asked = generate(known(), truncate=True, shift=False, context=[1], steps=3, width=None, options={"num_gpu": 1})
    assert asked.ignored == ("steps", "options.num_gpu", "truncate", "context")
    said = chat(known(), user("hi", name="me"), user("ho", name="me", audio=None))
    assert said.ignored == ("messages.name",)


def test_an_embedding_asks_for_vectors() -> None:
    body = EmbedBody.model_validate({"model": "m", "input": "x", "keep_alive": 0, "options": {"num_ctx": 9, "seed": 1}})
    asked = embed_asked(body, ["x"])
    assert (asked.generation.path, asked.generation.body) == ("/v1/embeddings", {"input": ["x"]})
    assert (asked.generation.needs, asked.generation.context) == ({"embeddings"}, 9)
    assert asked.ignored == ("options.seed",)
