"""Schemas of strangers: the look at their keywords ends soon, and what is refused is named."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from trilithon.serve.forms import validation
from trilithon.serve.forms.constraint import _moved, is_free
from trilithon.serve.forms.keywords import evaluations, first_unheld, regular
from trilithon.serve.forms.validation import AnswerSchema
from trilithon.serve.http.errors import ApiError

CHAT = "/v1/chat/completions"


def doubled(levels: int, keyword: str) -> dict[str, Any]:
    """Each definition refers twice to the next one."""
    chain = {f"d{at}": {keyword: [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(levels)}
    return {"$defs": {**chain, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
def test_alternatives_that_multiply_are_counted_and_refused(keyword: str) -> None:
    assert evaluations(doubled(4, keyword)) < 100
    AnswerSchema(doubled(4, keyword), "schema")
    assert first_unheld(doubled(60, keyword), "chat") == ""
    with pytest.raises(ApiError, match="alternatives"):
        AnswerSchema(doubled(60, keyword), "schema")


def test_a_schema_that_refers_to_itself_is_counted_once() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    assert evaluations(tree) < 10


def nested(levels: int, value: Any) -> str:
    for _ in range(levels):
        value = {"a": value}
    return json.dumps(value)


def test_alternatives_that_refer_to_themselves_multiply_with_the_answers_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = {"type": "object", "properties": {"a": {"$ref": "#"}}}
    schema = {"anyOf": [inner, inner | {"required": ["b"]}, inner | {"maxProperties": 3}, {"type": "integer"}]}
    counts = [evaluations(schema, levels) for levels in (0, 2, 4, 8)]
    assert counts[0] < 50 and counts[3] > 3**8 > counts[1]
    known = AnswerSchema(schema, "schema")
    for levels, value, broken in ((1, 3, ""), (7, 3, ""), (1, "x", "#/anyOf"), (4, "x", "#/anyOf")):
        assert asyncio.run(known.check(nested(levels, value))) == broken
    assert asyncio.run(known.check("{" * 100)) == "#"
    monkeypatch.setattr(validation, "_CPU_SECONDS", 1)
    with pytest.raises(ApiError, match="schema: an answer takes over 1 s to compare with this schema"):
        asyncio.run(known.check(nested(40, "x")))


def test_a_long_answer_is_compared_elsewhere_too() -> None:
    words = AnswerSchema({"type": "array", "items": {"type": "integer"}}, "schema")
    assert asyncio.run(words.check(json.dumps([1] * 100_000))) == ""
    assert asyncio.run(words.check(json.dumps(["é"] * 100_000))) == "#/items/type"


def test_the_comparing_process_takes_no_module_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resource.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    known = AnswerSchema({"type": "array"}, "schema")
    assert asyncio.run(known.check(json.dumps([1] * 100_000))) == ""


def test_a_reference_that_leads_back_to_itself() -> None:
    circle = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    assert first_unheld({"$defs": circle, "$ref": "#/$defs/a"}, "chat") == "#/$ref"
    inside = {"a": {"type": "object", "properties": {"next": {"$ref": "#/$defs/a"}}}}
    assert first_unheld({"$defs": inside, "$ref": "#/$defs/a"}, "chat") == ""


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"anyOf": 5}, "#/anyOf"),
        ({"required": ["a"], "properties": 5}, "#/required"),
        ({"$defs": [{}], "$ref": "#/$defs/" + "9" * 5000}, "#/$ref"),
    ],
)
def test_parameters_that_are_no_schema_are_named(parameters: dict[str, Any], place: str) -> None:
    assert first_unheld(parameters, "chat") == place


def test_classes_of_a_pattern_that_are_not_closed() -> None:
    assert regular("^[a-f\\d]+$") == "^[a-f0-9]+$"
    assert regular("[a\\") is None
    assert regular("[" * 250_000) == "[" * 250_000


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {"properties": {"default": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"enum": [{"$ref": "#/b"}]}}}
    moved = _moved(schema, "#/properties/arguments")
    assert moved["properties"]["default"] == {"$ref": "#/properties/arguments/$defs/a"}
    assert moved["$defs"] == schema["$defs"]


def test_only_schemas_and_tools_need_a_look() -> None:
    assert is_free(CHAT, {"response_format": {"type": "text"}}, frozenset())
    assert not is_free(CHAT, {"response_format": {"type": "json_object", "schema": {}}}, frozenset())
    for fields in ({"tools": [1]}, {"response_format": "json"}):  # which the engine passes over there
        assert is_free("/completion", fields, frozenset())
    assert not is_free("/completion", {"json_schema": {"type": "string"}}, frozenset())
