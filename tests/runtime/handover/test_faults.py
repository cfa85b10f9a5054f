"""A handover where something goes wrong at a bad moment, or several requests come at once: real children throughout."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.engines.base import Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.engines.wire.messages import Completion, Finished, Token
from trilithon.errors import ChildDied, EngineError, EngineTimeout
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.handover import handover as handover_module
from trilithon.runtime.handover import prefiller as prefiller_module
from trilithon.runtime.handover import transfer as transfer_module
from trilithon.runtime.handover.backoff import FIRST_SECONDS
from trilithon.runtime.handover.handover import Handover
from trilithon.runtime.handover_state import HandoverState
from trilithon.runtime.opening import open_runner
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration


def configuration(home: Path, hang_seconds: float = 20) -> Configuration:
    return Configuration(data=home / "data", cache=home / "cache", start_seconds=60, hang_seconds=hang_seconds)


def scripted(file: Path, home: Path, prefill: str, decode: str) -> Placement:
    model = read_model_file(file, home / "cache")

    def half(unit: str, words: str) -> Placement:
        pairs = [word.partition("=") for word in f"{words},noise=0,seed=1".split(",")]
        options = tuple((name, value) for name, _, value in pairs)
        settings = Settings(context=8192, options=options)
        build = ScriptedEngine().builds()[0]
        return Placement(name=f"scripted/{unit}", file=model, build=build, unit=unit, settings=settings)  # type: ignore[arg-type]

    return replace(half("cpu", decode), name="scripted/npu+scripted/cpu", prefill=half("npu", prefill))


def embedded(file: Path, home: Path, *, slots: int = 1, context: int = 1024) -> Placement:
    (build,) = [b for b in LlamaCpp(configuration(home)).builds() if b.name == "embedded"]
    settings = Settings(threads=1, context=context, full_window_cache=True, slots=slots)
    model = read_model_file(file, home / "cache")
    half = Placement(name="llama.cpp/cpu", file=model, build=build, unit="cpu", settings=settings)
    return replace(half, name="llama.cpp/cpu+llama.cpp/cpu", prefill=half)


@contextlib.asynccontextmanager
async def opened(placement: Placement, home: Path, hang_seconds: float = 20) -> AsyncIterator[Handover]:
    async with open_runner(placement, home / "r", configuration(home, hang_seconds)) as runner:
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


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(seed * 1000 + n).randrange(300, 500) for n in range(length))


def asked(length: int, seed: int = 0, *, answer: int = 4, cache: bool = False) -> Completion:
    return Completion(prompt=prompt_of(length, seed), max_tokens=answer, ignore_eos=True, cache_prompt=cache)


async def text_of(runner: Runner, request: Completion) -> tuple[str, Finished]:
    events, finished = await runner.complete(request)
    return "".join(event.text for event in events if isinstance(event, Token)), finished


async def texts_alone(placement: Placement, home: Path, requests: list[Completion]) -> list[str]:
    alone = replace(placement, prefill=None, settings=replace(placement.settings, slots=1))
    async with open_runner(alone, home / "alone", configuration(home)) as runner:
        return [(await text_of(runner, replace(request, cache_prompt=False)))[0] for request in requests]


def left(pair: Handover) -> list[str]:
    return sorted(path.name for path in pair._transfer.folder.iterdir())


def pid_of_prefiller(pair: Handover) -> int:
    assert pair._prefiller.runner is not None
    return pair._prefiller.runner.process.pid


def stopped(pid: int) -> bool:
    """Every thread of it: a signal reaches them one by one."""
    states = set()
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            states.add(path.read_text().rpartition(")")[2].split()[0])
    return states == {"T"}


# -- one request


@pytest.mark.slow
def test_a_folder_may_be_used_again(tiny: Path, home: Path) -> None:
    """As the bench does between a cold and a warm start."""

    async def scenario() -> None:
        for _ in range(2):
            async with opened(scripted(tiny, home, "prefill=50000", "prefill=2000"), home) as pair:
                _, finished = await text_of(pair, asked(3000))
                assert finished.handover is not None and finished.handover.transfer_bytes > 0

    asyncio.run(scenario())


def test_prompts_that_no_context_holds_are_refused_and_nothing_more(tiny: Path, home: Path, always: None) -> None:
    async def scenario() -> None:
        async with opened(embedded(tiny, home), home) as pair:
            for _ in range(4):
                with pytest.raises(EngineError):
                    await pair.complete(asked(1500))
            _, finished = await text_of(pair, asked(100))
            assert finished.handover is not None and finished.handover.prefill_tokens == 99
            assert pair.handover == HandoverState(state="active")

    asyncio.run(scenario())


@pytest.mark.parametrize("fields", [{"prompt": ()}, {"prompt": (5,)}, {"max_tokens": 0}, {"prompt": "the sea " * 40}])
def test_requests_at_the_edge_are_answered_as_by_the_decoder_alone(
    tiny: Path, home: Path, always: None, fields: dict[str, object]
) -> None:
    request = replace(asked(100), **fields)  # type: ignore[arg-type]

    async def said(runner: Runner) -> tuple[str, object]:
        try:
            text, finished = await text_of(runner, request)
        except EngineError as error:
            return "refused", error.status
        assert finished.timings is not None
        return text, (finished.timings.cache_n, finished.timings.prompt_n, finished.timings.predicted_n)

    async def scenario() -> None:
        both = embedded(tiny, home)
        async with open_runner(replace(both, prefill=None), home / "alone", configuration(home)) as alone:
            expected = await said(alone)
        async with opened(both, home) as pair:
            assert await said(pair) == expected
            assert pair.handover.state == "active" and left(pair) == []

    asyncio.run(scenario())


def test_what_is_counted_as_cached_was_not_evaluated(tiny: Path, home: Path) -> None:
    """The prompt goes on otherwise than the decoder answered."""

    async def scenario() -> None:
        async with opened(scripted(tiny, home, "prefill=50000", "prefill=2000,decode=2000"), home) as pair:
            history = prompt_of(3000)
            await pair.complete(Completion(prompt=history, max_tokens=40, cache_prompt=True, ignore_eos=True))
            prompt = history + prompt_of(3000, 9)
            _, finished = await text_of(pair, Completion(prompt=prompt, max_tokens=4, cache_prompt=True))
            assert finished.timings is not None and finished.handover is not None
            assert (finished.timings.cache_n, finished.timings.prompt_n) == (3000, 3000)
            assert finished.handover.prefill_tokens == 3000  # of 2999 new ones, and the last that only the decoder held

    asyncio.run(scenario())


def test_an_engine_that_will_not_end_in_half_a_character(tiny: Path, home: Path, always: None) -> None:
    """Newer servers refuse that, also of the one token that nobody asked for; so a whole one is forced."""

    async def scenario() -> None:
        async with opened(embedded(tiny, home), home) as pair:
            runner = pair._prefiller.runner
            assert runner is not None
            seen: list[Completion] = []
            timed = runner.timed

            async def noted(request: Completion) -> Finished:
                seen.append(request)
                return await timed(request)

            runner.timed = noted  # type: ignore[method-assign]
            await pair.complete(asked(100))
            plain = await pair.tokenize(" a", add_special=False)
            assert [request.forced for request in seen] == [plain[-1]]

    asyncio.run(scenario())


# -- the prefilling side fails


@pytest.mark.slow
def test_a_prefiller_that_hangs_is_not_waited_for_a_minute(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover_module, "_MIN_PATIENCE_SECONDS", 0.5)

    async def scenario() -> None:
        both = scripted(tiny, home, "prefill=10000,decode=200", "prefill=2000,decode=2000")
        async with opened(both, home, hang_seconds=60) as pair:
            os.kill(pid_of_prefiller(pair), signal.SIGSTOP)
            begun = time.monotonic()
            text, finished = await text_of(pair, asked(3000))
            assert text and finished.handover is not None and "given up" in finished.handover.reason
            assert finished.timings is not None
            # At least 0.5 s of patience (more where A was slow when it was measured), then 1.5 s of B's own prefill.
            assert 2000 <= finished.timings.prompt_ms < 30_000
            assert time.monotonic() - begun < 30

    asyncio.run(scenario())


def test_a_prefiller_that_dies_while_it_saves(tiny: Path, home: Path, always: None) -> None:
    request = asked(400)

    async def scenario() -> None:
        both = embedded(tiny, home)
        (expected,) = await texts_alone(both, home, [request])
        async with opened(both, home) as pair:
            runner = pair._prefiller.runner
            assert runner is not None
            save = runner.save_slot

            async def killed(slot: int, name: str) -> object:
                os.kill(runner.process.pid, signal.SIGKILL)
                return await save(slot, name)

            runner.save_slot = killed  # type: ignore[method-assign,assignment]
            text, finished = await text_of(pair, request)
            assert text == expected and left(pair) == []
            assert finished.handover is not None and "died" in finished.handover.reason
            assert finished.timings is not None and finished.timings.prompt_n == 400

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_decoder_that_dies_or_hangs_at_the_restore_is_a_failed_request(tiny: Path, home: Path, always: None) -> None:
    async def scenario(number: signal.Signals, expected: type[Exception]) -> None:
        both = scripted(tiny, home, "prefill=50000", "prefill=2000")
        async with opened(both, home, hang_seconds=5) as pair:
            first, restore = pair._prefiller.runner, pair.restore_slot

            async def hindered(slot: int, name: str) -> object:
                os.kill(pair.process.pid, number)
                return await restore(slot, name)

            pair.restore_slot = hindered  # type: ignore[method-assign,assignment]
            with pytest.raises(expected):
                await pair.complete(asked(3000))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pair.process.pid, signal.SIGKILL)
            assert pair._prefiller.runner is first and pair._prefiller.failures == 0
            assert left(pair) == []

    asyncio.run(scenario(signal.SIGKILL, ChildDied))
    asyncio.run(scenario(signal.SIGSTOP, EngineTimeout))


@pytest.fixture
def small_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "shm"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    monkeypatch.setattr(transfer_module, "_MEMORY", folder)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["scripted", "llama.cpp"])
def test_memory_that_is_full_costs_time_and_is_no_reason_to_stop(
    tiny: Path, home: Path, small_memory: Path, always: None, engine: str
) -> None:
    """It fills up between our look at it and the save."""
    both = embedded(tiny, home) if engine == "llama.cpp" else scripted(tiny, home, "prefill=50000", "prefill=20000")

    async def scenario() -> None:
        async with opened(both, home) as pair:
            assert pair.handover.state == "active"
            ballast = small_memory / "ballast"
            room, pair._transfer.has_room_for = pair._transfer.has_room_for, lambda tokens: False  # type: ignore[method-assign]
            ballast.write_bytes(b"x" * ((1 << 20) - 4096))
            way, pair._route = pair._route, lambda slot, tokens: ("prefiller", "")  # type: ignore[method-assign]
            for seed in range(4):
                text, finished = await text_of(pair, asked(900, seed, answer=20))
                assert text and finished.timings is not None and finished.timings.prompt_n == 900
                assert finished.handover is not None and finished.handover.reason
                assert left(pair) == []
            pair._route, pair._transfer.has_room_for = way, room  # type: ignore[method-assign]
            assert pair.handover.state == "active" and pair._prefiller.failures == 0
            _, finished = await text_of(pair, asked(900))
            assert finished.handover is not None and "not enough free memory" in finished.handover.reason
            ballast.unlink()
            _, finished = await text_of(pair, asked(900))
            assert finished.handover is not None and finished.handover.prefill_tokens == 899

    asyncio.run(scenario())


# -- cancelled


def test_a_save_that_nobody_waits_for_any_more_leaves_no_file(tiny: Path, home: Path, always: None) -> None:
    async def scenario() -> None:
        async with opened(embedded(tiny, home), home) as pair:
            pid = pid_of_prefiller(pair)
            runner = pair._prefiller.runner
            assert runner is not None
            saving, save = asyncio.Event(), runner.save_slot

            async def slowly(slot: int, name: str) -> object:
                os.kill(pid, signal.SIGSTOP)
                for _ in range(500):
                    if stopped(pid):
                        break
                    await asyncio.sleep(0.01)
                saving.set()
                return await save(slot, name)

            runner.save_slot = slowly  # type: ignore[method-assign,assignment]
            task = asyncio.create_task(pair.complete(asked(400)))
            await saving.wait()
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            os.kill(pid, signal.SIGCONT)
            await asyncio.gather(*pair._transfer._saving)
            assert left(pair) == []
            runner.save_slot = save  # type: ignore[method-assign]
            _, finished = await text_of(pair, asked(300, 2))
            assert finished.handover is not None and finished.handover.prefill_tokens == 299

    asyncio.run(scenario())


@pytest.mark.slow
def test_cancelled_at_any_moment_the_next_answer_is_right(tiny: Path, home: Path, always: None) -> None:
    prompts = [prompt_of(length, seed) for seed, length in enumerate((500, 350, 700))]
    requests = [Completion(prompt=p, max_tokens=24, ignore_eos=True, cache_prompt=True) for p in prompts]
    moments = random.Random(3)

    async def scenario() -> None:
        both = embedded(tiny, home, slots=2)
        expected = await texts_alone(both, home, requests)
        async with opened(both, home) as pair:
            for number in range(40):
                task = asyncio.create_task(text_of(pair, requests[moments.randrange(3)]))
                await asyncio.sleep(moments.uniform(0, 0.06))
                task.cancel()
                await asyncio.wait([task])
                which = number % 3
                text, _ = await text_of(pair, requests[which])
                assert text == expected[which], number
            assert left(pair) == [] and pair._backoff.count == 0 and pair.misses == 0
            assert not pair._prefilling.locked() and not any(slot.lock.locked() for slot in pair._slots.slots)
            assert pair._prefiller.failures == 0

    asyncio.run(scenario())


def test_closing_while_the_prefiller_is_being_stopped_leaves_no_process(tiny: Path, home: Path) -> None:
    """It does not listen to the request to end, and is closed in the middle of that."""

    async def scenario() -> None:
        async with opened(scripted(tiny, home, "prefill=50000", "prefill=20000"), home) as pair:
            runner = pair._prefiller.runner
            assert runner is not None
            os.kill(runner.process.pid, signal.SIGSTOP)
            pair._prefiller.failed(runner, EngineTimeout("for the test"))
            await asyncio.sleep(0.1)
        assert runner.process.returncode is not None

    asyncio.run(scenario())


# -- several at once


@pytest.mark.slow
def test_many_at_once_over_two_slots_with_the_prefiller_killed(
    tiny: Path, home: Path, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefiller_module, "WAITS_SECONDS", (0.0,))
    requests = [asked(100 + 60 * seed, seed, answer=20, cache=True) for seed in range(8)]

    async def scenario() -> None:
        both = embedded(tiny, home, slots=2)
        expected = await texts_alone(both, home, requests)
        async with opened(both, home) as pair:
            for _ in range(4):
                answers = asyncio.gather(*(text_of(pair, request) for request in requests))
                await asyncio.sleep(0.05)
                if pair._prefiller.runner is not None:
                    os.kill(pid_of_prefiller(pair), signal.SIGKILL)
                assert [text for text, _ in await answers] == expected
            assert left(pair) == [] and pair._backoff.count == 0

    asyncio.run(scenario())


@pytest.mark.slow
def test_one_is_prefilled_while_another_is_decoded(tiny: Path, home: Path, always: None) -> None:
    async def scenario() -> None:
        async with opened(embedded(tiny, home, slots=2, context=8192), home) as pair:
            long = asyncio.create_task(text_of(pair, asked(100, 1, answer=7000)))
            for _ in range(500):
                if not await pair.client.idle():
                    break
                await asyncio.sleep(0.01)
            _, finished = await text_of(pair, asked(300, 2))
            assert finished.handover is not None and finished.handover.prefill_tokens == 299
            assert not long.done()
            long.cancel()
            await asyncio.wait([long])
            assert pair.misses == 0

    asyncio.run(scenario())


@pytest.mark.slow
def test_the_next_is_prefilled_while_one_is_answered(tiny: Path, home: Path) -> None:
    """With one slot the second answer begins when the first one has ended; with two, long before."""
    both = scripted(tiny, home, "prefill=4000", "prefill=400,decode=50")
    assert both.prefill is not None

    async def times(pair: Handover, seed: int) -> tuple[int, Finished]:
        began_ns = 0
        async for event in pair.stream(asked(1000, seed, answer=150)):
            if isinstance(event, Finished):
                return began_ns, event
            began_ns = began_ns or event.at_ns
        raise AssertionError("an answer has an end")

    async def scenario(slots: int) -> bool:
        halves = [replace(half, settings=replace(half.settings, slots=slots)) for half in (both, both.prefill)]
        async with opened(replace(halves[0], prefill=halves[1]), home) as pair:
            (_, first), (began_ns, second) = await asyncio.gather(*(times(pair, seed) for seed in range(2)))
            assert first.handover is not None and first.handover.prefill_tokens > 900
            assert second.handover is not None and second.handover.prefill_tokens > 900
            assert pair.misses == 0
            return began_ns < first.at_ns

    assert [asyncio.run(scenario(slots)) for slots in (1, 2)] == [False, True]


@pytest.mark.slow
def test_waiting_for_another_request_is_no_prefill(tiny: Path, home: Path) -> None:
    async def scenario() -> None:
        both = scripted(tiny, home, "prefill=50000", "prefill=2000,decode=50")
        async with opened(both, home) as pair:
            both_asked = [text_of(pair, asked(2000, seed, answer=50)) for seed in range(2)]
            for _, finished in await asyncio.gather(*both_asked):
                assert finished.timings is not None
                assert finished.timings.prompt_ms < 900 < finished.timings.predicted_ms

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("objection", ["", "it answers otherwise"])
def test_a_prefiller_that_comes_late_is_tried_out_before_anything_is_handed_over(
    tiny: Path, home: Path, always: None, monkeypatch: pytest.MonkeyPatch, objection: str
) -> None:
    """Its first start fails, and the second one dies while it is tried out."""
    monkeypatch.setattr(prefiller_module, "WAITS_SECONDS", (0.3,))
    probe, probed = handover_module.probe, 0

    async def watched(runner: Runner, *words: object) -> str:
        nonlocal probed
        probed += 1
        if probed == 1:
            os.kill(runner.process.pid, signal.SIGKILL)
        return await probe(runner, *words) or objection  # type: ignore[arg-type]

    monkeypatch.setattr(handover_module, "probe", watched)
    options = f"prefill=50000,refuse_start=not yet,flaky=1,flaky_file={home / 'starts'}"

    async def scenario() -> None:
        async with opened(scripted(tiny, home, options, "prefill=2000"), home) as pair:
            _, finished = await text_of(pair, asked(500))
            assert finished.handover is not None and "did not start" in finished.handover.reason and not probed
            for number in (1, 2):
                for _ in range(400):
                    if pair._prefiller.runner is not None:
                        break
                    await asyncio.sleep(0.05)
                text, finished = await text_of(pair, asked(500, number))
                assert text and finished.handover is not None and probed == number
                assert pair._prefiller.failures == 2
            assert finished.handover.reason == pair.handover.reason == objection
            assert finished.handover.prefill_tokens == (0 if objection else 499)
            await text_of(pair, asked(500, 3))
            assert probed == 2 and left(pair) == []

    asyncio.run(scenario())


def test_after_a_cache_that_was_not_used_it_is_tried_again_later(
    tiny: Path, home: Path, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What arrived is erased before the decoder begins, once: the answer is right, and the next ones are the decoder's
    own until the pause is over."""
    clock_ns = time.monotonic_ns

    async def scenario() -> None:
        both = embedded(tiny, home)
        requests = [asked(200, seed, answer=8) for seed in range(4)]
        expected = await texts_alone(both, home, requests)
        async with opened(both, home) as pair:
            move = pair._transfer.run

            async def in_vain(*words: Runner | int, **more: object) -> int:
                arrived = await move(*words, **more)  # type: ignore[arg-type]
                async with pair._decoder.relay("/slots/0?action=erase", {}) as answer:
                    await answer.read()
                return arrived

            pair._transfer.run = in_vain  # type: ignore[method-assign,assignment]
            answers = [await text_of(pair, requests[0])]
            pair._transfer.run = move  # type: ignore[method-assign]
            state = pair.handover
            assert (state.state, state.misses) == ("paused", 1) and "of 199 transferred tokens" in state.reason
            assert state.retry_in_seconds is not None and 0 < state.retry_in_seconds <= FIRST_SECONDS
            assert pair.notices == (f"the handover is paused: {pair.handover.reason}",)
            answers.append(await text_of(pair, requests[1]))
            assert answers[1][1].handover is not None and answers[1][1].handover.reason == pair.handover.reason
            monkeypatch.setattr(pair._backoff, "_clock_ns", lambda: clock_ns() + round(FIRST_SECONDS * 1e9))
            assert pair.handover == HandoverState(state="active", misses=1)
            answers += [await text_of(pair, request) for request in requests[2:]]
            for _, finished in answers[2:]:
                assert finished.handover is not None and finished.handover.prefill_tokens == 199
            assert [text for text, _ in answers] == expected
            assert pair.misses == 1 and pair._prefiller.failures == 0
            assert "the handover was paused 1 time" in pair.notices[0]

    asyncio.run(scenario())
