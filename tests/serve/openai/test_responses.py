"""OpenAI's client speaking the Responses API with the live server."""

import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from live_server import Serve, Server
from openai import OpenAI

from trilithon.models.synthetic.tiny import write_tiny_model


@pytest.fixture
def server(serve: Serve, tmp_path: Path) -> Server:
    model = write_tiny_model(tmp_path / "tiny.gguf", template="{% for m in messages %}{{ m.content }}{% endfor %}")
    return serve(model, placement="scripted/cpu:prefill=50000,decode=5000,thinking=Stones are heavy.")


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_response(client: OpenAI) -> None:
    found = client.responses.create(model="tiny", input="hello", instructions="be short", metadata={"a": "b"})
    assert found.status == "completed"
    assert found.output_text.startswith("A trilithon")
    assert [item.type for item in found.output] == ["reasoning", "message"]
    assert found.metadata == {"a": "b"}
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    assert found.usage.output_tokens_details.reasoning_tokens > 0
    assert found.created_at <= time.time()
    assert (found.model_extra or {})["timings"]["decode_unit"] == "cpu"


def test_a_conversation_goes_on(client: OpenAI) -> None:
    """The items of an answer are what the next question begins with."""
    first = client.responses.create(model="tiny", input="hello")
    second = client.responses.create(
        model="tiny",
        input=[
            {"role": "user", "content": "hello"},
            *[item.to_dict() for item in first.output],
            {"role": "user", "content": "and?"},
        ],  # type: ignore[misc, list-item]
    )
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens


def test_the_stream_as_the_client_reads_it(client: OpenAI) -> None:
    with client.responses.stream(model="tiny", input="hello") as stream:
        kinds = [event.type for event in stream]
        found = stream.get_final_response()
    assert found.output_text.startswith("A trilithon")
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    order = list(dict.fromkeys(kind for kind in kinds if "text" in kind or "item" in kind or "part" in kind))
    assert order == [
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_text.delta",
        "response.output_text.done",
    ]


def test_cut_off_is_incomplete(client: OpenAI) -> None:
    found = client.responses.create(model="tiny", input="hello", max_output_tokens=3)
    assert found.status == "incomplete"
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"


def test_what_is_kept_elsewhere_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="tiny", input="hello", previous_response_id="resp_1")
    assert raised.value.param == "previous_response_id"


def test_a_crash_in_the_middle(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement="scripted/cpu:crash_after=3,decode=5000")
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        *_, last = client.responses.create(model="tiny", input="hello", stream=True)
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert "SIGSEGV" in last.response.error.message
