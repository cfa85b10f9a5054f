"""Schemas and forced calls in every dialect, on llama.cpp: an answer obeys, or a 400 names the keyword and its place.

`caller` writes what is preferred by a table and `random` has random weights, so that only a grammar makes them obey."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import validator_for
from live_server import Serve, Server, running
from tool_caller import SENTENCE, write_tool_caller
from tool_template import TOOL_TEMPLATE

from trilithon.board.snapshot import read_board
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.runtime.pool.pool import Pool
from trilithon.runtime.process import workspace
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.service import Service
from trilithon.settings import load_configuration

USER = [{"role": "user", "content": "What is the weather?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
MODELS = ("caller", "random", "thinker")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("forms")
    paths = (
        write_tool_caller(folder / "caller.gguf"),
        write_tiny_model(folder / "random.gguf", template=TOOL_TEMPLATE, context=8192),
        write_tool_caller(folder / "thinker.gguf", thinks=True),
    )
    configuration = load_configuration()
    shelf = Catalog(configuration, read_board(), paths=paths, placement="llama.cpp@embedded/cpu")
    with workspace() as pool_folder, running(Service(shelf, Pool(configuration, pool_folder)), None) as live:
        yield live


def form_of(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def one_property(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}


def asked(server: Server, schema: Any, route: str, model: str = "caller") -> tuple[int, str, Any]:
    """Status, the text of the answer, and the body, of one route that takes a schema."""
    common = {"model": model, "temperature": 0, "stream": False}
    bodies = {
        "/v1/chat/completions": {"messages": USER, "max_tokens": 200, **form_of(schema)},
        "/v1/responses": {
            "input": "hi",
            "max_output_tokens": 200,
            "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}},
        },
        "/v1/messages": {
            "messages": USER,
            "max_tokens": 200,
            "output_config": {"format": {"type": "json_schema", "schema": schema}},
        },
        "/api/chat": {"messages": USER, "format": schema, "options": {"temperature": 0, "num_predict": 200}},
        "/api/generate": {"prompt": "hi", "format": schema, "options": {"temperature": 0, "num_predict": 200}},
        "/completion": {"prompt": "hi", "n_predict": 200, "json_schema": schema},
    }
    answer = server.http.post(route, json=common | bodies[route])
    body = answer.json()
    if answer.status_code != 200:
        return answer.status_code, "", body
    texts = {
        "/v1/chat/completions": lambda: body["choices"][0]["message"]["content"],
        "/v1/responses": lambda: body["output"][0]["content"][0]["text"],
        "/v1/messages": lambda: body["content"][0]["text"],
        "/api/chat": lambda: body["message"]["content"],
        "/api/generate": lambda: body["response"],
        "/completion": lambda: body["content"],
    }
    return 200, texts[route](), body


ROUTES = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate", "/completion")
HELD = {
    "pattern": {"type": "string", "pattern": r"^\d{3}-\d{2}$"},
    "open pattern": {"type": "string", "pattern": "^b+c?$"},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "email": {"type": "string", "format": "email", "maxLength": 12},
    "number": {"type": "number", "minimum": 10.5, "maximum": 11},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 20},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}], "items": False, "minItems": 2},
    "union": {"oneOf": [{"type": "integer"}, one_property({"const": "z"})]},
    "intersection": {"allOf": [{"type": "integer", "minimum": 30}, {"maximum": 40}]},
    "map": {"type": "object", "patternProperties": {"^k": {"type": "integer"}}, "additionalProperties": False},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 4},
    "reference": {"$ref": "#/$defs/t"},
    "stored form": {"type": "integer", "format": "int32"},
    "own form": {"type": "string", "format": "phone", "pattern": "^[0-9]+$"},
}
UNHELD = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "not": {"type": "integer", "not": {"const": 3}},
    "if": {"if": {"type": "string"}, "then": {"minLength": 2}},
    "contains": {"type": "array", "contains": {"const": 1}},
    "propertyNames": {"type": "object", "propertyNames": {"minLength": 2}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "pattern": {"type": "string", "pattern": r"^(\w)\w*x\b.$"},
    "format": {"type": "string", "format": "idn-email"},
    "minProperties": {"type": "object", "properties": {"x": {}}, "minProperties": 1},
    "$ref": {"$ref": "#/$defs/loop"},
    "maxLength": {"type": "string", "maxLength": 2.0},
    "multipleOf": {"type": "integer", "multipleOf": 0.123456789},
    "anyOf": {"anyOf": [False, False]},
    "allOf": {"allOf": [True, False]},
    "uri": {"type": "string", "format": "uri"},
}


@pytest.mark.parametrize(
    ("name", "route"), [*((name, ROUTES[0]) for name in HELD), *(("pattern", route) for route in ROUTES[1:])]
)
def test_a_schema_is_obeyed(server: Server, name: str, route: str) -> None:
    schema = one_property(HELD[name]) | {"$defs": {"t": {"type": "integer", "exclusiveMinimum": 4}}}
    status, text, body = asked(server, schema, route)
    assert status == 200, body
    assert validator_for(schema, validate_formats=True).is_valid(json.loads(text)), text


@pytest.mark.parametrize(
    ("keyword", "route"), [*((name, ROUTES[0]) for name in UNHELD), *(("uniqueItems", route) for route in ROUTES[1:])]
)
def test_a_keyword_that_nothing_holds_is_named_with_its_place(server: Server, keyword: str, route: str) -> None:
    loop = {"anyOf": [{"$ref": "#/$defs/loop"}, {"type": "null"}]}
    schema = one_property(UNHELD[keyword]) | {"$defs": {"loop": loop, "unused": {"not": {}}}}
    status, _, body = asked(server, schema, route)
    assert status == 400, body
    assert "#/properties/a" in json.dumps(body)
    assert ("format" if keyword == "uri" else keyword) in json.dumps(body)


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_no_schema_is_named(server: Server, route: str) -> None:
    for schema in (
        one_property({"type": "intege"}),
        {"$ref": "http://127.0.0.1:1/x"},
        {"$schema": "http://127.0.0.1:1/"},
    ):
        status, _, body = asked(server, schema, route)
        assert status == 400, body
        assert "not a JSON schema" in json.dumps(body)


def test_a_model_whose_grammar_is_llama_cpps_own(server: Server) -> None:
    """Its tokenizer puts a space before every text, which llguidance cannot be told; and a model that thinks."""
    for name, schema in HELD.items():
        for model in ("random", "thinker"):
            schema_of = one_property(schema) | {"$defs": {"t": {"type": "integer", "exclusiveMinimum": 4}}}
            status, text, body = asked(server, schema_of, "/v1/chat/completions", model)
            if status == 200 and body["choices"][0]["finish_reason"] == "stop":
                assert validator_for(schema_of, validate_formats=True).is_valid(json.loads(text)), (name, text)
            elif status != 200:
                assert status == 400 and "#/properties/a" in body["error"]["message"], body
    body = {"model": "thinker", "messages": USER, "temperature": 0, **form_of(one_property(HELD["pattern"]))}
    assert "reasoning_effort none" in server.http.post("/v1/chat/completions", json=body).json()["error"]["message"]
    answer = server.http.post("/v1/chat/completions", json=body | {"reasoning_effort": "none"})
    assert answer.json()["choices"][0]["message"]["content"] == '{"a": "433-33"}'


def test_an_answer_that_breaks_its_schema_is_an_error_in_a_stream_too(server: Server) -> None:
    """`oneOf` is held as `anyOf`, so that only the validation of the finished answer finds a value that is both."""
    both = one_property({"oneOf": [{"type": "integer"}, {"type": "number", "maximum": 5}]})
    status, _, body = asked(server, both, "/v1/chat/completions")
    assert (status, "breaks #/properties/a/oneOf" in body["error"]["message"]) == (400, True)
    request = {"model": "caller", "messages": USER, "temperature": 0, "stream": True, **form_of(both)}
    stream = server.http.post("/v1/chat/completions", json=request).text
    assert "breaks #/properties/a/oneOf" in stream and 'finish_reason":"stop' not in stream


def calls(server: Server, **more: Any) -> dict[str, Any]:
    body = {"model": "caller", "messages": USER, "temperature": 0, "max_tokens": 300, **more}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"get_weather", "clock"}), ({"type": "function", "function": {"name": "clock"}}, {"clock"})],
)
def test_a_forced_call_comes(server: Server, model: str, choice: Any, names: set[str]) -> None:
    answer = calls(server, model=model, tools=[WEATHER, CLOCK], tool_choice=choice, **form_of({"type": "object"}))
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] in names
    assert call["id"] and call["type"] == "function"
    assert answer["finish_reason"] == "tool_calls" and not answer["message"]["content"]
    arguments = json.loads(call["function"]["arguments"])
    assert arguments.keys() == ({"city"} if call["function"]["name"] == "get_weather" else set())


def test_a_forced_call_comes_in_every_dialect(server: Server) -> None:
    tool = {"name": "get_weather", "input_schema": CITY}
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        for stream in (False, True):
            body = {"model": "caller", "messages": USER, "max_tokens": 200, "temperature": 0, "tools": [tool]}
            answer = server.http.post("/v1/messages", json=body | {"tool_choice": choice, "stream": stream})
            assert '"tool_use"' in answer.text and "get_weather" in answer.text
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        body = {"model": "caller", "input": "hi", "temperature": 0, "tool_choice": choice}
        answer = server.http.post("/v1/responses", json=body | {"tools": [{"type": "function", **WEATHER["function"]}]})  # type: ignore[dict-item]
        (item,) = answer.json()["output"]
        assert (item["type"], item["name"], json.loads(item["arguments"])) == (
            "function_call",
            "get_weather",
            {"city": "a"},
        )


def test_a_forced_call_in_a_stream(server: Server) -> None:
    body = {"model": "caller", "messages": USER, "temperature": 0, "tools": [WEATHER], "tool_choice": "required"}
    answer = server.http.post("/v1/chat/completions", json=body | {"stream": True})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    (call,) = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert (call["index"], call["function"]["name"], json.loads(call["function"]["arguments"])) == (
        0,
        "get_weather",
        {"city": "a"},
    )
    assert not any(delta.get("content") for delta in deltas)
    assert [event["choices"][0]["finish_reason"] for event in events if event["choices"]][-1] == "tool_calls"
    assert answer.text.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_did_not_come_is_an_error(server: Server, stream: bool) -> None:
    body = {"model": "caller", "messages": USER, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 3}
    answer = server.http.post("/v1/chat/completions", json=body | {"stream": stream})
    assert answer.status_code == (200 if stream else 400)
    assert "ended before a tool was called" in answer.text


def test_parameters_of_a_forced_call_are_obeyed(server: Server) -> None:
    parameters = one_property(HELD["pattern"]) | {"properties": {"a": HELD["pattern"], "more": {"$ref": "#/$defs/n"}}}
    parameters |= {"$defs": {"n": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/n"}}]}}}
    parameters["required"] = ["a", "more"]
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}
    for tools in ([tool], [tool, CLOCK]):
        choice = {"type": "function", "function": {"name": "f"}}
        (call,) = calls(server, tools=tools, tool_choice=choice)["message"]["tool_calls"]
        assert validator_for(parameters).is_valid(json.loads(call["function"]["arguments"]))


def test_parameters_that_nothing_holds(server: Server) -> None:
    """OpenAI defines that a call may break the parameters of a tool, unless the tool is strict."""
    function = {"name": "f", "parameters": one_property(HELD["pattern"])}
    body = {"model": "caller", "messages": USER, "temperature": 0, "max_tokens": 300}
    loose = server.http.post(
        "/v1/chat/completions", json=body | {"tools": [{"type": "function", "function": function}]}
    )
    assert loose.status_code == 200
    assert loose.headers["X-Trilithon-Ignored"] == "tools.0.function.parameters.properties.a.pattern"
    strict = {"type": "function", "function": function | {"strict": True}}
    refused = server.http.post("/v1/chat/completions", json=body | {"tools": [strict]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools.0.function.parameters.properties.a.pattern"


def test_the_tool_caller_calls_what_is_offered_and_then_answers(server: Server) -> None:
    choice = calls(server, tools=[CLOCK, WEATHER])
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    result = {"role": "tool", "tool_call_id": call["id"], "content": "fine"}
    after = calls(server, tools=[CLOCK, WEATHER], messages=[*USER, choice["message"], result])
    for answer in (after, calls(server), calls(server, tools=[WEATHER], tool_choice="none")):
        assert (answer["message"]["content"], answer["finish_reason"]) == ("".join(SENTENCE), "stop")


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_custom_tool_is_called_with_a_text(server: Server, choice: str, stream: bool) -> None:
    body = {"model": "caller", "messages": USER, "temperature": 0, "max_tokens": 300, "stream": stream}
    body |= {"tools": [{"type": "custom", "custom": {"name": "patch"}}], "tool_choice": choice}
    answer = server.http.post("/v1/chat/completions", json=body)
    if stream:
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        found = [call for event in events for part in event["choices"] for call in part["delta"].get("tool_calls", ())]
    else:
        found = answer.json()["choices"][0]["message"]["tool_calls"]
    (call,) = found
    assert (call["type"], call["custom"]) == ("custom", {"name": "patch", "input": "a"})


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_custom_call_in_the_responses_api(server: Server, choice: str) -> None:
    body = {"model": "caller", "input": "hi", "temperature": 0, "tools": [{"type": "custom", "name": "patch"}]}
    body["tool_choice"] = choice
    (item,) = server.http.post("/v1/responses", json=body).json()["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", "a")
    stream = server.http.post("/v1/responses", json=body | {"stream": True}).text
    assert "response.custom_tool_call_input.done" in stream
    result = {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "done"}
    after = server.http.post("/v1/responses", json=body | {"input": [{"role": "user", "content": "hi"}, item, result]})
    assert after.status_code == 200, after.text


def test_the_scripted_engine_refuses_what_a_script_does_not_obey(serve: Serve, tmp_path: Path) -> None:
    scripted = serve(write_tool_caller(tmp_path / "caller.gguf"))
    body = {"model": "caller", "messages": USER, "max_tokens": 2}
    shaped = ({"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "required"}, form_of({"type": "object"}))
    for more in shaped:
        answer = scripted.http.post("/v1/chat/completions", json=body | more)
        assert (answer.status_code, "leave" in answer.json()["error"]["message"]) == (400, True)
    assert scripted.http.post(
        "/v1/chat/completions", json=body | {"tools": [WEATHER], "tool_choice": "none"}
    ).is_success
