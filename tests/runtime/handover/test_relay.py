"""Raw requests through a handover: the engine's own bytes, with the prompt evaluated elsewhere."""

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.engines.base import Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.wire.messages import HandoverResult
from trilithon.errors import ChildDied, EngineError
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.handover import handover as handover_module
from trilithon.runtime.handover import prefiller as prefiller_module
from trilithon.runtime.handover.handover import Handover
from trilithon.runtime.opening import open_runner
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

COMPLETION, TEXT, CHAT = "/completion", "/v1/completions", "/v1/chat/completions"
GREEDY = {"temperature": 0, "seed": 1, "ignore_eos": True}
TOOL = {
    "type": "function",
    "function": {"name": "tide", "description": "of a day", "parameters": {"type": "object", "properties": {}}},
}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def says(*words: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(words)]


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (COMPLETION, {"prompt": "the stones stand in a circle " * 6, "n_predict": 12}),
    (COMPLETION, {"prompt": list(range(300, 420)), "n_predict": 12, "stream": True}),
    (TEXT, {"prompt": "the waves come in and the waves go out " * 4, "max_tokens": 12, "stream": True}),
    (CHAT, {"messages": says("who brought them here?"), "max_tokens": 12, "stream": True}),
    (CHAT, {"messages": says("when is high tide?", "at noon", "and low tide?"), "max_tokens": 12, "tools": [TOOL]}),
    (CHAT, {"messages": says("a number, please"), "max_tokens": 12, "response_format": {"type": "json_object"}}),
]


def configuration(home: Path) -> Configuration:
    return Configuration(data=home / "data", cache=home / "cache", start_seconds=60, hang_seconds=20)


def pair_of(file: Path, home: Path, *, slots: int = 1) -> Placement:
    (build,) = [b for b in LlamaCpp(configuration(home)).builds() if b.name == "embedded"]
    settings = Settings(threads=1, context=2048, full_window_cache=True, slots=slots)
    model = read_model_file(file, home / "cache")
    half = Placement(name="llama.cpp/cpu", file=model, build=build, unit="cpu", settings=settings)
    return replace(half, name="llama.cpp/cpu+llama.cpp/cpu", prefill=half)


@contextlib.asynccontextmanager
async def opened(placement: Placement, home: Path) -> AsyncIterator[Handover]:
    async with open_runner(placement, home / "r", configuration(home)) as runner:
        assert isinstance(runner, Handover) and runner.handover.state == "active"
        yield runner


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover_module.Costs, "cheapest", lambda costs, **_: ("prefiller", ""))


def text_in(content: bytes) -> str:
    """What the model said, of a stream or of a whole answer, in any of the dialects."""
    lines = [line.removeprefix(b"data: ") for line in content.split(b"\n") if line.strip()]
    bodies = [json.loads(line) for line in lines if line != b"[DONE]"]
    return "".join(map(_said, bodies))


def _said(body: Mapping[str, Any]) -> str:
    if "content" in body:
        return str(body["content"])
    choices = body.get("choices") or [{}]
    message = choices[0].get("delta") or choices[0].get("message") or choices[0]
    return str(message.get("content") or message.get("text") or "")


async def told(runner: Runner, path: str, body: dict[str, Any]) -> tuple[str, HandoverResult | None]:
    async with runner.relay(path, body) as answer:
        return text_in(await answer.read()), answer.handover


async def in_two_pieces(alone: Runner, path: str, body: dict[str, Any]) -> str:
    """As a handover evaluates the prompt: all but the last token, and the last. In one piece it rounds otherwise."""
    prompt = await alone.apply_template(body) if path == CHAT else body["prompt"]
    tokens = await alone.tokenize(prompt) if isinstance(prompt, str) else prompt
    first = {"prompt": tokens[:-1], "n_predict": 0, "cache_prompt": False, "logit_bias": [[tokens[-1], 1000.0]]}
    await told(alone, COMPLETION, first)
    return (await told(alone, path, body))[0]


