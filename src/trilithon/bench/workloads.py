"""What is asked of a runner, and what a sample of it is: llama-bench's pp, tg and pg, one question, a cold start.

pp, tg and pg follow llama-bench (tools/llama-bench of llama.cpp): random tokens of the vocabulary, a warm-up that is
thrown away, an empty KV cache or one filled to the depth, neither tokenising nor sampling of text in the figure."""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trilithon.bench.pagecache import bring_in, evict
from trilithon.engines.base import Placement
from trilithon.engines.remote.placing import writes_tokens
from trilithon.engines.wire.messages import Chat, Completion, Event, Finished, Timings, Token
from trilithon.errors import EngineError, RunError, TaintedAnswer
from trilithon.measure.questions import SetQuestion
from trilithon.measure.records import Sample, Test
from trilithon.runtime.remote.measured import MeasuredRunner

__all__ = [
    "DEFAULT_QUESTION",
    "QUESTION_TOKENS",
    "ask",
    "chat",
    "chat_request",
    "measure",
    "measure_cold",
    "tokens_needed",
    "tokens_of_question",
    "warm_up",
]

DEFAULT_QUESTION = "tell me about openai"
QUESTION_TOKENS = 1024
"""The longest answer, thinking included. An answer that reaches it is reported as cut ("length")."""

# Room for the question itself and its template, in tokens.
_TEMPLATE_TOKENS = 512
_WARM_UP_GENERATED = 4
_HALF_A_CHARACTER = "output that does not match the expected"
# Of the tokens that a test names: what a server that takes text may have fewer of. A prompt is words of one token each,
# and an answer long enough for its rate may end before.
_LEAST_OF_LENGTH = {"prompt": 0.8, "answer": 0.25}
_CHARACTER_TOKENS = 4  # the most that one takes: a token per byte


def tokens_needed(test: Test) -> int:
    """The context that a test needs."""
    if test.kind in ("question", "cold"):
        return QUESTION_TOKENS + _TEMPLATE_TOKENS
    return test.depth + test.prompt_tokens + test.generated_tokens + 2


def tokens_of_question(question: SetQuestion) -> int:
    """As much for one of a set, whose text and tools have a token for every two bytes at the most."""
    written = question.text + (json.dumps(question.tools) if question.tools else "")
    return _TEMPLATE_TOKENS + len(written.encode()) // 2 + question.max_tokens


async def warm_up(runner: MeasuredRunner, tests: Sequence[Test]) -> None:
    """llama-bench's warm-up: once the longest prompt of the tests that the engine takes, and a few generated tokens."""
    for length in sorted({test.prompt_tokens for test in tests} | {1}, reverse=True):
        tokens = await _random_tokens(runner, max(length, 1))
        try:
            await _timed(runner, Completion(prompt=tokens, max_tokens=_WARM_UP_GENERATED, ignore_eos=True))
        except EngineError as error:
            if length <= 1 or isinstance(error, TaintedAnswer):
                raise
            continue  # its test comes next, and tells
        return


async def measure(runner: MeasuredRunner, test: Test) -> Sample:
    """One sample of `test` (any kind but cold)."""
    return await (_question(runner, test) if test.kind == "question" else _synthetic(runner, test))


async def ask(runner: MeasuredRunner, question: str, max_tokens: int) -> str:
    """The visible answer to one question, unmeasured; what it thought where it came no further. One that the server
    will not send as text, wherever it is cut, is U+FFFD."""
    try:
        events, _ = await chat(runner, chat_request(runner.placement, question, max_tokens))
    except EngineError as error:
        if _HALF_A_CHARACTER not in str(error):
            raise
        return "\N{REPLACEMENT CHARACTER}"
    tokens = [event for event in events if isinstance(event, Token)]
    answer = "".join(token.text for token in tokens if not token.reasoning)
    return answer.strip() or "".join(token.text for token in tokens).strip()


async def chat(runner: MeasuredRunner, request: Chat) -> tuple[list[Event], Finished]:
    """One answer. Where the server will not send it as text, since it ends in half a character, some tokens less of it;
    raises EngineError where it never does."""
    for fewer in range(min(_CHARACTER_TOKENS, request.max_tokens)):
        try:
            return await runner.complete(replace(request, max_tokens=request.max_tokens - fewer))
        except EngineError as error:
            if _HALF_A_CHARACTER not in str(error):
                raise
            refusal = error
    raise refusal


