"""Anthropic's own client against the live server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from live_server import Serve, Server

from trilithon.models.synthetic.tiny import write_tiny_model

USER: Any = [{"role": "user", "content": "hello"}]
TEMPLATE = "{%- for m in messages -%}{{ m.role + ': ' + m.content + '\\n' }}{%- endfor -%}"


@pytest.fixture
def clients() -> Iterator[Any]:
    made: list[Anthropic] = []

    def client(server: Server) -> Anthropic:
        made.append(Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60))
        return made[-1]

    yield client
    for each in made:
        each.close()


def test_a_message(serve: Serve, tmp_path: Path, clients: Any) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", template=TEMPLATE)
    client = clients(serve(model, placement="scripted/cpu:prefill=50000,decode=5000,thinking=Stones are heavy."))
    raw = client.messages.with_raw_response.create(
        model="tiny",
        max_tokens=200,
        system=[{"type": "text", "text": "be short", "cache_control": {"type": "ephemeral"}}],
        messages=USER,
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    message = raw.parse()
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[1].text.startswith("A trilithon")
    assert message.stop_reason == "end_turn"
    assert message.model == "tiny"
    assert message.usage.output_tokens > 10
    assert raw.headers["x-trilithon-placement"].startswith("scripted/cpu")
    assert raw.headers["x-trilithon-ignored"] == "cache_control, thinking"  # the model's template knows no thinking


def test_a_stream(serve: Serve, tiny: Path, clients: Any) -> None:
    with clients(serve(tiny)).messages.stream(model="tiny", max_tokens=6, messages=USER) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text.startswith("A trilithon")
    assert message.content[0].text == text
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 6
    assert message.usage.input_tokens > 0


@pytest.mark.parametrize("placement", ["scripted/cpu:prefill=50000,decode=5000", "llama.cpp/cpu"])
def test_which_stop_sequence_it_was(serve: Serve, tmp_path: Path, clients: Any, placement: str) -> None:
    client = clients(serve(write_tiny_model(tmp_path / "plain.gguf", template=TEMPLATE), placement=placement))
    stops = list("aeiourst ")
    message = client.messages.create(model="plain", max_tokens=300, messages=USER, stop_sequences=stops)
    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence in stops
    assert not any(stop in block.text for block in message.content for stop in stops)


def test_counted_tokens_are_those_of_the_prompt(serve: Serve, tmp_path: Path, clients: Any) -> None:
    client = clients(serve(write_tiny_model(tmp_path / "plain.gguf", template=TEMPLATE), placement="llama.cpp/cpu"))
    asked: Any = {"model": "plain", "messages": USER, "system": "be short"}
    usage = client.messages.create(**asked, max_tokens=1).usage
    counted = client.messages.count_tokens(**asked).input_tokens
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_a_stream_begins_with_the_tokens_of_the_prompt(
    serve: Serve, tmp_path: Path, clients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(write_tiny_model(tmp_path / "tiny.gguf", seed=1))
    client = clients(server)
    asked = {"model": server.model, "messages": [{"role": "user", "content": "hello there, stones"}]}
    counted = client.messages.count_tokens(**asked).input_tokens
    leases = []
    lease = server.pool.lease
    monkeypatch.setattr(server.pool, "lease", lambda *words, **more: leases.append(words) or lease(*words, **more))
    for _ in range(2):  # the second time they come from the cache
        first = next(iter(client.messages.create(**asked, max_tokens=3, stream=True)))
        assert (first.type, first.message.usage.input_tokens) == ("message_start", counted)
    assert len(leases) == 2  # they are counted by the engine that answers, while it works


def test_errors(serve: Serve, tiny: Path, clients: Any) -> None:
    client = clients(serve(tiny))
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="nope", max_tokens=1, messages=USER)
    assert missing.value.body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": missing.value.body["error"]["message"]},  # type: ignore[index]
    }
    with pytest.raises(anthropic.BadRequestError, match="document"):
        client.messages.create(
            model="tiny", max_tokens=1, messages=[{"role": "user", "content": [{"type": "document"}]}]
        )
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="tiny", max_tokens=-1, messages=USER)


def test_a_crash_in_the_middle(serve: Serve, tiny: Path, clients: Any) -> None:
    client = clients(serve(tiny, placement="scripted/cpu:crash_after=3,decode=5000"))
    with pytest.raises(anthropic.APIStatusError, match="SIGSEGV"):
        list(client.messages.create(model="tiny", max_tokens=9, messages=USER, stream=True))


def test_models(serve: Serve, tiny: Path, clients: Any) -> None:
    client = clients(serve(tiny))
    (listed,) = client.models.list()
    assert listed.id == "tiny:latest"
    assert client.models.retrieve(listed.id).created_at == listed.created_at
