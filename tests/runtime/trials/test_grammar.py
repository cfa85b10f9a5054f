"""A schema or grammar that would hold an engine is refused, and the engine stays usable: on the real llama.cpp."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trilithon.engines.base import Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.errors import EngineError
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.opening import open_runner
from trilithon.runtime.process import Process
from trilithon.runtime.runner import Runner
from trilithon.runtime.trials import grammar
from trilithon.settings import Configuration

CHAT = "/v1/chat/completions"
MANY = "(a|b)*" * 600
HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache")


@pytest.fixture
def placement(tiny: Path, configuration: Configuration) -> Placement:
    build = next(build for build in LlamaCpp(configuration).builds() if build.name == "embedded")
    settings = Settings(threads=1, context=512)
    return Placement(name="llama.cpp/cpu", file=read_model_file(tiny, None), build=build, unit="cpu", settings=settings)


def form(schema: Mapping[str, Any]) -> dict[str, Any]:
    return HELLO | {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


def tool(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return HELLO | {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}


async def asked(runner: Runner, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    async with runner.relay(path, body) as answer:
        return dict(json.loads(await answer.read()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, form({"type": "string", "pattern": f"^{MANY}$"})),
        (CHAT, form({"type": "object", "properties": {"x": {"pattern": f"^{MANY}$"}}, "required": ["x"]})),
        (CHAT, HELLO | {"grammar": "root ::= " + '("a" | "b")* ' * 600}),
        ("/completion", {"prompt": "hi", "n_predict": 4, "grammar": "root ::= " + '("a" | "b")* ' * 600}),
    ],
    ids=["pattern", "inner pattern", "grammar of a chat", "grammar"],
)
def test_what_holds_the_engine_is_refused_and_the_engine_answers(
    tmp_path: Path,
    placement: Placement,
    configuration: Configuration,
    monkeypatch: pytest.MonkeyPatch,
    children: list[Process],
    path: str,
    body: dict[str, Any],
) -> None:
    monkeypatch.setattr(grammar, "_CPU_SECONDS", 3)

    async def whole() -> None:
        async with open_runner(placement, tmp_path / "run", configuration) as runner:
            for _ in range(2):
                with pytest.raises(EngineError, match="grammar takes more than 3 s of CPU time") as caught:
                    await asked(runner, path, body)
                assert caught.value.status == 400
                assert len(children) == 2  # the model, the trial; the second time it is remembered
            assert (await asked(runner, CHAT, HELLO))["choices"]

    asyncio.run(whole())


def test_a_small_schema_takes_no_trial_and_a_good_pattern_one(
    tmp_path: Path, placement: Placement, configuration: Configuration, children: list[Process]
) -> None:
    good = [
        (form({"type": "object", "properties": {"a": {"type": "integer"}}}), 1),
        (tool({"type": "object", "properties": {"a": {"type": "string"}}}), 1),
        (tool({"type": "object", "properties": {"pattern": {"type": "string", "description": "x" * 40_000}}}), 1),
        (form({"type": "string", "pattern": "^[a-z]{3}$"}), 2),
        (form({"type": "string", "pattern": "^[a-z]{3}$"}), 2),
        (tool({"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]{3}$"}}}), 3),
    ]

    async def whole() -> None:
        async with open_runner(placement, tmp_path / "run", configuration) as runner:
            for body, started in good:
                assert (await asked(runner, CHAT, body))["choices"]
                assert len(children) == started

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("schema", "tried"),
    [
        ({"const": {"description": "x" * 40_000}}, True),
        ({"enum": [[{"title": "x" * 40_000}]]}, True),
        ({"enum": [[]] * 40_000}, True),
        ({"properties": {"a": {"description": "x" * 40_000, "const": "a"}}}, False),
    ],
    ids=["const", "enum", "empty parts", "text"],
)
def test_a_text_that_describes_does_not_count_but_a_literal_does(schema: dict[str, Any], tried: bool) -> None:
    assert grammar.is_tried(CHAT, form(schema)) is tried


def test_a_client_that_leaves_ends_the_trial(
    tmp_path: Path, placement: Placement, configuration: Configuration, children: list[Process]
) -> None:
    async def whole() -> None:
        async with open_runner(placement, tmp_path / "run", configuration) as runner:
            task = asyncio.create_task(asked(runner, CHAT, form({"type": "string", "pattern": f"^{MANY}$"})))
            async with asyncio.timeout(60):
                while len(children) < 2:  # noqa: ASYNC110 (nothing tells it)
                    await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert children[1].returncode is not None
            assert (await asked(runner, CHAT, HELLO))["choices"]

    asyncio.run(whole())
