"""Two runners as one: scripted ones where a fault or a time is wanted, the embedded llama.cpp for what is right."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.engines.base import Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.engines.wire.messages import Chat, Completion, Finished, Token
from trilithon.errors import ChildDied
from trilithon.models.files.model_file import read_model_file
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.runtime.handover import handover as handover_module
from trilithon.runtime.handover import prefiller as prefiller_module
from trilithon.runtime.handover.handover import Handover
from trilithon.runtime.opening import open_runner
from trilithon.runtime.process import Process
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

FAST_PREFILL = {"prefill": "50000", "decode": "200", "noise": "0", "seed": "1"}
FAST_DECODE = {"prefill": "2000", "decode": "2000", "noise": "0", "seed": "1"}


def configuration(home: Path) -> Configuration:
    return Configuration(data=home / "data", cache=home / "cache", start_seconds=60, hang_seconds=20)


def scripted(file: Path, home: Path, prefill: dict[str, str], decode: dict[str, str]) -> Placement:
    model = read_model_file(file, home / "cache")
    halves = [
        Placement(
            name=name,
            file=model,
            build=ScriptedEngine().builds()[0],
            unit=unit,
            settings=Settings(context=8192, options=tuple((speed | own).items())),
        )
        for name, unit, speed, own in (
            ("scripted/npu", "npu", FAST_PREFILL, prefill),
            ("scripted/cpu", "cpu", FAST_DECODE, decode),
        )
    ]
    return replace(halves[1], name="scripted/npu+scripted/cpu", prefill=halves[0])


def embedded(file: Path, home: Path, *, context: int = 1024, window: bool = True, **prefill: str) -> Placement:
    """llama.cpp on the CPU twice; `prefill` are settings of the first half alone."""
    model = read_model_file(file, home / "cache")
    settings = Settings(threads=1, context=context, full_window_cache=window)
    (build,) = [b for b in LlamaCpp(configuration(home)).builds() if b.name == "embedded"]
    decode = Placement(name="llama.cpp/cpu", file=model, build=build, unit="cpu", settings=settings)
    first = replace(decode, settings=replace(settings, **prefill))  # type: ignore[arg-type]
    return replace(decode, name="llama.cpp/cpu+llama.cpp/cpu", prefill=first)


@contextlib.asynccontextmanager
async def opened(placement: Placement, home: Path) -> AsyncIterator[Handover]:
    async with open_runner(placement, home / "r", configuration(home)) as runner:
        assert isinstance(runner, Handover)
        yield runner


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand every prompt over, whatever it costs: equal halves would never do it."""
    monkeypatch.setattr(
        handover_module.Costs,
        "cheapest",
        lambda costs, *, tokens, cached_by_decoder, cached_by_prefiller: ("prefiller", ""),
    )


async def text_of(runner: Runner, request: Completion | Chat) -> tuple[str, Finished]:
    events, finished = await runner.complete(request)
    return "".join(event.text for event in events if isinstance(event, Token)), finished


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [random.Random(seed * 1000 + n).randrange(300, 500) for n in range(length)]


def left_in_transfer(runner: Handover) -> list[str]:
    return sorted(path.name for path in runner._transfer.folder.iterdir())


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_the_answers_are_the_decoders_own(tmp_path: Path, home: Path, always: None, architecture: str) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", architecture=architecture, context=1024)
    both = embedded(model, home)

    async def scenario() -> None:
        requests = [
            Completion(prompt=prompt_of(20 + 37 * seed % 300, seed), max_tokens=12, ignore_eos=True, candidates=3)
            for seed in range(20)
        ]
        async with open_runner(replace(both, prefill=None), home / "alone", configuration(home)) as alone:
            expected = [(await text_of(alone, request))[0] for request in requests]
        async with opened(both, home) as pair:
            assert pair.handover.state == "active"
            for request, answer in zip(requests, expected, strict=True):
                text, finished = await text_of(pair, request)
                assert text == answer
                assert finished.handover is not None and finished.timings is not None
                assert finished.handover.prefill_tokens == len(request.prompt) - 1
                assert finished.timings.prompt_n == len(request.prompt)
                assert left_in_transfer(pair) == []
            assert pair.misses == 0 and pair.notices == ()

    asyncio.run(scenario())


