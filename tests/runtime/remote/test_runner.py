"""A server is measured through its API: by stand-ins of Ollama, RKLLAMA and OpenAI's API."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standin_servers import StandInServer, serving

from trilithon.bench.quality import judge, read_quality
from trilithon.bench.workloads import measure, warm_up
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.remote.placing import place_server
from trilithon.errors import ChildDied, EngineError, RunError, StartError
from trilithon.measure.metrics import metrics_of
from trilithon.measure.records import Test
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.remote.runner import RemoteRunner

PP, TG = Test(kind="pp", prompt_tokens=128), Test(kind="tg", generated_tokens=24)
QUESTION = Test(kind="question", question="tell me about stones")
APIS = ("Ollama", "RKLLAMA", "OpenAI API")


def measured(server: StandInServer, tiny: Path, work: Callable[[RemoteRunner], Awaitable[Any]]) -> Any:
    file = read_model_file(tiny, tiny.parent)
    options = parse_placement(server.address).options
    placement = place_server(server.address, options, ("qwen2.5:1.5b",), file, 4096)

    async def whole() -> Any:
        async with RemoteRunner.open(placement, hang_seconds=20) as runner:
            return await work(runner)

    return asyncio.run(whole())


def standin(api: str, **fields: Any) -> StandInServer:
    return StandInServer(api, unit=1e3 if api == "RKLLAMA" else 1e9, **fields)


@pytest.mark.parametrize("api", APIS)
def test_prefill_decode_and_a_question(api: str, tiny: Path) -> None:
    async def work(runner: RemoteRunner) -> Any:
        await warm_up(runner, [PP])
        samples = [await measure(runner, test) for test in (PP, TG, QUESTION)]
        return samples, runner.notices

    thinking = "<think>what are stones</think>"
    with serving(standin(api, answer_words=60, thinking=thinking)) as server:
        (prefill, decode, question), notices = measured(server, tiny, work)
    assert prefill.prompt_evaluated is not None
    assert prefill.prompt_evaluated >= PP.prompt_tokens
    assert decode.decode_steps == TG.generated_tokens
    # Not slower than the stand-in's pace: the machine may be slower, never faster.
    assert metrics_of(prefill)["prefill_tokens_per_second"] <= 1.05 * prefill.prompt_evaluated / server.prompt_seconds
    assert 0 < metrics_of(decode)["decode_tokens_per_second"] <= 1.4 / server.word_seconds
    assert question.thinking_text == "what are stones"
    assert metrics_of(question)["words"] == 60
    assert metrics_of(question)["ttft_seconds"] >= server.prompt_seconds
    assert question.answer_at_ns[0] > question.thinking_at_ns[0]
    assert notices[0].startswith(f"through HTTP: {api}")
    said = " ".join(notices[1:])
    assert ("in milliseconds, where nanoseconds" in said) == (api == "RKLLAMA")
    assert ("by the client's clock: the server states no duration" in said) == (api == "OpenAI API")


def test_no_prompt_is_sent_twice(tiny: Path) -> None:
    async def work(runner: RemoteRunner) -> None:
        for _ in range(3):
            await measure(runner, PP)

    with serving(standin("Ollama", prompt_seconds=0.0)) as server:
        measured(server, tiny, work)
    prompts = [body["prompt"] for path, body in server.requests if path == "/api/generate"]
    assert len(set(prompts)) == len(prompts) == 3
    assert all(body["raw"] is True and body["options"]["num_predict"] == 1 for _, body in server.requests)


@pytest.mark.parametrize("unit", [4e9, 1e8])
def test_a_duration_that_cannot_be_is_replaced_by_the_clocks(unit: float, tiny: Path) -> None:
    async def work(runner: RemoteRunner) -> Any:
        return await measure(runner, TG), runner.notices

    with serving(StandInServer("Ollama", unit=unit, word_seconds=0.02)) as server:
        sample, notices = measured(server, tiny, work)
    assert metrics_of(sample)["decode_tokens_per_second"] <= 1.05 / server.word_seconds
    assert any("decode by the client's clock: the server states a duration that cannot be" in line for line in notices)


def test_a_shorter_context_of_the_server_is_found(tiny: Path) -> None:
    async def work(runner: RemoteRunner) -> None:
        await measure(runner, PP)

    server = StandInServer("Ollama")
    answer = server.answer
    server.answer = lambda path, body: answer(path, body | {"prompt": "only this is left"})  # type: ignore[method-assign]
    with serving(server), pytest.raises(RunError, match="counts 4 tokens of the prompt"):
        measured(server, tiny, work)


def test_the_cached_token_that_begins_every_text_is_no_error(tiny: Path) -> None:
    """A llama-server behind a proxy without /props. At a depth nothing else may be there, so that is refused."""
    plain = StandInServer.answer

    def answer(path: str, body: dict[str, Any]) -> Iterator[bytes]:
        for line in plain(server, path, body):
            yield line.replace(b'"usage": {', b'"usage": {"prompt_tokens_details": {"cached_tokens": 1}, ')

    async def work(runner: RemoteRunner) -> Any:
        with pytest.raises(RunError, match="kept 1 of 32"):
            await measure(runner, replace(PP, depth=32))
        return await measure(runner, PP)

    with serving(standin("OpenAI API", prompt_seconds=0.02)) as server:
        server.answer = answer  # type: ignore[method-assign]
        assert measured(server, tiny, work).prompt_cached == 1


def test_an_answer_that_ends_too_early_has_no_rate(tiny: Path) -> None:
    async def work(runner: RemoteRunner) -> None:
        await measure(runner, TG)

    with serving(standin("Ollama", answer_words=3)) as server, pytest.raises(RunError, match="3 tokens of the answer"):
        measured(server, tiny, work)


@pytest.mark.parametrize("api", APIS)
def test_a_server_that_dies_in_an_answer(api: str, tiny: Path) -> None:
    async def work(runner: RemoteRunner) -> None:
        await measure(runner, QUESTION)

    with serving(standin(api, dies_after=5)) as server, pytest.raises(ChildDied) as caught:
        measured(server, tiny, work)
    assert caught.value.cause == "the server ended the connection"


def test_a_server_that_is_gone_or_another_does_not_open(tiny: Path) -> None:
    file = read_model_file(tiny, tiny.parent)

    async def opened(placement: Any) -> None:
        async with RemoteRunner.open(placement, hang_seconds=5):
            raise AssertionError

    with serving(StandInServer("Ollama")) as server:
        placement = place_server(server.address, {"address": server.address}, ("qwen2.5:1.5b",), file, 4096)
        older = replace(placement, build=replace(placement.build, version="0.1"))
        with pytest.raises(StartError, match=r"is now Ollama 0\.33\.0, and was Ollama 0\.1"):
            asyncio.run(opened(older))
    with pytest.raises(StartError, match="no server answers"):
        asyncio.run(opened(placement))


def test_a_model_that_was_removed_meanwhile(tiny: Path) -> None:
    async def work(runner: RemoteRunner) -> None:
        server.models = {}
        await measure(runner, QUESTION)

    with serving(StandInServer("Ollama")) as server, pytest.raises(EngineError, match=r"model 'qwen2\.5:1\.5b' not"):
        measured(server, tiny, work)


@pytest.mark.parametrize(
    ("answer", "verdict"), [({}, "same"), ({"thinking": "Other words"}, "unknown"), ({"answer_words": 0}, "broken")]
)
def test_quality_by_the_answer(answer: dict[str, Any], verdict: str, tiny: Path) -> None:
    async def work(runner: RemoteRunner) -> Any:
        return await read_quality(runner, "tell me")

    readings = []
    for fields in ({}, answer):
        with serving(standin("Ollama", prompt_seconds=0.0, word_seconds=0.0, **fields)) as server:
            readings.append(measured(server, tiny, work))
    record = judge(readings[1], readings[0], "reference")
    assert record.verdict == verdict
    assert judge(readings[0], None, "reference").verdict == "reference"