def chat_request(placement: Placement, question: str, max_tokens: int, tools: Sequence[Mapping[str, Any]] = ()) -> Chat:
    """Greedy; a model that was made with a prompt form of its own is asked in that."""
    form = placement.file.prompt_form
    return Chat(
        messages=[("user", question)],
        max_tokens=max_tokens,
        tools=tools,
        stop=form.stop if form else (),
        repeat_penalty=form.repeat_penalty if form else 1.0,
    )


async def _synthetic(runner: MeasuredRunner, test: Test) -> Sample:
    if test.generated_tokens and runner.placement.settings.speculation:
        raise RunError(
            f"{test.name}: a random prompt is followed by no meaningful text, so drafting cannot be measured with it",
            cause="speculative decoding is measured by the question alone",
        )
    base = await _random_tokens(runner, test.depth)
    if base:  # fills the KV cache; the measured request finds it there
        await runner.timed(Completion(prompt=base, max_tokens=0))
    prompt = await _random_tokens(runner, max(test.prompt_tokens, 1))
    # One token more than asked: the first comes out of the prompt's own evaluation, so n decode steps give n + 1.
    request = Completion(
        prompt=base + prompt, max_tokens=test.generated_tokens + 1, cache_prompt=bool(base), ignore_eos=True
    )
    started_ns = time.monotonic_ns()
    finished = await _timed(runner, request)
    timings = _timings(finished)
    if not writes_tokens(runner.placement):
        _refuse_other_lengths(test, timings)
    # A server that takes text finds the token that begins every text in its cache.
    if timings.cache_n != len(base) and (base or writes_tokens(runner.placement)):
        raise RunError(
            f"{test.name}: the engine kept {timings.cache_n} of {len(base)} tokens in its KV cache",
            cause="the depth was not kept in the KV cache",
            advice="measure at depth 0, or with a model without sliding-window attention",
        )
    sample = Sample(
        test=test,
        started_ns=started_ns,
        finished_ns=finished.at_ns,
        stop_reason=finished.reason,
        prompt_cached=timings.cache_n,
    )
    sample = replace(sample, marks=_handover_marks(finished))
    if test.prompt_tokens:
        sample = replace(sample, prompt_evaluated=timings.prompt_n, prompt_ns=round(timings.prompt_ms * 1e6))
    if test.generated_tokens:
        steps = timings.predicted_n - 1
        if steps != test.generated_tokens and writes_tokens(runner.placement):
            raise RunError(f"{test.name}: the engine gave {steps} tokens", cause="it stopped before the end")
        sample = replace(sample, decode_steps=steps, decode_ns=round(timings.predicted_ms * 1e6))
    return sample


def _refuse_other_lengths(test: Test, timings: Timings) -> None:
    """A server that takes text counts the tokens itself, and ends an answer where the model does. Raises RunError where
    its counts are missing, or so far from the test's that the rate is another test's."""
    for what, wanted, count in (
        ("prompt", test.prompt_tokens, timings.prompt_n),
        ("answer", test.generated_tokens, timings.predicted_n),
    ):
        if wanted and not count:
            raise RunError(
                f"{test.name}: the server states no count of the {what}'s tokens", cause="the server counts no tokens"
            )
        if count < wanted * _LEAST_OF_LENGTH[what]:
            raise RunError(
                f"{test.name}: the server counts {count} tokens of the {what}", cause=f"its {what} was shorter"
            )


async def _question(runner: MeasuredRunner, test: Test) -> Sample:
    started_ns = time.monotonic_ns()
    events, finished = await runner.complete(chat_request(runner.placement, test.question, QUESTION_TOKENS))
    tokens = [event for event in events if isinstance(event, Token)]
    timings = _timings(finished)
    answer = _from_first_word([token for token in tokens if not token.reasoning])
    thinking = [token for token in tokens if token.reasoning]
    return Sample(
        test=test,
        started_ns=started_ns,
        finished_ns=finished.at_ns,
        prompt_evaluated=timings.prompt_n,
        prompt_cached=timings.cache_n,
        prompt_ns=round(timings.prompt_ms * 1e6),
        decode_steps=max(timings.predicted_n - 1, 0),
        decode_ns=round(timings.predicted_ms * 1e6),
        thinking_at_ns=tuple(token.at_ns for token in thinking),
        answer_at_ns=tuple(token.at_ns for token in answer),
        thinking_text="".join(token.text for token in thinking),
        answer_text="".join(token.text for token in answer).strip(),
        stop_reason=finished.reason,
        marks=({"first_piece_at_ns": tokens[0].at_ns} if tokens else {})
        | _handover_marks(finished)
        | _speculation_marks(timings),
    )