def test_the_bytes_are_the_decoders_and_nothing_is_evaluated_twice(tiny: Path, home: Path) -> None:
    both = pair_of(tiny, home)

    async def scenario() -> None:
        async with open_runner(replace(both, prefill=None), home / "alone", configuration(home)) as alone:
            expected = [await in_two_pieces(alone, path, {**body, **GREEDY}) for path, body in REQUESTS]
        async with opened(both, home) as pair:
            for (path, body), text in zip(REQUESTS, expected, strict=True):
                async with pair.relay(path, {**body, **GREEDY, "cache_prompt": False}) as answer:
                    assert answer.handover is not None and answer.handover.reason == ""
                    assert answer.handover.prefill_tokens > 20 and answer.handover.transfer_bytes > 0
                    content = await answer.read()
                    assert text_in(content) == text != ""
                    assert answer.timings is not None
                    assert answer.timings.prompt_n == answer.handover.prefill_tokens + 1
                    assert (b"data: " in content) == bool(body.get("stream"))
            assert pair.misses == 0 and pair.notices == ()
            assert list(pair._transfer.folder.iterdir()) == []

    asyncio.run(scenario())


def test_a_conversation_goes_over_once(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        async with opened(pair_of(tiny, home), home) as pair:
            body = {"messages": says("tell me about the harbour " * 20), "max_tokens": 8, **GREEDY}
            text, first = await told(pair, CHAT, body)
            more = says("tell me about the harbour " * 20, text, "and the boats?")
            _, second = await told(pair, CHAT, {**body, "messages": more})
            assert first is not None and second is not None
            assert second.prefill_tokens < first.prefill_tokens
            assert pair.misses == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (COMPLETION, {"prompt": ["a sea", 300], "n_predict": 4}, "neither a string"),
        (CHAT, {"messages": says("hi"), "n": 2, "max_tokens": 4}, "several answers"),
        (COMPLETION, {"prompt": [300], "n_predict": 4}, "less than two tokens"),
    ],
)
def test_what_only_the_decoder_can_read_stays_with_it(
    tiny: Path, home: Path, path: str, body: dict[str, Any], said: str
) -> None:
    async def scenario() -> None:
        async with opened(pair_of(tiny, home, slots=2), home) as pair:
            async with pair.relay(path, {**body, **GREEDY}) as answer:
                assert answer.handover is not None and said in answer.handover.reason
                await answer.read()
                assert answer.timings is not None and answer.timings.predicted_n >= 4
            _, handed = await told(pair, *REQUESTS[0])
            assert handed is not None and handed.prefill_tokens > 20
            assert pair.misses == 0

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [PICTURE]}], "max_tokens": 4}),
        (CHAT, {"max_tokens": 4}),
        (CHAT, {"messages": says("hi"), "max_tokens": 4, "tools": "none"}),
        (COMPLETION, {"prompt": "hi", "n_predict": 4, "grammar": "root ::= ("}),
        (COMPLETION, {"prompt": [300] * 5000, "n_predict": 4}),
        ("/v1/embeddings", {"input": "hi"}),
    ],
)
def test_refusals_are_the_decoders_own(tiny: Path, home: Path, path: str, body: dict[str, Any]) -> None:
    both = pair_of(tiny, home)

    async def refused(runner: Runner) -> tuple[int, str]:
        with pytest.raises(EngineError) as caught:
            await told(runner, path, body)
        return caught.value.status, str(caught.value)

    async def scenario() -> None:
        async with open_runner(replace(both, prefill=None), home / "alone", configuration(home)) as alone:
            expected = await refused(alone)
        async with opened(both, home) as pair:
            assert await refused(pair) == expected
            _, handed = await told(pair, *REQUESTS[0])
            assert handed is not None and handed.prefill_tokens > 20 and pair.handover.state == "active"

    asyncio.run(scenario())


