"""Whole tunes with the scripted engine, which is slower, faster, wrong and dying on demand."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trilithon.errors import UserError
from trilithon.files import file_lock
from trilithon.results.store.database import Store
from trilithon.settings import Configuration
from trilithon.tune import runs, session
from trilithon.tune.planning import outcome_sentence
from trilithon.tune.session import TuneOutcome, last_stopped, run_tune
from trilithon.tune.setup import TuneSetup, parse_workload

# 64 tokens of prompt and 8 generated: 0.2 s by default. The faster choices halve that; one answers wrongly, one dies.
VARY = "decode:400|decode:900&crash_after:3;prefill:9000&wrong:1"
FASTEST = f"scripted/cpu:vary={VARY},decode=400"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for an idle machine, and the fewest fresh rounds that can be compared."""

    async def settle(*, limit_seconds: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(runs, "settle", settle)
    monkeypatch.setattr(session, "FINAL_ROUNDS", 5)


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache", start_seconds=60.0, hang_seconds=30.0)


def setup(model: Path, *placements: str) -> TuneSetup:
    return TuneSetup(model=model, prompt_tokens=64, generated_tokens=8, placements=placements)


def tuned(
    what: TuneSetup, configuration: Configuration, tell: Callable[[str], None] = str, resume: int | None = None
) -> TuneOutcome:
    with Store.open(configuration.results_database) as store:
        return asyncio.run(run_tune(what, store, configuration, tell, resume))


@pytest.mark.slow  # a process per run, and five fresh rounds of two
def test_a_stopped_tune_goes_on_and_finds_the_fastest_choice_that_is_right(
    configuration: Configuration, tiny: Path
) -> None:
    what, told = setup(tiny, f"scripted/cpu:vary={VARY}"), list[str]()

    def stop_in_the_second_round(line: str) -> None:
        told.append(line)
        if len(told) == 6:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        tuned(what, configuration, stop_in_the_second_round)
    with Store.open(configuration.results_database) as store:
        number = last_stopped(store)
        assert number is not None
        before = [run for run in store.campaign(number).runs if run.outcome == "finished"]
        assert store.last_interrupted() is None  # bench --resume does not go on with it
    assert before
    outcome = tuned(what, configuration, resume=number)
    assert (outcome.campaign, outcome.best.name, outcome.gained) == (number, FASTEST, True)
    assert outcome.conclusion is not None
    assert outcome.conclusion.low > 1
    assert "fresh rounds" in outcome_sentence(outcome)
    with Store.open(configuration.results_database) as store:
        campaign = store.campaign(number)
    assert campaign.status == "finished"
    assert [run for run in campaign.runs if run.outcome == "finished"][: len(before)] == before
    wrong = [run for run in campaign.runs if ",wrong=1" in run.placement]
    dying = [run.outcome for run in campaign.runs if ",crash_after=3" in run.placement]
    assert (wrong, dying) == ([], ["failed"])
    verdicts = [p.quality.verdict for p in campaign.placements if p.quality is not None]
    assert verdicts == ["degraded"]


def test_without_anything_to_change_the_defaults_are_as_good(configuration: Configuration, tiny: Path) -> None:
    outcome = tuned(setup(tiny, "scripted/cpu"), configuration)
    assert (outcome.gained, outcome.best.name) == (False, "scripted/cpu")
    assert outcome_sentence(outcome) == "the defaults are as good: scripted/cpu"


def test_two_tunes_refuse_each_other(configuration: Configuration, tiny: Path) -> None:
    with file_lock(configuration.data / "tune.lock"), pytest.raises(UserError, match="another tune"):
        tuned(setup(tiny, "scripted/cpu"), configuration)


def test_settings_of_the_user_are_not_changed(configuration: Configuration, tiny: Path) -> None:
    fixed = f"scripted/cpu:vary={VARY},decode=70,prefill=700"
    assert tuned(setup(tiny, fixed), configuration).best.name == fixed


def test_workloads() -> None:
    assert parse_workload("rag") == (4096, 128)
    assert parse_workload("300,20") == (300, 20)
    for text in ("talk", "0,3", "3", "3,", "-1,2"):
        with pytest.raises(UserError, match="--workload"):
            parse_workload(text)
    what = TuneSetup(model=Path(os.devnull), prompt_tokens=1, generated_tokens=2, placements=("scripted/cpu",))
    assert TuneSetup.from_json(what.to_json()) == what
