import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.bench.workloads import QUESTION_TOKENS, ask, measure, measure_cold, tokens_needed, warm_up
from trilithon.engines.base import Placement, Settings
from trilithon.engines.table import engine
from trilithon.engines.wire.messages import Completion, Finished
from trilithon.errors import ChildDied, EngineError, RunError
from trilithon.measure.metrics import split_words
from trilithon.measure.records import Sample, Test
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

FAST = {"prefill": "100000", "decode": "5000", "noise": "0", "seed": "1"}
QUESTION = Test(kind="question", question="tell me about stones")


@contextlib.asynccontextmanager
async def opened(folder: Path, file: ModelFile, settings: Settings, name: str = "llama.cpp") -> AsyncIterator[Runner]:
    chosen = engine(name, Configuration(data=folder, cache=folder))
    build = next(build for build in chosen.builds() if build.name in ("embedded", "builtin"))
    placement = Placement(name="p", file=file, build=build, unit="cpu", settings=settings)
    async with Runner.open(chosen, placement, folder / "run", start_seconds=60, hang_seconds=30) as runner:
        yield runner


def scripted(folder: Path, body: Callable[[Runner], Awaitable[Any]], context: int = 2048, **options: str) -> Any:
    file = ModelFile(
        path=folder / "any.gguf",
        format="gguf",
        name="any",
        architecture="none",
        quantization="none",
        size_bytes=0,
        sha256="",
    )

    async def whole() -> Any:
        settings = Settings(context=context, options=tuple((FAST | options).items()))
        async with opened(folder, file, settings, "scripted") as runner:
            return await body(runner)

    return asyncio.run(whole())


def real(folder: Path, model: Path, body: Callable[[Runner], Awaitable[Any]], **settings: Any) -> Any:
    async def whole() -> Any:
        values = Settings(**{"threads": 1, "context": 1024} | settings)
        async with opened(folder, read_model_file(model, folder), values) as runner:
            return await body(runner)

    return asyncio.run(whole())


def check(sample: Sample, test: Test) -> None:
    """The counts that the test's name promises, exactly."""
    assert sample.test == test
    assert sample.started_ns < sample.finished_ns
    assert sample.prompt_cached == test.depth
    assert sample.prompt_evaluated == (test.prompt_tokens or None)
    assert sample.decode_steps == (test.generated_tokens or None)
    assert (sample.prompt_ns is None) == (test.prompt_tokens == 0)
    assert (sample.decode_ns is None) == (test.generated_tokens == 0)
    assert all(spent is None or spent > 0 for spent in (sample.prompt_ns, sample.decode_ns))
    assert sample.started_ns < sample.finished_ns
    assert sample.stop_reason == "length"


SYNTHETIC = [
    Test(kind="pp", prompt_tokens=1),
    Test(kind="pp", prompt_tokens=200),
    Test(kind="tg", generated_tokens=1),
    Test(kind="tg", generated_tokens=24),
    Test(kind="pg", prompt_tokens=64, generated_tokens=8),
    Test(kind="pp", prompt_tokens=32, depth=300),
    Test(kind="tg", generated_tokens=8, depth=1),
    Test(kind="pg", prompt_tokens=16, generated_tokens=4, depth=100),
]


async def measure_all(runner: Runner) -> list[Sample]:
    await warm_up(runner, SYNTHETIC)
    return [await measure(runner, test) for test in SYNTHETIC for _ in range(2)]


# -- pp, tg, pg


def test_exact_counts_with_a_real_engine(tiny: Path, tmp_path: Path) -> None:
    for sample, test in zip(real(tmp_path, tiny, measure_all), [t for t in SYNTHETIC for _ in range(2)], strict=True):
        check(sample, test)


def test_exact_counts_with_the_scripted_engine(tmp_path: Path) -> None:
    for sample, test in zip(scripted(tmp_path, measure_all), [t for t in SYNTHETIC for _ in range(2)], strict=True):
        check(sample, test)


@pytest.mark.parametrize("full", [True, False])
def test_depth_with_a_sliding_window(tmp_path: Path, full: bool) -> None:
    """A prefix that is taken up at its very end is kept either way."""
    model = write_tiny_model(tmp_path / "window.gguf", architecture="gemma3")
    test = Test(kind="pg", prompt_tokens=16, generated_tokens=4, depth=600)

    async def body(runner: Runner) -> Sample:
        await warm_up(runner, [test])
        return await measure(runner, test)

    check(real(tmp_path, model, body, full_window_cache=full, batch=64, micro_batch=64), test)


class Forgetful(Runner):
    """Something else comes in between two requests, so that the KV cache holds another beginning."""

    async def timed(self, request: Completion) -> Finished:
        await super().timed(Completion(prompt=[300] * 5, max_tokens=0))
        return await super().timed(request)