def test_a_decoder_that_guesses_ahead_takes_a_brought_cache(tiny: Path, home: Path, always: None) -> None:
    plain = embedded(tiny, home)
    guessing = replace(plain, settings=replace(plain.settings, speculation="ngram-simple"))
    words = "the quick brown fox jumps over the lazy dog and then it runs far away from here. " * 8
    request = Completion(prompt=words, max_tokens=200, ignore_eos=True)

    async def scenario() -> None:
        async with opened(guessing, home) as pair:
            assert pair.handover.state == "active"
            _, finished = await text_of(pair, request)
            assert finished.handover is not None and finished.handover.prefill_tokens > 100
            assert finished.timings is not None and finished.timings.predicted_n == 200
            assert finished.timings.draft_n > 0
            _, again = await text_of(pair, replace(request, cache_prompt=True))
            assert again.timings is not None and again.timings.predicted_n == 200
            assert pair.misses == 0 and pair.notices == ()

    asyncio.run(scenario())


def test_a_chat_is_handed_over_too(tiny: Path, home: Path, always: None) -> None:
    chat = Chat(messages=[("user", "tell me about the sea and the wind and the waves")], max_tokens=8)

    async def scenario() -> None:
        both = embedded(tiny, home)
        async with open_runner(replace(both, prefill=None), home / "alone", configuration(home)) as alone:
            expected = (await text_of(alone, chat))[0]
        async with opened(both, home) as pair:
            text, finished = await text_of(pair, chat)
            assert text == expected
            assert finished.handover is not None and finished.handover.prefill_tokens > 10
            assert finished.handover.transfer_bytes > 0

    asyncio.run(scenario())


def test_without_the_full_window_nothing_is_handed_over(tmp_path: Path, home: Path) -> None:
    """The decoder would silently evaluate everything again."""
    model = write_tiny_model(tmp_path / "tiny.gguf", architecture="gemma3", context=1024)

    async def scenario() -> None:
        async with opened(embedded(model, home, window=False), home) as pair:
            assert pair.handover.reason
            _, finished = await text_of(pair, Completion(prompt=prompt_of(300), max_tokens=4, ignore_eos=True))
            assert finished.handover is not None and finished.handover.reason == pair.handover.reason
            assert any(pair.handover.reason in notice for notice in pair.notices)

    asyncio.run(scenario())


