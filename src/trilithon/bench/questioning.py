"""A set of questions, put to each placement once: greedily, through the chat template, each to an empty cache."""

import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Literal

from trilithon.bench.workloads import chat, chat_request
from trilithon.engines.base import Placement
from trilithon.engines.wire.messages import Event, Token, ToolCallPiece
from trilithon.errors import EngineError, RunError
from trilithon.measure.questions import QuestionSet, SetQuestion, expected_text, fault
from trilithon.measure.records import AnswerRecord
from trilithon.runtime.remote.measured import MeasuredRunner

__all__ = ["Questioning"]

_FAILURES = 2
"""After so many engines in a row that broke down, the rest is not asked."""


class Questioning:
    """`tell` says what happens now."""

    def __init__(
        self,
        questions: QuestionSet,
        open_runner: Callable[[Placement], AbstractAsyncContextManager[MeasuredRunner]],
        tell: Callable[[str], None],
    ):
        self._set = questions
        self._open = open_runner
        self._tell = tell

    async def answers(self, placement: Placement, answered: Collection[str]) -> AsyncGenerator[AnswerRecord, None]:
        """Those to all questions but the ones whose names are in `answered`. A question without an answer counts as
        wrong; an engine that broke down with it is started again for the next one."""
        waiting = [question for question in self._set.questions if question.name not in answered]
        failures = 0
        while waiting and failures < _FAILURES:
            error: RunError | None = None
            try:
                async with self._open(placement) as runner:
                    while waiting:
                        answer = await self._answer(runner, waiting[0], len(waiting))
                        waiting.pop(0)
                        failures = 0
                        yield answer
            except RunError as caught:
                error = caught
            if error is not None and waiting:
                failures += 1
                yield self._without_answer(waiting.pop(0), error)
        for question in waiting:
            yield self._without_answer(question, RunError(f"the engine failed {_FAILURES} times in a row"))

    async def _answer(self, runner: MeasuredRunner, question: SetQuestion, left: int) -> AnswerRecord:
        """A request that the engine refuses is an answer that is missing; raises RunError where the engine broke
        down."""
        number = len(self._set.questions) - left + 1
        self._tell(f"{runner.placement.name}: question {number} of {len(self._set.questions)}")
        request = chat_request(runner.placement, question.text, question.max_tokens, question.tools)
        started_ns = time.monotonic_ns()
        try:
            events, finished = await chat(runner, request)
        except EngineError as error:
            return self._without_answer(question, error)
        pieces = [event for event in events if isinstance(event, Token)]
        calls = _calls(events)
        answer = "".join(piece.text for piece in pieces if not piece.reasoning).strip()
        wrong = fault(question, answer, calls) if question.rule else ""
        is_cut = finished.reason == "length" and bool(wrong or not question.rule)
        cut = f"cut at {question.max_tokens} tokens" if is_cut else ""
        record = self._record(question, "; ".join(filter(None, (wrong, cut))), "wrong" if wrong else "correct")
        return replace(
            record,
            answer="\n".join(filter(None, (answer, *(f"{name}({arguments})" for name, arguments in calls)))),
            thinking="".join(piece.text for piece in pieces if piece.reasoning).strip(),
            stop_reason=finished.reason,
            tokens=finished.timings.predicted_n if finished.timings else 0,
            seconds=(finished.at_ns - started_ns) / 1e9,
        )

    def _without_answer(self, question: SetQuestion, error: RunError) -> AnswerRecord:
        return self._record(question, f"no answer: {error}", "wrong")

    def _record(self, question: SetQuestion, reason: str, verdict: Literal["correct", "wrong"]) -> AnswerRecord:
        return AnswerRecord(
            question_set=self._set.name,
            set_digest=self._set.digest,
            question=question.name,
            text=question.text,
            verdict=verdict if question.rule else "unscored",
            kind=question.kind,
            language=question.language,
            expected=expected_text(question),
            reason=reason,
        )


def _calls(events: Sequence[Event]) -> list[tuple[str, str]]:
    """The name and the arguments of each tool call, put together from its pieces."""
    calls: dict[int, tuple[str, str]] = {}
    for event in events:
        if isinstance(event, ToolCallPiece):
            name, arguments = calls.get(event.index, ("", ""))
            calls[event.index] = (name + event.name, arguments + event.arguments)
    return list(calls.values())