def test_a_depth_that_was_not_kept_is_an_error_and_no_figure(tiny: Path, tmp_path: Path) -> None:
    async def body(runner: Runner) -> None:
        forgetful = Forgetful(runner.placement, runner.process, runner.client, runner.ready_ns, runner.log)
        with pytest.raises(RunError, match=r"^pp32 @ d64: the engine kept [0-4] of 64 tokens") as caught:
            await measure(forgetful, Test(kind="pp", prompt_tokens=32, depth=64))
        assert caught.value.cause == "the depth was not kept in the KV cache"
        assert "depth 0" in caught.value.advice

    real(tmp_path, tiny, body)


@pytest.mark.parametrize("test", [t for t in SYNTHETIC if t.depth or t.prompt_tokens == 200], ids=lambda t: t.name)
def test_the_context_that_is_asked_for_is_enough_to_the_token(tmp_path: Path, test: Test) -> None:
    async def body(runner: Runner) -> Sample:
        await warm_up(runner, [test])
        return await measure(runner, test)

    check(scripted(tmp_path, body, context=tokens_needed(test)), test)


def test_a_context_that_is_too_small_is_refused(tiny: Path, tmp_path: Path) -> None:
    async def body(runner: Runner) -> None:
        with pytest.raises(EngineError, match="context size"):
            await measure(runner, Test(kind="pp", prompt_tokens=1100))

    real(tmp_path, tiny, body)


def test_too_few_tokens_are_an_error(tmp_path: Path) -> None:
    """The context ends before the answer does."""

    async def body(runner: Runner) -> None:
        with pytest.raises(RunError) as caught:
            await measure(runner, Test(kind="tg", generated_tokens=100))
        assert caught.value.cause == "it stopped before the end"

    scripted(tmp_path, body, context=64)


def test_a_death_goes_through(tmp_path: Path) -> None:
    async def body(runner: Runner) -> None:
        with pytest.raises(ChildDied):
            await measure(runner, Test(kind="tg", generated_tokens=16))

    scripted(tmp_path, body, crash_after="4")


def test_what_each_test_needs() -> None:
    assert tokens_needed(Test(kind="pg", prompt_tokens=512, generated_tokens=128, depth=4096)) > 512 + 128 + 4096
    assert tokens_needed(QUESTION) > QUESTION_TOKENS
    assert tokens_needed(Test(kind="cold")) > 120


# -- the question


def test_what_guesses_ahead_is_measured_by_the_question_alone(tiny: Path, tmp_path: Path) -> None:
    async def body(runner: Runner) -> Sample:
        for test in (Test(kind="tg", generated_tokens=8), Test(kind="pg", prompt_tokens=16, generated_tokens=8)):
            with pytest.raises(RunError, match="a random prompt is followed by no meaningful text"):
                await measure(runner, test)
        prefill = await measure(runner, Test(kind="pp", prompt_tokens=16))
        assert prefill.prompt_evaluated == 16
        return await measure(runner, Test(kind="question", question="stone water tree " * 40))

    sample = real(tmp_path, tiny, body, context=2048, speculation="ngram-mod")
    assert 0 <= sample.marks["guessed_right_tokens"] <= sample.marks["guessed_tokens"]
    assert sample.marks["guessed_tokens"] > 0


def test_a_question_with_thinking(tmp_path: Path) -> None:
    async def body(runner: Runner) -> Sample:
        return await measure(runner, QUESTION)

    sample = scripted(tmp_path, body, thinking="stones, hm, stones", text="Two stones stand. A third lies across them.")
    assert sample.thinking_text.strip() == "stones, hm, stones"
    assert sample.answer_text == "Two stones stand. A third lies across them."
    assert len(split_words(sample.answer_text)) == 8
    assert sample.thinking_at_ns
    assert sample.started_ns < sample.thinking_at_ns[0] <= sample.thinking_at_ns[-1] <= sample.answer_at_ns[0]
    assert sample.answer_at_ns[-1] <= sample.finished_ns
    assert sample.stop_reason == "stop"
    assert sample.prompt_evaluated is not None
    assert sample.prompt_evaluated > 3
    assert sample.prompt_cached == 0
    assert sample.decode_steps is not None
    assert sample.decode_steps >= len(sample.thinking_at_ns) + len(sample.answer_at_ns) - 2


def test_white_space_is_not_yet_an_answer(tmp_path: Path) -> None:
    async def body(runner: Runner) -> Sample:
        return await measure(runner, QUESTION)

    plain, blank = (scripted(tmp_path, body, text=text, decode="50") for text in ("stones", "\n \n \n \nstones"))
    assert blank.answer_text == plain.answer_text == "stones"
    assert len(blank.answer_at_ns) == len(plain.answer_at_ns)
    assert blank.decode_steps > plain.decode_steps
    assert blank.answer_at_ns[0] - blank.started_ns > 20_000_000