def test_caches_of_another_form_are_refused_by_the_probe(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        async with opened(embedded(tiny, home, kv_type_k="f32"), home) as pair:
            assert "probe" in pair.handover.reason
            _, finished = await text_of(pair, Completion(prompt=prompt_of(100), max_tokens=4, ignore_eos=True))
            assert finished.timings is not None and finished.timings.prompt_n == 100

    asyncio.run(scenario())


def test_a_long_prompt_goes_over_and_a_short_one_does_not(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        async with opened(scripted(tiny, home, {}, {}), home) as pair:
            _, long = await text_of(pair, Completion(prompt=prompt_of(4000), max_tokens=4))
            for tokens in (2, 4000) * 10:  # a move costs half a second: more than a busy machine adds to three tokens
                pair.costs.transfer.learn(tokens, 500)
            _, short = await text_of(pair, Completion(prompt=prompt_of(3, 5), max_tokens=4))
        assert long.handover is not None and long.handover.prefill == "scripted/npu" and long.handover.reason == ""
        assert short.handover is not None and short.handover.prefill == short.handover.decode == "scripted/cpu"
        assert "prefill is expected in" in short.handover.reason

    asyncio.run(scenario())


def test_a_conversation_is_not_evaluated_twice(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        async with opened(scripted(tiny, home, {}, {}), home) as pair:
            history = prompt_of(3000)
            _, first = await text_of(pair, Completion(prompt=history, max_tokens=4, cache_prompt=True))
            _, second = await text_of(pair, Completion(prompt=[*history, 7], max_tokens=4, cache_prompt=True))
            _, third = await text_of(
                pair, Completion(prompt=history + prompt_of(3000, 9), max_tokens=4, cache_prompt=True)
            )
        assert first.timings is not None and second.timings is not None and third.timings is not None
        assert (first.timings.cache_n, first.timings.prompt_n) == (0, 3000)
        assert second.timings.prompt_n == 1
        assert third.timings.cache_n >= 3000 and third.timings.prompt_n <= 3000
        assert third.handover is not None and third.handover.prefill == "scripted/npu"
        assert third.handover.prefill_tokens <= 3001

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"crash_after": "2"}, {"error_after": "2"}, {"exit_after": "2"}])
def test_a_failing_prefiller_costs_no_answer(
    tiny: Path, home: Path, fault: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts and warms up, and fails at its first prefill, every time."""
    monkeypatch.setattr(prefiller_module, "WAITS_SECONDS", (0.0, 0.0, 0.1))
    monkeypatch.setattr(handover_module.Handover, "_probe", _not_tried_out)

    async def scenario() -> None:
        async with opened(scripted(tiny, home, fault, {"prefill": "20000"}), home) as pair:
            for seed in range(3):
                text, finished = await text_of(pair, Completion(prompt=prompt_of(3000, seed), max_tokens=6))
                assert text and finished.timings is not None and finished.timings.prompt_n == 3000
                assert finished.handover is not None and finished.handover.reason
            assert pair.notices
            assert left_in_transfer(pair) == []

    asyncio.run(scenario())


async def _not_tried_out(pair: Handover, slot: int) -> bool:
    pair._probed = True
    for cost, slope in ((pair.costs.prefiller, 0.01), (pair.costs.decoder, 1.0), (pair.costs.transfer, 0.001)):
        cost.learn(100, 100 * slope)
    return True


def test_a_prefiller_that_never_starts_leaves_the_decoder_alone(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        async with opened(scripted(tiny, home, {"refuse_start": "no NPU here"}, {}), home) as pair:
            text, finished = await text_of(pair, Completion(prompt=prompt_of(500), max_tokens=6))
            assert text and finished.handover is not None
            assert "did not start" in finished.handover.reason
            assert pair.notices and "scripted/npu failed" in pair.notices[0]

    asyncio.run(scenario())


def test_a_killed_prefiller_is_started_anew(tiny: Path, home: Path, always: None) -> None:
    async def scenario() -> None:
        async with opened(embedded(tiny, home), home) as pair:
            request = Completion(prompt=prompt_of(200), max_tokens=4, ignore_eos=True)
            expected, _ = await text_of(pair, request)
            before = pair._prefiller.runner
            assert before is not None
            os.kill(before.process.pid, signal.SIGKILL)
            text, finished = await text_of(pair, request)
            assert text == expected
            assert finished.handover is not None and finished.handover.reason
            for _ in range(1200):
                if pair._prefiller.runner is not None:
                    break
                await asyncio.sleep(0.05)
            text, finished = await text_of(pair, request)
            assert text == expected
            assert finished.handover is not None and finished.handover.prefill_tokens == 199

    asyncio.run(scenario())


def test_a_dead_decoder_is_a_failed_request(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        async with opened(scripted(tiny, home, {}, {}), home) as pair:
            os.kill(pair.process.pid, signal.SIGKILL)
            with pytest.raises(ChildDied):
                await pair.complete(Completion(prompt=prompt_of(3000), max_tokens=4))

    asyncio.run(scenario())


@pytest.mark.slow
def test_cancelling_in_the_middle_of_a_prefill_leaves_nothing(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        async with opened(scripted(tiny, home, {"prefill": "3000"}, {"prefill": "300"}), home) as pair:
            task = asyncio.create_task(pair.complete(Completion(prompt=prompt_of(6000), max_tokens=4)))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert left_in_transfer(pair) == []
            text, finished = await text_of(pair, Completion(prompt=prompt_of(600, 3), max_tokens=4))
            assert text and finished.handover is not None and finished.handover.reason == ""

    asyncio.run(scenario())


def test_no_child_and_no_file_is_left(tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Process] = []
    start = Process.start

    async def noted(*words: object) -> Process:
        started.append(await start(*words))  # type: ignore[arg-type]
        return started[-1]

    monkeypatch.setattr(Process, "start", noted)

    async def scenario() -> Path:
        async with opened(scripted(tiny, home, {}, {}), home) as pair:
            await pair.complete(Completion(prompt=prompt_of(3000), max_tokens=4))
            return pair._transfer.folder

    folder = asyncio.run(scenario())
    assert not folder.exists()
    assert len(started) == 2 and all(process.returncode is not None for process in started)


async def hangs_by_a_hair(alone: Runner, request: Completion) -> bool:
    """Whether two tokens are all but equally probable somewhere in the decoder's own answer: then rounding, which
    depends on how a prompt is cut into batches, may choose either. (Random weights come to this once in some hundred
    answers.)"""
    prompt = list(request.prompt) if not isinstance(request.prompt, str) else []
    for _ in range(request.max_tokens):
        best, second, *_ = (
            await alone.distribution(Completion(prompt=tuple(prompt), max_tokens=1, candidates=8, ignore_eos=True))
        )[0]
        if best.logprob - second.logprob < 0.02:
            return True
        prompt.append(best.token)
    return False


async def live_prefiller(pair: Handover) -> Runner:
    for _ in range(600):
        if (runner := pair._prefiller.runner) is not None:
            return runner
        await asyncio.sleep(0.05)
    raise AssertionError(f"the prefiller does not come back: {pair._prefiller.reason}")


@pytest.mark.parametrize("requests", [40, pytest.param(240, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
def test_conversations_survive_a_prefiller_that_is_killed_again_and_again(
    tiny: Path, home: Path, always: None, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    """Eight conversations over two slots, the prefiller killed every 20 requests; every answer as the decoder alone
    gives it."""
    monkeypatch.setattr(prefiller_module, "WAITS_SECONDS", (0.0,))
    both = embedded(tiny, home, context=2048)
    both = replace(both, settings=replace(both.settings, slots=2))
    assert both.prefill is not None
    both = replace(both, prefill=replace(both.prefill, settings=replace(both.prefill.settings, slots=2)))
    histories = [prompt_of(60, 1000 + number) for number in range(8)]
    order = random.Random(5)

    async def scenario() -> None:
        alone_placement = replace(both, prefill=None, settings=replace(both.settings, slots=1))
        async with (
            open_runner(alone_placement, home / "alone", configuration(home)) as alone,
            opened(both, home) as pair,
        ):
            for number in range(requests):
                if number % 20 == 10:
                    os.kill((await live_prefiller(pair)).process.pid, signal.SIGKILL)
                which = order.randrange(8)
                request = Completion(prompt=tuple(histories[which]), max_tokens=5, ignore_eos=True, cache_prompt=True)
                (text, finished), (expected, _) = await asyncio.gather(
                    text_of(pair, request), text_of(alone, replace(request, cache_prompt=False))
                )
                assert finished.reason == "length"
                if text != expected:
                    assert await hangs_by_a_hair(alone, request), (number, which, text, expected, finished)
                histories[which] += prompt_of(5 + order.randrange(20), number)
                if len(histories[which]) > 500:
                    histories[which] = prompt_of(60, number)
            assert left_in_transfer(pair) == []
            assert pair.misses == 0 and pair._backoff.count == 0
            assert pair._prefiller.failures == requests // 20

    asyncio.run(scenario())
