"""OpenAI's bodies as the engines take them: pure, so that anything at all may be thrown at them."""

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import EngineError
from trilithon.serve.http.errors import ApiError
from trilithon.serve.openai.bodies import chat_body
from trilithon.serve.openai.completions import completion_body, prompts_of
from trilithon.serve.openai.embeddings import embedding_body, shaped

USER = [{"role": "user", "content": "hi"}]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("clock", "weather")
]
LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5) | st.sampled_from(["user", "text", "function"])
)
KEYS = st.sampled_from(
    ["role", "content", "type", "text", "image_url", "url", "tool_calls", "function", "name", "refusal"]
)
ANYTHING = st.recursive(
    LEAVES, lambda each: st.lists(each, max_size=3) | st.dictionaries(KEYS, each, max_size=4), max_leaves=12
)


def chat(**fields: Any) -> dict[str, Any]:
    return chat_body({"model": "m", "messages": USER, **fields})[0].body


@given(st.lists(st.dictionaries(KEYS, ANYTHING, max_size=4), min_size=1, max_size=3))
def test_whatever_the_messages_are_they_are_taken_or_refused_by_name(messages: list[dict[str, Any]]) -> None:
    try:
        admitted, _ = chat_body({"messages": messages})
    except ApiError as problem:
        assert problem.status == 400
        assert problem.field.startswith("messages.") or not problem.field
        return
    assert len(admitted.body["messages"]) == len(messages)
    for message in admitted.body["messages"]:
        assert isinstance(message["role"], str)
        assert message["content"] is None or isinstance(message["content"], str | list)


@given(
    st.dictionaries(st.sampled_from(["tools", "tool_choice", "response_format", "json_schema", "grammar"]), ANYTHING)
)
def test_whatever_is_asked_of_the_answers_form(fields: dict[str, Any]) -> None:
    if not isinstance(fields.get("tools", []), list) or not all(
        isinstance(tool, dict) for tool in fields.get("tools", [])
    ):
        return  # the model of the body refuses these
    try:
        chat_body({"messages": USER, **fields})
    except ApiError as problem:
        assert problem.status == 400


def test_the_name_and_the_count_stay_here() -> None:
    assert set(chat(n=2)) == {"messages"}


def test_one_limit_goes_on() -> None:
    assert chat(max_completion_tokens=5, max_tokens=9)["max_tokens"] == 5
    assert chat(n_predict=7)["max_tokens"] == 7


def test_seeds_fit_the_engine() -> None:
    assert chat(seed=2**40 + 5)["seed"] == 5
    assert chat(seed=-7)["seed"] == 2**32 - 7
    assert chat(seed=-1)["seed"] == -1


def test_a_developer_is_what_templates_call_system() -> None:
    assert chat(messages=[{"role": "developer", "content": "short"}])["messages"][0]["role"] == "system"


def test_a_role_that_no_template_knows_is_named() -> None:
    with pytest.raises(ApiError, match="unknown role 'bogus'") as caught:
        chat(messages=[{"role": "bogus", "content": "x"}])
    assert caught.value.field == "messages.0.role"


def test_a_tool_called_by_its_name_is_the_only_one() -> None:
    body = chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "clock"}})
    assert body["tools"] == TOOLS[:1]
    assert body["tool_choice"] == "required"
    with pytest.raises(ApiError, match="must name one of the tools"):
        chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "other"}})
    with pytest.raises(ApiError, match="there are none"):
        chat(tool_choice="required")


def test_no_thinking_is_a_word_for_the_template() -> None:
    assert chat(reasoning_effort="none") == {"messages": USER, "chat_template_kwargs": {"enable_thinking": False}}
    assert chat(reasoning_effort="low")["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, set()),
        ({"response_format": {"type": "text"}}, set()),
        ({"response_format": {"type": "json_object"}}, {"grammar"}),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, {"grammar"}),
        ({"tools": TOOLS, "tool_choice": "required"}, {"grammar"}),
        ({"tools": TOOLS}, set()),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs"}),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:x"}]}]}, {"vision"}),
    ],
)
def test_what_the_placement_must_be_able_to_do(fields: dict[str, Any], needs: set[str]) -> None:
    assert chat_body({"messages": USER, **fields})[1] == needs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "x"}]),
        ("audio", {"voice": "a"}),
        ("modalities", ["audio"]),
        ("id_slot", 0),
        ("web_search_options", {}),
        ("response_format", {"type": "xml"}),
        ("top_logprobs", 2),
        ("tool_choice", "maybe"),
    ],
)
def test_what_cannot_be_honoured_is_named(field: str, value: Any) -> None:
    with pytest.raises(ApiError) as raised:
        chat(**{field: value})
    assert raised.value.field == field
    assert raised.value.status == 400


def test_what_every_client_sends_is_left_out_and_named() -> None:
    admitted, _ = chat_body({"messages": USER, "user": "me", "store": True})
    assert set(admitted.ignored) == {"user", "store"}


# -- completions


def test_prompts_of_every_kind() -> None:
    assert prompts_of("a") == ["a"]
    assert prompts_of([1, 2]) == [[1, 2]]
    assert prompts_of(["a", "b"]) == ["a", "b"]
    assert prompts_of([[1], "b"]) == [[1], "b"]
    for wrong in ([], [1, "a"], [None], [[1.5]], [-1], ["a"] * 100):
        with pytest.raises(ApiError):
            prompts_of(wrong)


def test_a_completion_is_a_stream_of_the_engines_own() -> None:
    admitted, needs = completion_body({"model": "m", "prompt": "a", "logprobs": 0, "stop": "x", "n": 2, "user": "me"})
    assert admitted.body == {"stop": "x", "n_predict": 16, "stream": True, "n_probs": 1}
    assert admitted.ignored == ("user",)
    assert needs == {"logprobs"}
    for name, value in {"suffix": "b", "best_of": 3, "id_slot": 1}.items():
        with pytest.raises(ApiError, match=name):
            completion_body({"prompt": "a", name: value})


# -- embeddings


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20), st.integers(1, 20), st.booleans())
def test_vectors_keep_their_values(vector: list[float], dimensions: int, packed: bool) -> None:
    answer = json.dumps({"data": [{"embedding": vector}], "usage": {"prompt_tokens": 1, "total_tokens": 1}}).encode()
    if dimensions > len(vector):
        with pytest.raises(ApiError, match="dimensions"):
            shaped(answer, model="m", dimensions=dimensions, base64_wanted=packed)
        return
    entry = shaped(answer, model="m", dimensions=dimensions, base64_wanted=packed)["data"][0]["embedding"]
    found = list(struct.unpack(f"<{dimensions}f", base64.b64decode(entry))) if packed else entry
    if dimensions == len(vector):
        assert found == vector
    elif any(abs(number) > 1e-3 for number in vector[:dimensions]):
        assert sum(number**2 for number in found) == pytest.approx(1, abs=1e-5)


@given(ANYTHING)
def test_inputs_are_taken_or_refused(given: Any) -> None:
    if isinstance(given, str | list):
        try:
            assert embedding_body({"model": "m", "input": given}).body == {"input": given}
        except ApiError as problem:
            assert problem.field == "input"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"data": []}', b'{"data": [{"embedding": "x"}], "usage": {}}'])
def test_an_engine_that_answers_no_vectors(content: bytes) -> None:
    with pytest.raises(EngineError) as raised:
        shaped(content, model="m", dimensions=None, base64_wanted=False)
    assert raised.value.status == 502