def test_an_answer_that_is_empty(tmp_path: Path) -> None:
    async def body(runner: Runner) -> Sample:
        return await measure(runner, QUESTION)

    sample = scripted(tmp_path, body, garbage="empty")
    assert (sample.answer_text, sample.answer_at_ns, sample.thinking_text) == ("", (), "")


def test_a_question_is_asked_afresh_each_time(tmp_path: Path) -> None:
    async def body(runner: Runner) -> list[Sample]:
        return [await measure(runner, QUESTION) for _ in range(2)]

    first, second = scripted(tmp_path, body)
    assert (first.prompt_cached, second.prompt_cached) == (0, 0)
    assert first.prompt_evaluated == second.prompt_evaluated
    assert first.answer_text == second.answer_text


def test_a_real_question_through_the_prompt_form(tiny: Path, tmp_path: Path) -> None:
    async def body(runner: Runner) -> tuple[Sample, str]:
        return await measure(runner, QUESTION), await ask(runner, QUESTION.question, 8)

    sample, answer = real(tmp_path, tiny, body, context=2048)
    assert sample.prompt_evaluated is not None
    assert sample.prompt_evaluated > 100  # the form's words and examples are in front
    assert sample.stop_reason in ("stop", "length")
    assert sample.decode_steps is not None
    assert sample.decode_steps < QUESTION_TOKENS
    assert isinstance(answer, str)


def test_an_unmeasured_answer_is_what_can_be_seen(tmp_path: Path) -> None:
    async def body(runner: Runner) -> tuple[str, str]:
        return await ask(runner, "x", 1000), await ask(runner, "x", 12)

    whole, cut = scripted(tmp_path, body, thinking="one two three four five", text="the answer")
    assert whole == "the answer"
    assert cut  # no answer yet, so what it thought
    assert "one two three four five".startswith(cut)


# -- a cold start


@pytest.mark.parametrize(
    ("refusals", "answer"), [(0, "Two stones"), (3, "Two stones"), (4, "\N{REPLACEMENT CHARACTER}")]
)
def test_an_answer_that_ends_in_half_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int, answer: str
) -> None:
    """Servers refuse it; with a random model it is no text at all, and that says nothing about the engine."""
    asked: list[int] = []
    stream = Runner.complete

    async def half(self: Runner, request: Any) -> Any:
        asked.append(request.max_tokens)
        if len(asked) <= refusals:
            raise EngineError("the engine refused (500): output that does not match the expected form", status=500)
        return await stream(self, request)

    monkeypatch.setattr(Runner, "complete", half)
    assert scripted(tmp_path, lambda runner: ask(runner, "q", 16), text="Two stones") == answer
    assert asked == [16, 15, 14, 13][: min(refusals + 1, 4)]


def cold(folder: Path, file: ModelFile, settings: Settings, name: str) -> tuple[Sample, tuple[str, ...]]:
    return asyncio.run(measure_cold(lambda: opened(folder, file, settings, name), file.path, Test(kind="cold")))


def test_a_cold_start_has_its_figures(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")  # of its own: nobody else has it mapped
    sample, remarks = cold(tmp_path, read_model_file(model, tmp_path), Settings(threads=1, context=512), "llama.cpp")
    marks = dict(sample.marks)
    assert all(spent > 0 for spent in marks.values())
    assert marks.keys() | {"load_cold_ns"} == {"load_cold_ns", "load_warm_ns", "first_request_ns", "cached_request_ns"}
    assert ("load_cold_ns" in marks) == (not remarks)
    assert all("page cache" in remark for remark in remarks)
    assert sum(marks.values()) < sample.finished_ns - sample.started_ns


def test_a_cold_start_of_the_scripted_engine(tmp_path: Path) -> None:
    model = tmp_path / "any.gguf"
    model.write_bytes(bytes(10_000))
    file = ModelFile(
        path=model, format="gguf", name="any", architecture="none", quantization="none", size_bytes=10_000, sha256=""
    )
    options = FAST | {"load": "0.2", "prefill": "1000"}
    sample, _ = cold(tmp_path, file, Settings(context=512, options=tuple(options.items())), "scripted")
    assert sample.marks["load_warm_ns"] >= 200_000_000
    assert sample.marks["first_request_ns"] > 40_000_000
    assert sample.marks["cached_request_ns"] < sample.marks["first_request_ns"]
    assert (sample.prompt_evaluated, sample.answer_at_ns) == (None, ())
