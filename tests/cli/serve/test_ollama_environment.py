"""Ollama's variables as defaults: each of them, beside options, and with values that do not fit."""

import re
from typing import Any

import pytest

from trilithon.cli.serve.ollama_environment import ollama_defaults
from trilithon.errors import UserError


def read(*named: str, **environment: str) -> dict[str, Any]:
    return ollama_defaults(environment, lambda option: option in named)[0]


@pytest.mark.parametrize(
    ("variable", "text", "values"),
    [
        ("OLLAMA_KEEP_ALIVE", "24h", {"keep_alive": "86400s"}),
        ("OLLAMA_KEEP_ALIVE", "300", {"keep_alive": "300s"}),
        ("OLLAMA_KEEP_ALIVE", "1h30m", {"keep_alive": "5400s"}),
        ("OLLAMA_KEEP_ALIVE", "-1", {"keep_alive": "-1"}),
        ("OLLAMA_KEEP_ALIVE", "0", {"keep_alive": "0s"}),
        ("OLLAMA_CONTEXT_LENGTH", "8192", {"context": 8192}),
        ("OLLAMA_CONTEXT_LENGTH", "0", {}),
        ("OLLAMA_NUM_PARALLEL", "4", {"parallel": 4}),
        ("OLLAMA_NUM_PARALLEL", "0", {}),
        ("OLLAMA_ORIGINS", "https://a.example, app://*", {"cors": ("https://a.example", "app://*")}),
        ("OLLAMA_ORIGINS", '"*"', {"cors": ("*",)}),
        ("OLLAMA_HOST", "0.0.0.0", {"host": "0.0.0.0"}),
        ("OLLAMA_HOST", "0.0.0.0:11434", {"host": "0.0.0.0", "port": 11434}),
        ("OLLAMA_HOST", ":8080", {"port": 8080}),
        ("OLLAMA_HOST", "http://127.0.0.1:11435", {"host": "127.0.0.1", "port": 11435}),
        ("OLLAMA_HOST", "[::1]:1234", {"host": "::1", "port": 1234}),
        ("OLLAMA_HOST", " ", {}),
    ],
)
def test_a_variable_is_a_default(variable: str, text: str, values: dict[str, Any]) -> None:
    read_values, used = ollama_defaults({variable: text}, lambda _: False)
    assert read_values == values
    assert [line.partition("=")[0] for line in used] == ([variable] if values else [])


def test_an_option_goes_before() -> None:
    assert read("keep_alive", OLLAMA_KEEP_ALIVE="nonsense") == {}
    assert read("port", OLLAMA_HOST="0.0.0.0:11434") == {"host": "0.0.0.0"}
    assert read("host", "port", OLLAMA_HOST="0.0.0.0:11434") == {}


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("OLLAMA_KEEP_ALIVE", "soon"),
        ("OLLAMA_CONTEXT_LENGTH", "4k"),
        ("OLLAMA_CONTEXT_LENGTH", "100"),
        ("OLLAMA_NUM_PARALLEL", "-1"),
        ("OLLAMA_NUM_PARALLEL", "65"),
        ("OLLAMA_HOST", "host:port"),
    ],
)
def test_what_does_not_fit_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{variable}={text}")):
        read(**{variable: text})


def test_the_server_says_what_it_took(serving: Any, tiny: Any) -> None:
    served = serving(tiny, "--parallel", "1", OLLAMA_CONTEXT_LENGTH="512", OLLAMA_NUM_PARALLEL="3", OLLAMA_HOST=":1")
    served.said("Trilithon .* serves .* at ")
    assert "from the environment: OLLAMA_CONTEXT_LENGTH=512 as --context" in served.errors
    assert "OLLAMA_NUM_PARALLEL" not in served.errors
    assert "OLLAMA_HOST=:1" not in served.errors


def test_an_address_for_everybody_needs_a_key_as_ever(trilithon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:11434")
    done = trilithon("serve")
    assert done.code == 2
    assert "from the environment: OLLAMA_HOST=0.0.0.0:11434 as --host, --port" in done.stderr
    assert "without authentication" in done.stderr
