"""Guessing ahead: what may be asked of which engine, and that a real server guesses, and answers as without."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from drafting_model import write_drafting_model

from trilithon.board.snapshot import read_board
from trilithon.engines.base import Placement
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.placing import Need, place
from trilithon.engines.speculation import SPECULATIONS
from trilithon.engines.table import engine
from trilithon.engines.wire.messages import Completion, Finished, Timings, Token
from trilithon.errors import PlacementError
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.runtime.handover import handover
from trilithon.runtime.opening import open_runner
from trilithon.settings import Configuration

THINGS = ("apple", "pear", "plum", "stone", "river", "tree", "house") * 2
LIST = " ".join(f"Item {number}: the {thing} costs {number * 3} coins." for number, thing in enumerate(THINGS))
COPY = f"<start_of_turn>user\nRepeat this text word for word:\n{LIST}<end_of_turn>\n<start_of_turn>model\n"


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache", start_seconds=60, hang_seconds=30)


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> ModelFile:
    return read_model_file(tiny, tmp_path)


def placed(text: str, file: ModelFile, configuration: Configuration) -> Placement:
    return place(parse_placement(text), {}, Need(), [file], read_board(), configuration)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("llama.cpp@embedded/cpu:spec=magic", "unknown speculation magic; there are ngram-simple, "),
        ("llama.cpp@embedded/cpu:spec=draft-mtp", "has no layers that predict further tokens; take spec=ngram-mod"),
        ("scripted/cpu:spec=ngram-mod", "scripted has no speculative decoding; leave spec out"),
        ("llama.cpp@embedded/cpu:spec=ngram-mod,spec=ngram-simple", "spec is given twice"),
        ("llama.cpp@embedded/cpu:spec=", "unknown speculation ; there are"),
    ],
)
def test_what_cannot_be_done_is_refused(file: ModelFile, configuration: Configuration, text: str, said: str) -> None:
    with pytest.raises(PlacementError, match="placement") as caught:
        placed(text, file, configuration)
    assert said in str(caught.value)


@pytest.mark.parametrize("right", [True, False])
def test_layers_of_the_models_own_guess(configuration: Configuration, tmp_path: Path, right: bool) -> None:
    model = read_model_file(write_drafting_model(tmp_path / "m.gguf", right=right), configuration.cache)

    async def answer(more: str) -> tuple[str, Timings]:
        placement = placed(f"llama.cpp@embedded/cpu:t=1,c=1024{more}", model, configuration)
        async with open_runner(placement, tmp_path / f"r{more}", configuration) as runner:
            events, finished = await runner.complete(Completion(prompt="hello", max_tokens=60, ignore_eos=True))
            assert finished.timings is not None
            return "".join(event.text for event in events if isinstance(event, Token)), finished.timings

    plain, _ = asyncio.run(answer(""))
    guessed, timings = asyncio.run(answer(",spec=draft-mtp"))
    assert guessed == plain
    assert timings.draft_n > 20
    # The last guesses may go beyond the end of the answer.
    assert timings.draft_accepted >= timings.draft_n - 3 if right else timings.draft_accepted < timings.draft_n / 2


@pytest.mark.parametrize("way", ["draft-mtp", "ngram-simple"])
def test_a_decoder_guesses_on_top_of_a_brought_cache(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The prefiller guesses nothing, and its cache has nothing for the layers that do."""
    monkeypatch.setattr(handover.Costs, "cheapest", lambda costs, **_: ("prefiller", ""))
    model = read_model_file(write_drafting_model(tmp_path / "m.gguf", right=True), configuration.cache)
    prompt = "the quick brown fox jumps over the lazy dog and then it runs far away. " * 4

    async def answer(text: str, place: Path) -> tuple[str, Finished]:
        async with open_runner(placed(text, model, configuration), place, configuration) as runner:
            events, finished = await runner.complete(Completion(prompt=prompt, max_tokens=80, ignore_eos=True))
            return "".join(event.text for event in events if isinstance(event, Token)), finished

    async def scenario() -> None:
        one = "llama.cpp@embedded/cpu:t=1,c=1024"
        plain, _ = await answer(one, tmp_path / "a")
        guessed, finished = await answer(f"{one}+{one},spec={way}", tmp_path / "b")
        assert guessed == plain
        assert finished.handover is not None and finished.handover.prefill_tokens > 100, finished.handover
        assert finished.timings is not None and finished.timings.draft_accepted > 0

    asyncio.run(scenario())


def test_what_makes_vectors_guesses_nothing(file: ModelFile, configuration: Configuration, tmp_path: Path) -> None:
    found = placed("llama.cpp@embedded/cpu:spec=ngram-mod", file, configuration)
    for task, said in (("generate", True), ("embed", False), ("rank", False)):
        asked = replace(found, settings=replace(found.settings, task=task))  # type: ignore[arg-type]
        launch = engine("llama.cpp", configuration).launch(asked, tmp_path)
        assert ("speculative.types" in json.loads(launch.argv[-1])) == said


@pytest.mark.parametrize("way", [way for way in SPECULATIONS if way.startswith("ngram")])
def test_a_real_server_guesses_ahead(file: ModelFile, configuration: Configuration, tmp_path: Path, way: str) -> None:
    async def scenario() -> Finished:
        placement = placed(f"llama.cpp@embedded/cpu:t=1,c=2048,spec={way}", file, configuration)
        async with open_runner(placement, tmp_path / "r", configuration) as runner:
            prompt = "the quick brown fox jumps over the lazy dog and then it runs far away from here. " * 12
            _, finished = await runner.complete(Completion(prompt=prompt, max_tokens=300, ignore_eos=True))
            return finished

    timings = asyncio.run(scenario()).timings
    assert timings is not None and timings.predicted_n == 300
    assert 0 <= timings.draft_accepted <= timings.draft_n and timings.draft_n > 0


@pytest.mark.slow
@pytest.mark.demo
def test_the_answer_is_the_models_own(demo: Path, configuration: Configuration, tmp_path: Path) -> None:
    """Greedy, so that it has but one; most of what is copied is guessed right."""
    model = read_model_file(demo, configuration.cache)

    async def answer(text: str, place: Path) -> tuple[str, Finished]:
        async with open_runner(placed(text, model, configuration), place, configuration) as runner:
            events, finished = await runner.complete(Completion(prompt=COPY, max_tokens=120))
            return "".join(event.text for event in events if isinstance(event, Token)), finished

    async def scenario() -> None:
        plain, one_by_one = await answer("llama.cpp@embedded/cpu", tmp_path / "a")
        guessed, finished = await answer("llama.cpp@embedded/cpu:spec=ngram-simple", tmp_path / "b")
        assert guessed == plain and "the stone costs 9 coins" in plain
        assert one_by_one.timings is not None and one_by_one.timings.draft_n == 0
        assert finished.timings is not None and finished.timings.draft_accepted > 40

    asyncio.run(scenario())
