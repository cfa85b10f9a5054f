import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.bench import campaign as module
from trilithon.bench.campaign import run_campaign
from trilithon.bench.prepare import prepare
from trilithon.bench.progress import CampaignStep
from trilithon.bench.setup import CampaignSetup
from trilithon.engines.base import FallbackStep, Placement
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.errors import Interrupted
from trilithon.measure.records import Campaign, Test
from trilithon.results.store.database import Store
from trilithon.settings import Configuration

FAST = "prefill=50000,decode=5000"
TESTS = (Test(kind="pp", prompt_tokens=16), Test(kind="tg", generated_tokens=8))


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def settle(**_: object) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(module, "settle", settle)
    monkeypatch.setattr(module, "measure_bandwidth", lambda _: 1e10)


@pytest.fixture(autouse=True)
def fallback_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted GPU gets one fallback step per fault that it has: each removes one."""

    def steps(_: ScriptedEngine, placement: Placement) -> tuple[FallbackStep, ...]:
        faults = [each for each in placement.settings.options if each[0] in ("crash_after", "wrong", "error_after")]
        if placement.unit != "gpu":
            return ()
        found = []
        for at, fault in enumerate(faults):
            options = tuple(each for each in placement.settings.options if each not in faults[: at + 1])
            found.append(FallbackStep(name=f"no {fault[0]}", settings=replace(placement.settings, options=options)))
        return tuple(found)

    monkeypatch.setattr(ScriptedEngine, "fallback_steps", steps)


class Bench:
    def __init__(self, folder: Path, model: Path):
        self.configuration = Configuration(
            data=folder / "data", cache=folder / "cache", start_seconds=60.0, hang_seconds=20.0
        )
        self.model = model
        self.told: list[str] = []

    def __call__(self, *placements: str, resume: int | None = None, **more: object) -> Campaign:
        words: dict[str, object] = {"model": self.model, "tests": TESTS, "quality": False, "rounds": 1, **more}
        prepared = prepare(CampaignSetup(placements=placements, **words), self.configuration)  # type: ignore[arg-type]
        self.told = []

        def observe(step: CampaignStep) -> None:
            self.told.append(step.text)

        with Store.open(self.configuration.results_database) as store:
            return store.campaign(asyncio.run(run_campaign(prepared, store, observe, resume)))


@pytest.fixture
def bench(tmp_path: Path, tiny: Path) -> Bench:
    return Bench(tmp_path, tiny)


@pytest.mark.slow
def test_a_placement_uses_its_fallback_from_the_first_round(bench: Bench) -> None:
    name = f"scripted/gpu:{FAST},crash_after=3"
    campaign = bench(name, f"scripted/cpu:{FAST}")
    assert [run.outcome for run in campaign.runs] == ["finished", "finished"]
    record = next(p for p in campaign.placements if p.name == name)
    assert "crash_after" not in record.settings["options"]
    (run,) = [run for run in campaign.runs if run.placement == name]
    (remark,) = [each for each in run.remarks if each.startswith("runs with")]
    assert (
        "runs with no crash_after, because it failed with its own settings: died, segmentation fault (SIGSEGV) (2"
        in remark
    )
    assert bench.told[:3] == [
        f"scripted/cpu:{FAST}: reading its answers for comparison",
        f"{name}: testing its settings",
        f"{name}: testing with no crash_after",
    ]


@pytest.mark.slow
def test_the_next_campaign_starts_there(bench: Bench) -> None:
    bench(f"scripted/gpu:{FAST},crash_after=3")
    campaign = bench(f"scripted/gpu:{FAST},crash_after=3")
    assert not [text for text in bench.told if "testing" in text]
    assert [run.outcome for run in campaign.runs] == ["finished"]
    assert any("runs with no crash_after" in remark for remark in campaign.runs[0].remarks)


def test_a_placement_without_fallback_steps_costs_nothing(bench: Bench) -> None:
    bench(f"scripted/cpu:{FAST}")
    assert not [text for text in bench.told if "testing" in text or "for comparison" in text]


@pytest.mark.slow
def test_one_that_dies_in_use_gets_the_next_fallback_step(bench: Bench) -> None:
    """The probe generates some ten tokens; these runs are longer."""
    tests = (Test(kind="tg", generated_tokens=64),)
    campaign = bench(f"scripted/gpu:{FAST},crash_after=40", tests=tests, rounds=5)
    assert [run.outcome for run in campaign.runs] == ["failed", "failed", "finished", "finished", "finished"]
    assert "crash_after" not in campaign.placements[0].settings["options"]
    assert "crash_after" not in campaign.placements[0].must_match["settings"]
    assert any("died" in remark for remark in campaign.runs[-1].remarks)


@pytest.mark.slow
def test_one_that_goes_on_dying_is_given_up(bench: Bench) -> None:
    tests = (Test(kind="tg", generated_tokens=64),)
    campaign = bench(f"scripted/gpu:{FAST},crash_after=40,error_after=40", tests=tests, rounds=6)
    outcomes = [run.outcome for run in campaign.runs]
    assert outcomes == ["failed", "failed", "failed", "failed", "skipped", "skipped"]


@pytest.mark.slow
def test_samples_of_unlike_settings_are_not_put_together(bench: Bench) -> None:
    tests = (Test(kind="pp", prompt_tokens=16), Test(kind="tg", generated_tokens=64))
    campaign = bench(f"scripted/gpu:{FAST},error_after=40", tests=tests, rounds=3)
    assert [run.outcome for run in campaign.runs] == ["finished"] * 3  # pp was measured; tg failed
    assert "error_after" in campaign.placements[0].settings["options"]


@pytest.mark.slow
def test_one_that_quality_calls_broken_gets_the_next_fallback_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong in a way that a short probe does not see."""
    monkeypatch.setattr("trilithon.runtime.fallback.search._GARBAGE_DIVERGENCE", 1e9)
    campaign = bench(f"scripted/cpu:{FAST}", f"scripted/gpu:{FAST},wrong=1", quality=True)
    broken = campaign.placements[1]
    assert broken.quality is not None
    assert broken.quality.verdict == "same"
    assert "wrong" not in broken.settings["options"]
    assert any("called broken by the quality check" in remark for remark in campaign.runs[-1].remarks)


