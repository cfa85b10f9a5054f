"""What stands beside each placement's speed: over the scripted engine, whose answers are as wrong as they are told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from trilithon.bench import quality
from trilithon.bench.quality_check import QualityCheck
from trilithon.board.snapshot import read_board
from trilithon.engines.base import Placement
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.placing import Need, place
from trilithon.errors import RunError
from trilithon.measure.records import QualityRecord
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.runtime.opening import open_runner
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

FAST = "prefill=50000,decode=5000"
GOOD, WRONG = f"scripted/cpu:{FAST}", f"scripted/gpu:{FAST},wrong=1"
DYING, ALSO_GOOD = f"scripted/npu:{FAST},crash_after=20", f"scripted/npu:{FAST}"


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> ModelFile:
    return read_model_file(tiny, tmp_path)


class Judged:
    """`placed` in their order against the first, or against `reference`; `safer` is what each can be lowered to."""

    def __init__(self, folder: Path, file: ModelFile):
        self.configuration = Configuration(data=folder / "d", cache=folder / "c", start_seconds=60, hang_seconds=10)
        self.folder = folder
        self.file = file
        self.numbers = count()
        self.told: list[str] = []
        self.reasons: list[RunError] = []

    def placed(self, text: str) -> Placement:
        return place(parse_placement(text), {}, Need(), [self.file], read_board(), self.configuration)

    def __call__(self, *texts: str, safer: str = "", reference: str = "") -> list[QualityRecord]:
        placements = [self.placed(text) for text in texts]

        @contextlib.asynccontextmanager
        async def opened(placement: Placement) -> AsyncIterator[Runner]:
            async with open_runner(placement, self.folder / str(next(self.numbers)), self.configuration) as runner:
                yield runner

        async def lower(placement: Placement, reason: RunError) -> Placement | None:
            self.reasons.append(reason)
            return self.placed(safer) if safer else None

        async def scenario() -> list[QualityRecord]:
            held = self.placed(reference) if reference else placements[0]
            judging = QualityCheck(held, opened, lower, self.told.append)
            found = [(placement, record) async for placement, record in judging.of(placements)]
            assert [placement for placement, _ in found] == placements
            return [record for _, record in found]

        return asyncio.run(scenario())


@pytest.fixture
def judged(tmp_path: Path, file: ModelFile) -> Judged:
    return Judged(tmp_path, file)


def test_each_is_held_against_the_reference(judged: Judged) -> None:
    reference, other, wrong = judged(GOOD, ALSO_GOOD, WRONG)
    assert (reference.verdict, other.verdict, wrong.verdict) == ("reference", "same", "broken")
    assert {reference.reference, other.reference, wrong.reference} == {GOOD}
    assert judged.told == [f"{name}: quality" for name in (GOOD, ALSO_GOOD, WRONG)]
    assert [reason.cause for reason in judged.reasons] == ["called broken by the quality check"]


@pytest.mark.slow
def test_what_is_broken_or_dies_gets_one_more_chance(judged: Judged) -> None:
    assert [record.verdict for record in judged(GOOD, WRONG, safer=ALSO_GOOD)] == ["reference", "same"]
    assert [record.verdict for record in judged(GOOD, DYING, safer=ALSO_GOOD)] == ["reference", "same"]
    assert "segmentation fault" in judged.reasons[-1].cause
    _, still = judged(GOOD, DYING, safer=DYING)
    assert still.verdict == "unknown" and "SIGSEGV" in still.reasons[0]
    assert len(judged.reasons) == 3


def test_without_a_sound_reference_nothing_is_known(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = judged(GOOD, reference=DYING)
    assert (record.verdict, record.reference) == ("unknown", DYING)
    assert "SIGSEGV" in record.reasons[0]
    monkeypatch.setattr(quality, "BROKEN_PERPLEXITY", 1.0)
    reference, other = judged(GOOD, ALSO_GOOD)
    assert (reference.verdict, other.verdict) == ("broken", "unknown")
    assert f"{GOOD}, the reference, is itself broken: perplexity" in other.reasons[0]
    assert judged.reasons == []


def test_random_weights_say_nothing(judged: Judged, file: ModelFile) -> None:
    judged.file = replace(file, synthetic=True)
    assert {record.verdict for record in judged(GOOD, WRONG)} == {"unknown"}
    assert len(judged.told) == 1 and judged.reasons == []
