"""A set of questions put to engines: what is asked, what is kept, and what becomes of an engine that breaks down."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from standin_servers import StandInServer, serving

from trilithon.bench.questioning import Questioning
from trilithon.bench.setup import CampaignSetup, resolve
from trilithon.board.snapshot import read_board
from trilithon.engines.base import Placement
from trilithon.engines.remote.placing import place_server
from trilithon.measure.questions import QuestionSet, SetQuestion
from trilithon.measure.records import AnswerRecord
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.opening import open_runner
from trilithon.runtime.remote.runner import RemoteRunner
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

TOOL: Mapping[str, Any] = {"name": "set_timer", "parameters": {"type": "object"}}
NUMBER = SetQuestion(name="number", text="How many?", rule="number", expected=408, kind="sum", language="en")
WORDS = SetQuestion(name="words", text="Which?", rule="words", expected=["Oslo"])
FREE = SetQuestion(name="free", text="Why?", max_tokens=3)
SET = QuestionSet(name="mine", questions=(NUMBER, WORDS, FREE))


class Asking:
    def __init__(self, folder: Path, tiny: Path):
        self.configuration = Configuration(data=folder / "data", cache=folder / "cache", hang_seconds=5.0)
        self.folder, self.tiny, self.opened = folder, tiny, 0
        self.told: list[str] = []

    def placement(self, text: str) -> Placement:
        plan = CampaignSetup(model=self.tiny, tests=(), placements=(text,))
        (placement,) = resolve(plan, read_model_file(self.tiny, self.folder), read_board(), self.configuration)
        return placement

    @contextlib.asynccontextmanager
    async def _open(self, placement: Placement) -> AsyncIterator[Runner]:
        self.opened += 1
        async with open_runner(placement, self.folder / str(self.opened), self.configuration) as runner:
            yield runner

    def __call__(self, text: str, questions: QuestionSet = SET, answered: tuple[str, ...] = ()) -> list[AnswerRecord]:
        async def all_answers() -> list[AnswerRecord]:
            questioning = Questioning(questions, self._open, self.told.append)
            return [answer async for answer in questioning.answers(self.placement(text), answered)]

        return asyncio.run(all_answers())


@pytest.fixture
def asking(tmp_path: Path, tiny: Path) -> Asking:
    return Asking(tmp_path, tiny)


def test_every_answer_is_kept_with_its_verdict(asking: Asking) -> None:
    number, words, free = asking("scripted/cpu:decode=5000,text=It is 408 of course")
    assert (number.verdict, number.answer, number.thinking) == ("correct", "It is 408 of course", "")
    assert (number.question_set, number.set_digest, number.question) == ("mine", SET.digest, "number")
    assert (number.text, number.expected, number.kind, number.language) == ("How many?", "408", "sum", "en")
    assert number.tokens > 0
    assert number.seconds > 0
    assert (words.verdict, words.reason) == ("wrong", "without Oslo")
    assert (free.verdict, free.reason, free.stop_reason) == ("unscored", "cut at 3 tokens", "length")
    assert asking.opened == 1
    assert [line.rpartition(": ")[2] for line in asking.told] == [f"question {n} of 3" for n in (1, 2, 3)]


def test_what_is_answered_is_not_asked_again(asking: Asking) -> None:
    assert [answer.question for answer in asking("scripted/cpu:decode=5000", answered=("number", "free"))] == ["words"]
    assert asking("scripted/cpu:decode=5000", answered=("number", "words", "free")) == []
    assert asking.opened == 1


@pytest.mark.parametrize("api", ["OpenAI API", "Ollama"])
def test_a_tool_is_offered_to_a_server_and_its_call_is_read(tmp_path: Path, tiny: Path, api: str) -> None:
    expected = {"name": "set_timer", "arguments": {"minutes": 15}}
    questions = (
        SetQuestion(name="call", text="?", rule="tool_call", expected=expected, tools=(TOOL,)),
        SetQuestion(name="plain", text="?", rule="words", expected=["stones"], max_tokens=3),
    )
    server = StandInServer(api, prompt_seconds=0, word_seconds=0, thinking="<think>hm</think>", call=expected)

    async def ask() -> list[AnswerRecord]:
        with serving(server):
            options = {"address": server.address, "model": "qwen2.5:1.5b"}
            placement = place_server(server.address, options, (), read_model_file(tiny, tmp_path), 4096)
            opened = functools.partial(RemoteRunner.open, hang_seconds=20)
            questioning = Questioning(QuestionSet(name="s", questions=questions), opened, [].append)
            return [answer async for answer in questioning.answers(placement, ())]

    call, plain = asyncio.run(ask())
    assert (call.verdict, call.answer, call.reason) == ("correct", 'set_timer({"minutes": 15})', "")
    assert (plain.verdict, plain.thinking, plain.answer) == ("correct", "hm", "stones that")
    offered = [body.get("tools") for _, body in server.requests]
    assert offered == [[{"type": "function", "function": TOOL}], None]
    temperatures = [body.get("temperature", body.get("options", {}).get("temperature")) for _, body in server.requests]
    assert temperatures == [0, 0]


def test_an_engine_without_tools_gives_no_answer(asking: Asking) -> None:
    expected = {"name": "set_timer", "arguments": {}}
    question = SetQuestion(name="call", text="?", rule="tool_call", expected=expected, tools=(TOOL,))
    (answer,) = asking("scripted/cpu:decode=5000", QuestionSet(name="tools", questions=(question,)))
    assert (answer.verdict, answer.answer) == ("wrong", "")
    assert answer.reason.startswith("no answer: the engine refused (400): the scripted engine calls no tools")


def test_a_request_that_is_refused_is_a_wrong_answer(asking: Asking) -> None:
    answers = asking("scripted/cpu:refuse_requests=too hot")
    assert [answer.verdict for answer in answers] == ["wrong", "wrong", "unscored"]
    assert all(answer.reason.startswith("no answer: ") and "too hot" in answer.reason for answer in answers)
    assert asking.opened == 1


@pytest.mark.slow
def test_an_engine_that_dies_is_started_again_and_given_up_at_last(asking: Asking, tmp_path: Path) -> None:
    once = asking(f"scripted/cpu:decode=5000,text=408,crash_after=1,flaky=1,flaky_file={tmp_path / 'starts'}")
    assert [answer.verdict for answer in once] == ["wrong", "wrong", "unscored"]
    assert [bool(answer.answer) for answer in once] == [False, True, True]
    assert asking.opened == 2
    always = asking("scripted/cpu:crash_after=1")
    assert [answer.verdict for answer in always] == ["wrong", "wrong", "unscored"]
    assert always[2].reason == "no answer: the engine failed 2 times in a row"
    assert asking.opened == 4
