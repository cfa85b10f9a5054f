"""What a model's own form adds to a request, and what it was never taught."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.serve.http.errors import ApiError
from trilithon.serve.request_defaults import fitted

CHAT = "/v1/chat/completions"


@pytest.fixture
def base(tiny: Path) -> ModelFile:
    return read_model_file(tiny, None)


def test_a_base_model_is_stopped_where_its_form_ends(base: ModelFile) -> None:
    form = base.prompt_form
    assert form is not None
    body = fitted(CHAT, {"messages": [], "stop": "END"}, base, "m")
    assert body["stop"] == ["END", *form.stop]
    assert body["repeat_penalty"] == form.repeat_penalty
    assert fitted(CHAT, {"repeat_penalty": 1.5}, base, "m")["repeat_penalty"] == 1.5
    assert fitted("/completion", {"prompt": "a"}, base, "m") == {"prompt": "a"}


@pytest.mark.parametrize(
    "held",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        {"response_format": {"type": "json_object"}},
        {"json_schema": {"type": "object"}},
        {"grammar": 'root ::= "a"'},
    ],
)
def test_what_a_grammar_holds_is_not_stopped(base: ModelFile, held: dict[str, Any]) -> None:
    """It may begin with the lines' ends that stop a base model, and would be empty then."""
    body = {"messages": [], "stop": "END", **held}
    assert fitted(CHAT, body, base, "m") == body
    assert "stop" in fitted(CHAT, {"response_format": {"type": "text"}}, base, "m")


def test_a_model_with_a_template_gets_what_was_sent(tmp_path: Path) -> None:
    file = read_model_file(write_tiny_model(tmp_path / "m.gguf", template="{{ messages }}"), None)
    assert fitted(CHAT, {"messages": [], "stop": "END"}, file, "m") == {"messages": [], "stop": "END"}


def test_tools_need_a_template_that_knows_them(base: ModelFile) -> None:
    body = {"messages": [], "tools": [{"type": "function"}]}
    with pytest.raises(ApiError, match="m does not support tools") as raised:
        fitted(CHAT, body, base, "m")
    assert (raised.value.status, raised.value.field) == (400, "tools")
    assert fitted(CHAT, body | {"tool_choice": "none"}, base, "m")["tools"]
    able = replace(base, capabilities=frozenset({"tools"}), prompt_form=None)
    assert fitted(CHAT, body, able, "m") == body
