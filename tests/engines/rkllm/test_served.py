"""The RKLLM stand-in behind the whole server: OpenAI's and Anthropic's clients call tools through it."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from live_server import Server, running

from trilithon.board.accelerators import DeviceNode, Npu
from trilithon.board.snapshot import Board, read_board
from trilithon.engines.rkllm import engine
from trilithon.runtime.pool.pool import Pool
from trilithon.runtime.process import workspace
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.service import Service
from trilithon.settings import load_configuration

# The stand-in answers with what stands in [[ ]].
QUESTION = 'What time? [[One moment. <tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call>]]'
PARAMETERS = {"type": "object", "properties": {"zone": {"type": "string"}}}
TOOL: Any = {"type": "function", "function": {"name": "clock", "parameters": PARAMETERS}}


@pytest.fixture
def server(
    home: Path, standin: Callable[[str], Path], byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    npu = Npu(driver="rknpu", version="0.9.8", cores=3, nodes=(DeviceNode("/dev/dri/card1", True),))

    def planted(*_: object) -> Board:
        return replace(read_board(), chip="RK3588", npu=npu)

    monkeypatch.setattr(engine, "read_board", planted)
    monkeypatch.setenv("TRILITHON_BUILDS", str(standin("1.3.0").parent))
    folder = home / "models"
    shutil.copytree(byte_tokenizer, folder)
    model = folder / "stand.rkllm"
    model.write_text("a stand-in's model\n#standin\nlimit=4096\n")
    configuration = load_configuration()
    shelf = Catalog(configuration, planted(), paths=[model], placement="rkllm/npu")
    with workspace() as private, running(Service(shelf, Pool(configuration, private)), None) as live:
        yield live


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.slow
def test_openai_calls_a_tool(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": "stand",
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [TOOL],
        "temperature": 0,
    }
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    call: Any = choice.message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("clock", {"zone": "UTC"})
    deltas = [chunk.choices[0].delta.tool_calls for chunk in client.chat.completions.create(**asked, stream=True)]
    assert [call.function.name for calls in deltas for call in calls or []] == ["clock"]
    messages = [
        *asked["messages"],
        choice.message.to_dict(),
        {"role": "tool", "tool_call_id": call.id, "content": "noon [[It is noon.]]"},
    ]
    after = client.chat.completions.create(**{**asked, "messages": messages})
    assert after.choices[0].message.content == "It is noon."
    assert after.model == "stand"


def test_responses_call_a_function(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "clock", "parameters": PARAMETERS, "strict": False}
    with client.responses.stream(model="stand", input=QUESTION, tools=[tool], temperature=0) as stream:
        kinds = [event.type for event in stream]
        found = stream.get_final_response()
    assert [item.type for item in found.output] == ["message", "function_call"]
    call: Any = found.output[1]
    assert (call.name, json.loads(call.arguments)) == ("clock", {"zone": "UTC"})
    assert "response.function_call_arguments.done" in kinds


def test_anthropic_uses_a_tool(server: Server) -> None:
    tool: Any = {"name": "clock", "input_schema": PARAMETERS}
    asked: Any = {"model": "stand", "max_tokens": 500, "tools": [tool], "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        with client.messages.stream(**asked, messages=messages) as stream:
            message = stream.get_final_message()
        assert message.stop_reason == "tool_use"
        assert [block.type for block in message.content] == ["text", "tool_use"]
        use: Any = message.content[1]
        assert (use.name, use.input) == ("clock", {"zone": "UTC"})
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "noon [[It is noon.]]"}
        messages += [message.to_dict(), {"role": "user", "content": [result]}]
        after: Any = client.messages.create(**asked, messages=messages)
        assert after.content[0].text == "It is noon."
        assert after.stop_reason == "end_turn"


def test_what_the_runtime_cannot_is_refused_by_name(client: openai.OpenAI) -> None:
    user: Any = [{"role": "user", "content": "hello"}]
    more: Any
    for more, said in (
        ({"response_format": {"type": "json_object"}}, "does not support structured output"),
        ({"tools": [TOOL], "tool_choice": "required"}, "does not support structured output"),
        ({"extra_body": {"min_p": 0.5}}, "min_p"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            client.chat.completions.create(model="stand", messages=user, **more)


# -- errors that the runtime only prints

MATMUL = "E rkllm: matmul(w8a8) run failed"
SUBMIT = "E RKNN: failed to submit!, op id: 0, op name: MatMul, flags: 0x5"
PATHS = {"openai": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses"}
PATHS |= {"anthropic": "/v1/messages", "chat": "/api/chat", "generate": "/api/generate"}


def body_of(dialect: str, text: str, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "stand", "stream": stream}
    if dialect in ("completions", "generate"):
        return body | {"prompt": text}
    if dialect == "responses":
        return body | {"input": text}
    return (
        body
        | {"messages": [{"role": "user", "content": text}]}
        | ({"max_tokens": 99} if dialect == "anthropic" else {})
    )


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(("word", "line"), [("#matmul", MATMUL), ("#submit", SUBMIT)])
def test_a_tainted_answer_is_an_error_in_every_dialect(server: Server, dialect: str, word: str, line: str) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        whole = http.post(PATHS[dialect], json=body_of(dialect, f"{word} [[It is noon.]]", stream=False))
        streamed = http.post(PATHS[dialect], json=body_of(dialect, f"{word} [[It is noon.]]", stream=True))
        good = http.post(PATHS[dialect], json=body_of(dialect, "say [[It is noon.]]", stream=False))
    assert whole.status_code == 502
    error = whole.json()["error"]
    message = error if dialect in ("chat", "generate") else error["message"]
    assert line in message
    assert (good.status_code, "It is noon." in good.text) == (200, True)
    assert streamed.status_code == 200
    last = _last_event(streamed.text)
    assert dialect != "anthropic" or "event: error\ndata: " in streamed.text
    if dialect == "responses":
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        last = last["response"]
    assert last["error"] == (error if dialect != "responses" else {"code": "server_error", "message": message})
    for mark in ("[DONE]", "message_stop", '"done":true', '"finish_reason":"', "response.completed"):
        assert mark not in streamed.text


def _last_event(text: str) -> dict[str, Any]:
    lines = [line for line in text.splitlines() if line and line != "data: [DONE]"]
    event: dict[str, Any] = json.loads(lines[-1].removeprefix("data: "))
    return event


def test_openais_client_raises_at_the_end_of_a_stream(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "#submit [[It is noon.]]"}]
    with pytest.raises(openai.InternalServerError, match="failed to submit!"):
        client.chat.completions.create(model="stand", messages=messages)
    text = ""
    with pytest.raises(openai.APIError, match="failed to submit!"):
        for chunk in client.chat.completions.create(model="stand", messages=messages, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == "It is noon."


def test_anthropics_client_raises_at_the_end_of_a_stream(server: Server) -> None:
    messages: Any = [{"role": "user", "content": "#submit [[It is noon.]]"}]
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
        with pytest.raises(anthropic.APIStatusError, match="failed to submit!"):
            client.messages.create(model="stand", max_tokens=99, messages=messages)
        with (
            pytest.raises(anthropic.APIStatusError, match="failed to submit!"),
            client.messages.stream(model="stand", max_tokens=99, messages=messages) as stream,
        ):
            stream.get_final_message()


CLEAN = ("say [[It is noon.]]", "#warn [[It is noon.]]", f"why this?\n{MATMUL}\n[[\n{MATMUL}\nIt is noon.]]")
TAINTED = ("#matmul [[It is noon.]]", "#submit [[It is noon.]]")


@pytest.mark.slow
def test_over_many_answers_none_is_taken_for_what_it_is_not(server: Server) -> None:
    """Clean and tainted ones by turns, in every dialect, whole and streamed. CONTRIBUTING.md has the count of a long
    run, which TRILITHON_TEST_ANSWERS asks for."""
    count = int(os.environ.get("TRILITHON_TEST_ANSWERS", "100"))
    ways = [(dialect, stream) for dialect in PATHS for stream in (False, True)]
    outcomes: Counter[tuple[str, bool]] = Counter()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for number in range(count):
            dialect, stream = ways[number % len(ways)]
            # The clean one comes last, and begins as the tainted one did: a bad cache would be used again.
            for kind, texts in (("tainted", TAINTED), ("clean", CLEAN)):
                body = body_of(dialect, texts[number // len(ways) % len(texts)], stream=stream)
                answer = http.post(PATHS[dialect], json=body)
                outcomes[kind, _is_good(dialect, answer, stream=stream)] += 1
    assert outcomes == {("tainted", False): count, ("clean", True): count}


def _is_good(dialect: str, answer: httpx.Response, *, stream: bool) -> bool:
    """Whether a client takes it for a whole answer. Raises AssertionError where it is neither that nor an error."""
    event = _last_event(answer.text) if stream else {}
    failed = bool(event.get("error") or event.get("type") == "response.failed") or answer.status_code == 502
    ends = ("[DONE]", "message_stop", '"done":true', "response.completed", '"stop"')
    ended = answer.status_code == 200 and (not stream or any(end in answer.text for end in ends))
    assert failed != ended, f"{dialect} {stream} {answer.status_code} {answer.text!r}"
    return ended
