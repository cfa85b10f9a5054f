"""OpenAI's own client against the live server: over the scripted engine, and over llama.cpp where the answer counts."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import Serve, Server
from openai import OpenAI

from trilithon.models.synthetic.tiny import write_tiny_model

USER: Any = [{"role": "user", "content": "hello"}]
LLAMA = "llama.cpp/cpu"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CHATML = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


@pytest.fixture
def scripted(serve: Serve, tiny: Path) -> Server:
    return serve(tiny)


@pytest.fixture
def llama(serve: Serve, tmp_path: Path) -> Server:
    """llama.cpp with a model that has a template of its own, and so answers until it is stopped."""
    return serve(write_tiny_model(tmp_path / "plain.gguf", template=CHATML), placement=LLAMA)


@pytest.fixture
def clients() -> Iterator[Any]:
    made: list[OpenAI] = []

    def client(server: Server) -> OpenAI:
        made.append(OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60))
        return made[-1]

    yield client
    for each in made:
        each.close()


def test_a_chat(scripted: Server, clients: Any) -> None:
    raw = clients(scripted).chat.completions.with_raw_response.create(
        model="tiny", messages=USER, max_tokens=6, user="me", extra_body={"keep_alive": 5}
    )
    answer = raw.parse()
    assert answer.model == "tiny"
    assert answer.choices[0].message.content.startswith("A trilithon")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 6
    assert raw.headers["x-trilithon-placement"].startswith("scripted/cpu")
    assert raw.headers["x-trilithon-ignored"] == "user"


def test_a_stream_with_its_usage(scripted: Server, clients: Any) -> None:
    chunks = list(
        clients(scripted).chat.completions.create(
            model="tiny", messages=USER, max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
    )
    assert {chunk.model for chunk in chunks} == {"tiny"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]).startswith("A trilithon")
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 6


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers(scripted: Server, clients: Any, stream: bool) -> None:
    """By one slot: they take turns."""
    found = clients(scripted).chat.completions.create(model="tiny", messages=USER, max_tokens=4, n=3, stream=stream)
    if stream:
        texts = ["", "", ""]
        for chunk in found:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        assert [choice.index for choice in found.choices] == [0, 1, 2]
        assert found.usage.completion_tokens == 12
        texts = [choice.message.content for choice in found.choices]
    assert len(set(texts)) == 1
    assert texts[0].startswith("A trilit")


def test_errors_name_the_field(scripted: Server, clients: Any) -> None:
    client = clients(scripted)
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=USER)
    assert missing.value.param == "model"
    assert missing.value.type == "not_found_error"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=USER, temperature=-1)
    assert wrong.value.param == "temperature"
    for url in ("file:///etc/passwd", "http://127.0.0.1/a.png"):
        content = [{"type": "image_url", "image_url": {"url": url}}]
        with pytest.raises(openai.BadRequestError, match="data: URL"):
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])


def test_a_picture_for_a_model_that_does_not_see(scripted: Server, clients: Any) -> None:
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}]
    with pytest.raises(openai.BadRequestError, match="does not support images"):
        clients(scripted).chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])


def test_bodies_that_are_none(scripted: Server) -> None:
    for content in (b"", b"[]", b"{", b'{"model": 1}', b'{"model":"tiny","messages":[]}', b"[" * 5000):
        answer = scripted.http.post(
            "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, content
        assert answer.json()["error"]["message"]
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    answer = scripted.http.post("/v1/chat/completions", json={"model": "tiny", "messages": USER, "logit_bias": [deep]})
    assert answer.status_code == 400
    half = b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}'
    answer = scripted.http.post("/v1/chat/completions", content=half, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_a_crash_in_the_middle(serve: Serve, tiny: Path, clients: Any) -> None:
    """The stream ends with an error that the client raises; a whole answer becomes a status."""
    client = clients(serve(tiny, placement="scripted/cpu:crash_after=3,decode=5000"))
    with pytest.raises(openai.APIError, match="SIGSEGV"):
        list(client.chat.completions.create(model="tiny", messages=USER, max_tokens=9, stream=True))
    with pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="tiny", messages=USER, max_tokens=9)
    assert raised.value.status_code == 502


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_leaving_ends_the_work(serve: Serve, tiny: Path, stream: bool) -> None:
    """At once, also where nothing is being sent: the next token would come in 100 s."""
    server = serve(tiny, placement="scripted/cpu:prefill=50000,decode=0.01")
    assert server.http.post("/api/generate", json={"model": "tiny"}).status_code == 200  # it is loaded from here on
    body = {"model": "tiny", "messages": USER, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=1.0).read()
    deadline = time.monotonic() + 60
    while any(loaded.users for loaded in server.pool.loaded()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [loaded.users for loaded in server.pool.loaded()] == [0]


def test_completions(scripted: Server, clients: Any) -> None:
    client = clients(scripted)
    found = client.completions.create(model="tiny", prompt=["one", "two"], max_tokens=3, n=2, logprobs=2)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.usage.completion_tokens == 12
    first = found.choices[0]
    assert "".join(first.logprobs.tokens) == first.text
    assert first.logprobs.text_offset[0] == 0
    assert all(len(top) == 2 for top in first.logprobs.top_logprobs)
    assert (
        client.completions.create(model="tiny", prompt="one", echo=True, max_tokens=2)
        .choices[0]
        .text.startswith("oneA")
    )
    stream = client.completions.create(
        model="tiny", prompt="one", max_tokens=3, echo=True, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]).startswith("oneA tri")
    assert chunks[-1].usage.completion_tokens == 3


def test_embeddings(scripted: Server, clients: Any) -> None:
    """The client asks for base64 unless told otherwise."""
    client = clients(scripted)
    packed = client.embeddings.create(model="tiny", input=["one", "two"])
    plain = client.embeddings.create(model="tiny", input=["one", "two"], encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    cut = client.embeddings.create(model="tiny", input="one", dimensions=8, encoding_format="float").data[0].embedding
    assert len(cut) == 8
    assert sum(number**2 for number in cut) == pytest.approx(1)
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model="tiny", input="one", dimensions=10_000)
    assert raised.value.param == "dimensions"


def test_models(scripted: Server, clients: Any) -> None:
    client = clients(scripted)
    (listed,) = client.models.list()
    assert listed.id == "tiny:latest"
    assert client.models.retrieve(listed.id) == listed
    assert 1e9 < listed.created < time.time() + 60
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/where/else")


# -- over llama.cpp


def test_a_schema_is_kept(llama: Server, clients: Any) -> None:
    schema = {"type": "object", "properties": {"stone": {"enum": ["up", "down"]}}, "required": ["stone"]}
    form = {
        "type": "json_schema",
        "json_schema": {"name": "stones", "schema": schema | {"additionalProperties": False}},
    }
    client = clients(llama)
    for _ in range(2):
        found = client.chat.completions.create(model="plain", messages=USER, response_format=form, max_tokens=60)
        assert json.loads(found.choices[0].message.content)["stone"] in ("up", "down")


def test_seeds_logprobs_and_stops(llama: Server, clients: Any) -> None:
    client = clients(llama)

    def said(**more: Any) -> Any:
        return client.chat.completions.create(
            model="plain", messages=USER, max_tokens=12, temperature=1, **more
        ).choices[0]

    text = said(seed=7).message.content
    assert said(seed=7).message.content == text
    assert said(seed=8).message.content != text
    found = said(seed=7, logprobs=True, top_logprobs=3).logprobs.content
    assert len(found) == 12
    assert all(len(each.top_logprobs) == 3 and each.logprob <= 0 for each in found)
    letter = next(letter for letter in text if letter.isalpha())
    cut = said(seed=7, stop=[letter])
    assert cut.message.content == text[: text.index(letter)]
    assert cut.finish_reason == "stop"
    several = client.chat.completions.create(model="plain", messages=USER, max_tokens=12, temperature=1, seed=7, n=2)
    assert several.choices[0].message.content == text
    assert several.choices[1].message.content == said(seed=8).message.content


def test_tools_are_refused_where_the_template_has_no_place_for_them(llama: Server, clients: Any) -> None:
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]
    client = clients(llama)
    with pytest.raises(openai.BadRequestError, match="does not support tools") as raised:
        client.chat.completions.create(model="plain", messages=USER, tools=tools)
    assert raised.value.param == "tools"
    client.chat.completions.create(model="plain", messages=USER, tools=tools, tool_choice="none", max_tokens=1)


def test_no_path_of_the_machine_is_told(llama: Server) -> None:
    for stream in (False, True):
        body = {"model": "plain", "messages": USER, "max_tokens": 3, "stream": stream}
        content = llama.http.post("/v1/chat/completions", json=body).text
        assert '"model":"plain"' in content
        assert "plain.gguf" not in content


@pytest.mark.slow
@pytest.mark.demo
def test_the_demo_model_answers_and_stops(serve: Serve, demo: Path, clients: Any) -> None:
    """A base model: its form of prompt makes it answer, and ends the answer."""
    server = serve(demo, placement=LLAMA)
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    chunks = clients(server).chat.completions.create(
        model=server.model, messages=question, temperature=0, max_tokens=200, stream=True
    )
    reasons, text = [], ""
    for chunk in chunks:
        text += chunk.choices[0].delta.content or ""
        reasons.append(chunk.choices[0].finish_reason)
    assert "Paris" in text
    assert "Q:" not in text
    assert reasons[-1] == "stop"


def test_a_prompt_counts_once_however_many_answers(serve: Serve, tiny: Path) -> None:
    http = serve(tiny, placement="scripted/cpu:prefill=1000000,decode=1000000").http
    body = {"model": "tiny", "prompt": ["one two three", "four"], "max_tokens": 2}
    once, twice = (http.post("/v1/completions", json=body | {"n": n}).json()["usage"] for n in (1, 2))
    assert twice["prompt_tokens"] == once["prompt_tokens"] > 0
    assert twice["completion_tokens"] == 2 * once["completion_tokens"]
    assert twice["total_tokens"] == twice["prompt_tokens"] + twice["completion_tokens"]
