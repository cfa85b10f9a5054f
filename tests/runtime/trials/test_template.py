"""A chat template that takes too much is found out before its model is loaded, on the real llama.cpp."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.engines.base import Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.wire.messages import Chat
from trilithon.errors import ChildDied, EngineError, RunError, StartError
from trilithon.models.files.model_file import read_model_file
from trilithon.models.files.prompt_form import BASE_TEMPLATE
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.runtime.opening import open_runner
from trilithon.runtime.process import Process
from trilithon.runtime.trials import template as template_trial
from trilithon.settings import Configuration

TURNS = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
TALL = "{% for a in range(999999999) %}{% for b in range(999999999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(32) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
)
RECURSIVE = "{% macro again() %}{{ again() }}{% endmacro %}"
LONG = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"

# Which limit a growing template meets first depends on the machine.
LIMIT, RECURSION = "(needs|takes) more than", "calls itself without end"


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_trial, "_CPU_SECONDS", 4)
    monkeypatch.setattr(template_trial, "_MEMORY_BYTES", 400 << 20)


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache")


def placement_of(path: Path, configuration: Configuration) -> Placement:
    build = next(build for build in LlamaCpp(configuration).builds() if build.name == "embedded")
    file = read_model_file(path, configuration.cache)
    settings = Settings(threads=1, context=512)
    return Placement(name="llama.cpp/cpu", file=file, build=build, unit="cpu", settings=settings)


def placed(configuration: Configuration, folder: Path, template: str) -> Placement:
    return placement_of(write_tiny_model(folder / "model.gguf", template=template), configuration)


def answered(placement: Placement, folder: Path, configuration: Configuration) -> int:
    """How many tokens a loaded model answers."""

    async def whole() -> int:
        async with open_runner(placement, folder / "run", configuration) as runner:
            events, _ = await runner.complete(Chat(messages=[("user", "Hello")], max_tokens=4))
            return len(events)

    return asyncio.run(whole())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (TALL + TURNS, LIMIT),
        (DOUBLED + TURNS, LIMIT),
        ("{% if messages|length > 3 %}" + TALL + "{% endif %}" + TURNS, LIMIT),
        ("{% if tools %}" + DOUBLED + "{% endif %}" + TURNS, LIMIT),
        (LONG + TURNS, LIMIT),
        ("{% if messages|length > 3 %}" + LONG + "{% endif %}" + TURNS, LIMIT),
        (RECURSIVE + "{{ again() }}" + TURNS, RECURSION),
        (RECURSIVE + "{% if messages|length > 3 %}{{ again() }}{% endif %}" + TURNS, RECURSION),
        (RECURSIVE + "{% if tools %}{{ again() }}{% endif %}" + TURNS, RECURSION),
    ],
)
def test_a_template_without_end_is_refused(
    tmp_path: Path, configuration: Configuration, small_limits: None, template: str, reason: str
) -> None:
    placement = placed(configuration, tmp_path, template)
    with pytest.raises(StartError, match=f"is not started: the model's chat template {reason}") as caught:
        answered(placement, tmp_path, configuration)
    assert "chat template" in caught.value.cause and "driver" not in caught.value.advice


def test_a_good_template_is_tried_once(tmp_path: Path, configuration: Configuration, children: list[Process]) -> None:
    placement = placed(configuration, tmp_path, TURNS)
    assert answered(placement, tmp_path, configuration)
    assert len(children) == 2  # the trial, the model
    assert answered(placement, tmp_path, configuration)
    assert len(children) == 3


def test_a_refused_template_is_not_tried_again(
    tmp_path: Path, configuration: Configuration, small_limits: None, children: list[Process]
) -> None:
    placement = placed(configuration, tmp_path, "{% for")
    for _ in range(2):
        with pytest.raises(StartError, match="chat template cannot be used"):
            answered(placement, tmp_path, configuration)
    assert len(children) == 2  # the template, and a good one


def test_a_template_beside_the_model_counts(
    tmp_path: Path, configuration: Configuration, small_limits: None, children: list[Process]
) -> None:
    write_tiny_model(tmp_path / "model.gguf", template=TURNS)
    (tmp_path / "chat_template.jinja").write_text(RECURSIVE + "{{ again() }}")
    with pytest.raises(StartError, match=RECURSION):
        answered(placement_of(tmp_path / "model.gguf", configuration), tmp_path, configuration)
    assert len(children) == 2


def test_a_template_that_refuses_conversations_is_good(tmp_path: Path, configuration: Configuration) -> None:
    strict = "{% if messages|length > 1 or tools %}{{ raise_exception('one message') }}{% endif %}" + TURNS
    assert answered(placed(configuration, tmp_path, strict), tmp_path, configuration)


def test_a_model_without_a_template_is_not_tried(
    tmp_path: Path, configuration: Configuration, children: list[Process]
) -> None:
    placement = placement_of(write_tiny_model(tmp_path / "model.gguf"), configuration)
    assert placement.file.prompt_form and placement.file.prompt_form.template == BASE_TEMPLATE
    assert answered(placement, tmp_path, configuration)
    assert len(children) == 1


@pytest.mark.parametrize("change", [lambda build: replace(build, name="native", where="/no/such/llama-server")])
def test_an_engine_that_does_not_start_is_not_the_templates_fault(
    tmp_path: Path, configuration: Configuration, change: Callable[..., object]
) -> None:
    placement = placed(configuration, tmp_path, TURNS)
    with pytest.raises(RunError, match="did not start: the engine's program cannot be started"):
        answered(replace(placement, build=change(placement.build)), tmp_path, configuration)  # type: ignore[arg-type]


def test_an_engine_that_fails_with_a_good_template_is_not_tried_each_time(
    tmp_path: Path, configuration: Configuration, children: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_trial, "_MEMORY_BYTES", 1 << 20)
    for expected, template in ((3, TURNS), (4, TURNS), (5, "x" + TURNS)):  # the first: its template, a good one, itself
        assert answered(placed(configuration, tmp_path, template), tmp_path, configuration)
        assert len(children) == expected
    for remembered in (configuration.cache / "templates").iterdir():
        os.utime(remembered, (0, 0))
    assert answered(placed(configuration, tmp_path, TURNS), tmp_path, configuration)
    assert len(children) == 8


@pytest.mark.slow
def test_a_death_at_one_conversation_is_blamed_on_the_template(tmp_path: Path, configuration: Configuration) -> None:
    late = RECURSIVE + "{% if messages[0]['content'] == 'Go' %}{{ again() }}{% endif %}" + TURNS
    placement = placed(configuration, tmp_path, late)

    async def whole() -> None:
        async with open_runner(placement, tmp_path / "run", configuration) as runner:
            body = {"messages": [{"role": "user", "content": "Go"}], "max_tokens": 4, "stream": True}
            with pytest.raises(EngineError, match="died: the model's chat template calls itself without end") as caught:
                async with runner.relay("/v1/chat/completions", body) as answer:
                    await answer.read()
            assert caught.value.status == 500
            with pytest.raises(ChildDied):  # a conversation that the template does not spoil
                async with runner.relay(
                    "/v1/chat/completions", body | {"messages": [{"role": "user", "content": "x"}]}
                ):
                    pass

    asyncio.run(whole())
