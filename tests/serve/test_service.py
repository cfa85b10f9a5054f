"""One internal request to a model's answer, without HTTP around it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from process_table import living_children

from trilithon.board.snapshot import read_board
from trilithon.errors import ModelError
from trilithon.runtime.pool.pool import Pool
from trilithon.runtime.process import Process, workspace
from trilithon.runtime.trials import grammar
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.generation import Generation
from trilithon.serve.http.errors import ApiError
from trilithon.serve.service import Service
from trilithon.settings import Configuration

FAST = "scripted/cpu:prefill=50000,decode=5000"
Scenario = Callable[[Service], Awaitable[None]]


@pytest.fixture
def within(configuration: Configuration, tiny: Path) -> Callable[..., None]:
    """Runs a scenario with a service of the tiny model, and ends with everything stopped."""

    def run(scenario: Scenario, placement: str = FAST) -> None:
        async def whole() -> None:
            shelf = Catalog(configuration, read_board(), paths=[tiny], placement=placement)
            with workspace() as folder:
                pool = Pool(configuration, folder)
                try:
                    await scenario(Service(shelf, pool))
                finally:
                    await pool.drain(5)

        asyncio.run(whole())

    return run


def chat(words: str = "hello", tokens: int = 8, **more: object) -> Generation:
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": tokens, "stream": True}
    return Generation(model="tiny", path="/v1/chat/completions", body=body | more)


def test_a_grammars_trial_keeps_nobody_waiting(within: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The only slot is free meanwhile, and the next load of the model needs no trial of the same grammar."""
    monkeypatch.setattr(grammar, "_CPU_SECONDS", 600)

    async def scenario(service: Service) -> None:
        await service.ask(chat(), "somebody")
        engine = living_children()
        many = chat(grammar="root ::= " + '("a" | "b")* ' * 600)
        trial = asyncio.create_task(service.ask(many, "another"))
        while living_children() == engine and not trial.done():  # noqa: ASYNC110 (nothing tells it)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            _, answer = await service.ask(chat(), "somebody")
        assert answer.end is not None
        assert not trial.done()
        trial.cancel()
        await asyncio.wait([trial])

    within(scenario, placement="llama.cpp@embedded/cpu:t=1")


def test_a_trial_is_remembered_when_the_model_is_loaded_again(
    within: Callable[..., None], children: list[Process]
) -> None:
    async def scenario(service: Service) -> None:
        form = {"type": "json_schema", "json_schema": {"schema": {"type": "string", "maxLength": 120}}}
        for expected in (2, 3):  # the model, its trial; the model again
            _, answer = await service.ask(chat(response_format=form), "somebody")
            assert answer.load_seconds > 0
            assert len(children) == expected
            await service.unload("tiny")

    within(scenario, placement="llama.cpp@embedded/cpu:t=1")


def test_pieces_and_how_it_ended(within: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        pieces, answer = await service.ask(chat(), "somebody")
        assert "".join(piece.text for piece in pieces)
        assert answer.end is not None
        assert answer.end.reason == "length"
        assert answer.end.timings is not None
        assert answer.end.timings.predicted_n == 8
        assert answer.load_seconds > 0
        assert answer.provenance()["decode_unit"] == "cpu"
        _, again = await service.ask(chat(), "somebody")
        assert again.load_seconds == 0

    within(scenario)


def test_the_engines_bytes_pass_through(within: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        async with service.answer(chat(), "somebody") as answer:
            content = await answer.read()
        assert content.startswith(b"data: ")
        assert content.rstrip().endswith(b"[DONE]")

    within(scenario)


def test_plain_endpoints_and_the_only_model(within: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        _, content = await service.forward("", "/tokenize", {"content": "two stones"}, "somebody")
        assert json.loads(content)["tokens"]
        assert (await service.entry("")).name == "tiny:latest"

    within(scenario)


def test_load_and_unload(within: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        assert await service.load("tiny", "somebody", 60) > 0
        assert await service.load("tiny", "somebody", 60) == 0
        assert await service.unload("tiny")
        assert not await service.unload("tiny")

    within(scenario)


def test_a_loaded_model_is_kept_unless_more_context_is_asked_for(within: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        await service.load("tiny", "somebody", 60, 512)
        assert await service.load("tiny", "somebody", 60, 300) == 0
        assert await service.load("tiny", "somebody", 60, 600) > 0

    within(scenario)


def test_what_cannot_be_is_said(within: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        with pytest.raises(ModelError):
            await service.ask(Generation(model="nobody", path="/completion", body={}), "somebody")
        sees = Generation(model="tiny", path="/completion", body={}, needs=frozenset({"vision"}))
        with pytest.raises(ApiError, match="image"):
            await service.ask(sees, "somebody")

    within(scenario)


def test_vectors_are_made_by_a_runner_of_their_own(within: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        body = {"input": ["one", "two"]}
        wanted = Generation(model="tiny", path="/v1/embeddings", body=body, needs=frozenset({"embeddings"}))
        async with service.answer(wanted, "somebody") as answer:
            found = json.loads(await answer.read())
        assert len(found["data"]) == 2
        await service.ask(chat(), "somebody")
        assert [loaded.key for loaded in service.pool.loaded()] == ["tiny:latest (vectors)", "tiny:latest"]

    within(scenario, "llama.cpp@embedded/cpu:t=1")