def test_paths_that_take_no_slot_pass_through(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        async with opened(pair_of(tiny, home), home) as pair, pair.relay("/tokenize", {"content": "sea"}) as answer:
            assert json.loads(await answer.read())["tokens"] and answer.handover is None

    asyncio.run(scenario())


def test_a_killed_prefiller_costs_no_answer_and_a_killed_decoder_is_told(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        async with opened(pair_of(tiny, home), home) as pair:
            runner = pair._prefiller.runner
            assert runner is not None
            os.kill(runner.process.pid, signal.SIGKILL)
            text, handed = await told(pair, *REQUESTS[0])
            assert text and handed is not None and handed.reason
            os.kill(pair.process.pid, signal.SIGKILL)
            with pytest.raises(ChildDied):
                await told(pair, *REQUESTS[0])

    asyncio.run(scenario())


def test_left_early_the_slot_is_free_and_the_next_answer_right(tiny: Path, home: Path) -> None:
    path, body = REQUESTS[1]

    async def scenario() -> None:
        async with opened(pair_of(tiny, home), home) as pair:
            expected, _ = await told(pair, path, {**body, **GREEDY})
            for _ in range(5):
                async with pair.relay(path, {**body, **GREEDY, "n_predict": 1500}) as answer:
                    async for _ in answer.chunks():
                        break
                assert (await told(pair, path, {**body, **GREEDY}))[0] == expected
            assert pair.handover.state == "active" and not any(slot.lock.locked() for slot in pair._slots.slots)

    asyncio.run(scenario())


@pytest.mark.slow
def test_many_at_once_over_two_slots(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        async with opened(pair_of(tiny, home, slots=2), home) as pair:
            requests = [(path, {**body, **GREEDY}) for path, body in REQUESTS]
            expected = [text for text, _ in [await told(pair, *request) for request in requests]]
            for _ in range(3):
                answers = await asyncio.gather(*(told(pair, *request) for request in requests))
                assert [text for text, _ in answers] == expected
            assert pair.misses == 0 and pair.handover.state == "active"

    asyncio.run(scenario())


@pytest.mark.parametrize("requests", [60, pytest.param(240, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
def test_clients_that_vanish_and_a_prefiller_that_dies_leave_nothing(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    """Four clients with eight conversations over two slots; one answer in five is left in the middle, and every 20
    requests the prefiller is killed."""
    monkeypatch.setattr(prefiller_module, "WAITS_SECONDS", (0.0,))
    chance = random.Random(5)
    talks: list[list[dict[str, Any]]] = [says(f"tell me about stone {number}") for number in range(8)]
    numbers = iter(range(requests))
    whole = 0

    async def ask(pair: Handover, number: int) -> None:
        nonlocal whole
        talk, leave = talks[number % 8], chance.random() < 0.2
        body = {"messages": talk, "max_tokens": 12, "stream": number % 3 > 0, **GREEDY}
        content = b""
        async with pair.relay(CHAT, body) as answer:
            async for piece in answer.chunks():
                content += piece
                if leave:
                    return
            assert answer.timings is not None and answer.timings.predicted_n == 12
        whole += 1
        more = says("", text_in(content), "and then?")[1:]
        talks[number % 8] = [*talk, *more] if len(talk) < 9 else says(f"tell me about stone {number}")

    async def client(pair: Handover) -> None:
        for number in numbers:
            if number % 20 == 10 and (runner := pair._prefiller.runner) is not None:
                os.kill(runner.process.pid, signal.SIGKILL)
            await ask(pair, number)

    async def scenario() -> None:
        async with opened(pair_of(tiny, home, slots=2), home) as pair:
            await asyncio.gather(*(client(pair) for _ in range(4)))
            assert whole > requests / 2 and pair._prefiller.failures > 0
            assert pair.misses == 0 and pair._backoff.count == 0
            assert not pair._prefilling.locked() and not any(slot.lock.locked() for slot in pair._slots.slots)
            assert list(pair._transfer.folder.iterdir()) == []

    asyncio.run(scenario())
