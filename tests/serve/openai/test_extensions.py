"""Fields of other servers with OpenAI's API: each is honoured or refused, and none is left out in silence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import Serve, Server

from trilithon.serve.anthropic.bodies import message_asked
from trilithon.serve.http.errors import ApiError
from trilithon.serve.openai.bodies import OpenAIChatBody, chat_body
from trilithon.serve.openai.completions import CompletionBody, completion_body
from trilithon.serve.openai.extensions import TRANSLATED, UNHELD
from trilithon.serve.openai.responses_bodies import ResponseBody, response_asked

USER = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
CHOICE = 'root ::= "yes" | "a \\x22no\\x22\\x0a"'


def chat(**fields: Any) -> dict[str, Any]:
    body = OpenAIChatBody.model_validate({"model": "m", "messages": USER, **fields})
    admitted, _ = chat_body(body.model_dump(exclude_none=True))
    assert admitted.ignored == ()
    return admitted.body


def completion(**fields: Any) -> dict[str, Any]:
    body = CompletionBody.model_validate({"model": "m", "prompt": "x", **fields})
    return completion_body(body.model_dump(exclude_none=True))[0].body


def response(**fields: Any) -> dict[str, Any]:
    body = ResponseBody.model_validate({"model": "m", "input": "hi", **fields})
    return response_asked(body.model_dump(exclude_none=True)).chat


@pytest.mark.parametrize("body", [chat, response])
@pytest.mark.parametrize(
    ("fields", "becomes"),
    [
        ({"guided_json": SCHEMA}, {"response_format": FORM}),
        ({"guided_json": json.dumps(SCHEMA)}, {"response_format": FORM}),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, {"response_format": FORM}),
        ({"format": SCHEMA}, {"response_format": FORM}),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        ({"guided_choice": ["yes", 'a "no"\n']}, {"grammar": CHOICE}),
        ({"structured_outputs": {"choice": ["yes", 'a "no"\n']}}, {"grammar": CHOICE}),
        ({"repetition_penalty": 1.1}, {"repeat_penalty": 1.1}),
        ({"think": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"think": "high"}, {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 5}},
            {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget_tokens": 5},
        ),
        ({"thinking_budget": 5}, {"thinking_budget_tokens": 5}),
    ],
)
def test_what_is_honoured(body: Any, fields: dict[str, Any], becomes: dict[str, Any]) -> None:
    assert becomes.items() <= body(**fields).items()


def test_reasoning_of_a_chat() -> None:
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    assert off.items() <= chat(reasoning={"enabled": False}).items()
    assert off.items() <= chat(reasoning={"effort": "none"}).items()
    wanted = chat(reasoning={"effort": "low", "max_tokens": 9})
    assert (wanted["reasoning_effort"], wanted["thinking_budget_tokens"]) == ("low", 9)


def test_forms_of_a_bare_completion() -> None:
    assert completion(response_format=FORM)["json_schema"] == SCHEMA
    assert completion(guided_json=SCHEMA)["json_schema"] == SCHEMA
    assert completion(response_format={"type": "json_object"})["json_schema"] == {"type": "object"}
    assert "json_schema" not in completion(response_format={"type": "text"})
    assert completion(guided_choice=["a"])["grammar"] == 'root ::= "a"'
    with pytest.raises(ApiError, match="tools is not supported"):
        completion(tools=[{"type": "function", "function": {"name": "f"}}])


def test_the_form_that_anthropic_had_before() -> None:
    wanted = {"max_tokens": 5, "messages": USER, "output_format": {"type": "json_schema", "schema": SCHEMA}}
    assert message_asked(wanted).chat["response_format"]["json_schema"]["schema"] == SCHEMA
    with pytest.raises(ApiError, match=r"^output_format must be"):
        message_asked(wanted | {"output_format": {"type": "yaml"}})


@pytest.mark.parametrize("body", [chat, completion, response])
@pytest.mark.parametrize("name", sorted(UNHELD))
def test_what_nobody_here_can_do_is_refused(body: Any, name: str) -> None:
    for value in UNHELD[name]:
        body(**{name: value})
    with pytest.raises(ApiError, match=f"^{name} is not supported; leave it out") as refused:
        body(**{name: [7]})
    assert (refused.value.status, refused.value.field) == (400, name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guided_json": "{"}, "guided_json must be a JSON schema"),
        ({"guided_json": 3}, "guided_json must be a JSON schema"),
        ({"guided_choice": []}, "guided_choice must be a list"),
        ({"guided_choice": ["a", 1]}, "guided_choice must be a list"),
        ({"structured_outputs": "x"}, "structured_outputs must be an object"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex is not supported"),
        ({"guided_json": {}, "response_format": FORM}, "guided_json is one of several forms"),
        ({"guided_json": {}, "grammar": "root ::= [a]"}, "guided_json is one of several forms"),
        ({"format": "yaml"}, "format must be a JSON schema"),
        ({"thinking": "x"}, "thinking must be an object"),
        ({"thinking": {"type": "x"}}, "thinking.type must be"),
        ({"thinking": {"budget_tokens": "x"}}, "thinking.budget_tokens must be a number"),
        ({"think": "x"}, "think must be true"),
        ({"think": []}, "think must be true"),
        ({"reasoning": "x"}, "reasoning must be an object"),
        ({"reasoning": {"effort": ["x"]}}, "reasoning.effort must be a text of at most 32"),
        ({"reasoning": {"effort": "x" * 33}, "think": "low"}, "reasoning.effort must be a text of at most 32"),
        ({"reasoning": {"enabled": "no"}}, "reasoning.enabled must be true or false"),
        ({"reasoning": {"exclude": True}}, "reasoning.exclude is not supported"),
        ({"echo": True}, "echo is not supported"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError, match=f"^{message}") as refused:
        chat(**fields)
    assert refused.value.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["json", "choice", "type", "effort", "enabled", "max_tokens"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(TRANSLATED)), JSON, max_size=4))
def test_anything_at_all_is_taken_or_refused(fields: dict[str, Any]) -> None:
    try:
        body = chat(**fields)
    except ApiError as refused:
        assert refused.status == 400
    else:
        assert not TRANSLATED & body.keys()


def test_an_empty_stop_word_is_none() -> None:
    assert [chat(stop=stop).get("stop") for stop in ("", [""], ["", "a"], "b")] == [None, None, ["a"], "b"]
    assert "stop" not in completion(stop=["", ""])
    assert "stop" not in response(stop=[""])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_a_model_stays_as_long_as_it_was_asked_to(serve: Serve, tiny: Path, path: str) -> None:
    server: Server = serve(tiny)
    question = {"/v1/completions": {"prompt": "x"}, "/v1/responses": {"input": "x"}}.get(path, {"messages": USER})
    body = {"model": "tiny", **question, "max_tokens": 2, "keep_alive": -1, "num_ctx": 700}
    answer = server.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    (model,) = server.http.get("/api/ps").json()["models"]
    assert model["expires_at"] > "2300"
    assert model["context_length"] >= 700
    assert server.http.post(path, json=body | {"keep_alive": "soon"}).status_code == 400
    refused = server.http.post(path, json=body | {"options": {"num_ctx": 512, "temperature": 1}})
    assert "options.temperature is not read here" in refused.text