@pytest.mark.slow
def test_a_broken_reference_condemns_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilithon.runtime.fallback.search._GARBAGE_DIVERGENCE", 1e9)
    monkeypatch.setattr("trilithon.bench.quality.BROKEN_PERPLEXITY", 1.0)
    campaign = bench(f"scripted/cpu:{FAST}", f"scripted/gpu:{FAST},wrong=1", quality=True)
    reference, other = (each.quality for each in campaign.placements)
    assert reference and other
    assert (reference.verdict, other.verdict) == ("broken", "unknown")
    assert other.reasons[0].startswith(f"scripted/cpu:{FAST}, the reference, is itself broken: perplexity")
    assert "wrong" in campaign.placements[1].settings["options"]


def test_stopped_before_the_first_round_there_is_nothing_to_go_on_with(bench: Bench) -> None:
    prepared = prepare(
        CampaignSetup(model=bench.model, tests=TESTS, placements=(f"scripted/gpu:{FAST},wrong=1",)), bench.configuration
    )

    def stop(step: CampaignStep) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    with (
        Store.open(bench.configuration.results_database) as store,
        pytest.raises(Interrupted, match=r"^stopped before anything was measured$"),
    ):
        asyncio.run(run_campaign(prepared, store, stop))


@pytest.mark.slow
def test_garbage_is_seen_before_the_first_round(bench: Bench) -> None:
    campaign = bench(f"scripted/cpu:{FAST}", f"scripted/gpu:{FAST},wrong=1")
    assert any("wrong answers" in remark for remark in campaign.runs[-1].remarks)


def test_when_nothing_works_its_runs_tell(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def useless(_: ScriptedEngine, placement: Placement) -> tuple[FallbackStep, ...]:
        return (FallbackStep(name="nothing", settings=placement.settings),)

    monkeypatch.setattr(ScriptedEngine, "fallback_steps", useless)
    campaign = bench(f"scripted/gpu:{FAST},crash_after=1")
    (run,) = campaign.runs
    assert run.outcome == "failed"
    assert any("no working settings were found; the last attempt failed" in remark for remark in run.remarks)


def test_both_halves_of_a_handover_get_their_fallbacks(bench: Bench) -> None:
    campaign = bench(f"scripted/gpu:{FAST},crash_after=3+scripted/cpu:{FAST}")
    (run,) = campaign.runs
    assert any("runs with no crash_after" in remark for remark in run.remarks)
    assert "crash_after" not in campaign.placements[0].must_match["prefill settings"]