async def _timed(runner: MeasuredRunner, request: Completion) -> Finished:
    """Servers since about October 2026 refuse an answer that ends in half a character, which nobody asked to read
    here: then once more, with a whole character at every step."""
    try:
        return await runner.timed(request)
    except EngineError as error:
        if _HALF_A_CHARACTER not in str(error):
            raise
    plain = (await runner.tokenize(" a", add_special=False))[-1]
    return await runner.timed(replace(request, forced=plain))


def _handover_marks(finished: Finished) -> dict[str, int]:
    """How long the prefill took elsewhere, and the way of the KV cache from there; nothing where there was none."""
    handed = finished.handover
    if handed is None or not handed.transfer_bytes:
        return {}
    return {"prefill_elsewhere_ns": round(handed.prefill_ms * 1e6), "transfer_ns": round(handed.transfer_ms * 1e6)}


def _speculation_marks(timings: Timings) -> dict[str, int]:
    if not timings.draft_n:
        return {}
    return {"guessed_tokens": timings.draft_n, "guessed_right_tokens": timings.draft_accepted}


def _from_first_word(tokens: Sequence[Token]) -> Sequence[Token]:
    """Leading pieces of white space are not yet something to read."""
    for index, token in enumerate(tokens):
        if token.text.strip():
            return tokens[index:]
    return ()


async def measure_cold(
    open_runner: Callable[[], AbstractAsyncContextManager[MeasuredRunner]], file: Path, test: Test
) -> tuple[Sample, tuple[str, ...]]:
    """A start with the file not in the page cache and one with it, the first request, and one with a cached prefix.

    Returns the sample and remarks: where the kernel kept the file in memory the cold load is left out."""
    remarks: tuple[str, ...] = ()
    marks: dict[str, int] = {}
    request = replace(_short_question(), cache_prompt=True)
    started_ns = time.monotonic_ns()
    left = evict(file)
    async with open_runner() as runner:
        if left < 0.01:
            marks["load_cold_ns"] = runner.ready_ns - runner.started_ns
        else:
            remarks = (f"cold load not measured: {left:.0%} of the file stayed in the page cache",)
        await runner.timed(request)  # an engine whose build is asked about itself first is asked here, and not below
    held = await bring_in(file)
    async with open_runner() as runner:
        if held > 0.99:
            marks["load_warm_ns"] = runner.ready_ns - runner.started_ns
        else:
            remarks += ("warm load not measured: the file does not fit in the page cache",)
        marks["first_request_ns"], _ = await _elapsed(runner, request)
        elapsed_ns, cached = await _elapsed(runner, request)
        if cached:
            marks["cached_request_ns"] = elapsed_ns
        else:
            remarks += ("request with a cached prefix not measured: the engine kept no prefix",)
    return Sample(test=test, started_ns=started_ns, finished_ns=time.monotonic_ns(), marks=marks), remarks


def _short_question() -> Completion:
    """About 100 tokens in and one out: what a first request costs, without a long answer."""
    text = "The stones stand in a circle on the plain, and nobody remembers who brought them here. "
    return Completion(prompt=text * 6, max_tokens=1)


async def _elapsed(runner: MeasuredRunner, request: Completion) -> tuple[int, int]:
    """Nanoseconds that the request took, and how many tokens of its prompt came from the KV cache."""
    started_ns = time.monotonic_ns()
    finished = await runner.timed(request)
    return finished.at_ns - started_ns, _timings(finished).cache_n


def _timings(finished: Finished) -> Timings:
    if finished.timings is None:
        raise RunError("the engine gave no timings", cause="no timings", advice="use a newer build of the engine")
    return finished.timings


async def _random_tokens(runner: MeasuredRunner, count: int) -> list[int]:
    vocabulary = await runner.vocabulary_size()
    # Fresh ones each time, so that no request can find a part of its prompt in the KV cache by chance.
    return [random.randrange(vocabulary) for _ in range(count)]
