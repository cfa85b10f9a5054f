"""The report of a tune: what was tried, how it ended, and the same with the engine alone."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.board.snapshot import read_board
from trilithon.cli.bench.outcome import write_pictures
from trilithon.engines.base import Placement
from trilithon.engines.ik_llamacpp.engine import IkLlamaCpp
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.placing import Need, place
from trilithon.engines.rk_llamacpp.engine import RkLlamaCpp
from trilithon.engines.table import engine
from trilithon.engines.variables import variable
from trilithon.measure.records import Campaign, Failure, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.models.files.model_file import read_model_file
from trilithon.results.compare import summarise
from trilithon.results.phrases import Phrases
from trilithon.results.report.page import write_report
from trilithon.results.report.tuned import charts_of, step_lines
from trilithon.results.statements import comparison_lines
from trilithon.results.store.database import Store
from trilithon.results.tuned.steps import TUNE_SOURCE, TuneStep, changed_half, end_of, steps
from trilithon.results.verdict import verdict_sentence
from trilithon.settings import Configuration
from trilithon.tune import session
from trilithon.tune.handovers import Knob
from trilithon.tune.priors import known_gains, with_priors
from trilithon.tune.session import TuneOutcome, run_tune
from trilithon.tune.setup import TuneSetup

PLACEMENT = "scripted/cpu:vary=decode:90|decode:50|decode:400&crash_after:3;prefill:810"
BEST = f"{PLACEMENT},decode=90"


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache")


@pytest.fixture
def ended(configuration: Configuration, tiny: Path, computed_times: None) -> tuple[TuneOutcome, Campaign]:
    what = TuneSetup(model=tiny, prompt_tokens=64, generated_tokens=64, placements=(PLACEMENT,))
    with Store.open(configuration.results_database) as store:
        outcome = asyncio.run(run_tune(what, store, configuration, str))
        return outcome, store.campaign(outcome.campaign)


def test_a_report_has_what_was_tried_the_end_and_a_line_for_a_shell(
    ended: tuple[TuneOutcome, Campaign], tmp_path: Path
) -> None:
    outcome, campaign = ended
    assert (outcome.best.name, end_of(campaign)) == (BEST, outcome.end)
    told = {step.change: step for step in steps(campaign)}
    assert {change: step.result for change, step in told.items()} == {
        "decode=90": "kept",
        "decode=50": "dropped",
        "decode=400, crash_after=3": "failed",
        "prefill=810": "dropped",
        "− decode=90": "dropped",
    }
    kept = told["decode=90"]
    assert kept.gain == pytest.approx((64 / 800 + 64 / 60) / (64 / 800 + 64 / 90), rel=0.1)
    assert {step.incumbent for step in told.values()} <= {PLACEMENT, BEST}
    fresh = [run for run in campaign.runs if run.round >= (outcome.end.fresh_from or 0)]
    assert {run.placement for run in fresh} == {PLACEMENT, BEST}
    for language, sentence in (("en", "times as fast as"), ("ru", "раза быстрее")):
        phrases = Phrases(language)
        rows = summarise(campaign, phrases)
        said = verdict_sentence(campaign, phrases)
        assert sentence in said
        page = write_report(tmp_path, campaign, rows, said, comparison_lines(campaign, phrases), phrases=phrases)
        html = page.read_text(encoding="utf-8")
        assert html.count("<svg") == 1
        assert "imported from" not in html
        assert outcome.end.by_hand[0].split(" ")[-1] in html
        assert [change for change in told if change not in html] == []
        assert {line.split(":")[0] for line in step_lines(campaign, phrases)} == told.keys()
        assert charts_of(campaign, rows, source="", phrases=phrases).keys() == {"race"}


def test_what_gave_other_answers_is_told_once(ended: tuple[TuneOutcome, Campaign]) -> None:
    _, campaign = ended
    first = campaign.placements[0]

    def wrong(name: str) -> PlacementRecord:
        return replace(
            first, name=name, quality=QualityRecord(verdict="degraded", reference=first.name, divergence=9.0)
        )

    half, other = "scripted/npu:wrong=1", "scripted/cpu"
    campaign = replace(campaign, placements=(*campaign.placements, wrong(half), wrong(f"{half}+{other}")))
    assert [step.change for step in steps(campaign) if step.result == "wrong"] == [f"{half}+{other}"]


def race_of(*runs: tuple[str, int, float | None], placements: tuple[PlacementRecord, ...] = ()) -> Campaign:
    """`runs`: a placement, its round and its seconds, None where it failed."""
    return Campaign(
        id=1,
        started="2026-11-30T10:00:00+00:00",
        status="finished",
        source=TUNE_SOURCE,
        version="",
        board={},
        plan={},
        runs=tuple(
            Run(
                placement=name,
                round=number,
                outcome="failed" if seconds is None else "finished",
                started_ns=0,
                finished_ns=round((seconds or 0) * 1e9),
                samples=(
                    ()
                    if seconds is None
                    else (Sample(test=Test(kind="pg"), started_ns=0, finished_ns=round(seconds * 1e9)),)
                ),
            )
            for name, number, seconds in runs
        ),
        placements=placements,
    )


def test_a_stop_and_a_crash_of_the_best_settings_are_no_result() -> None:
    old, new = "scripted/cpu", "scripted/cpu:decode=90"
    race = race_of((old, 1, 2.0), (new, 1, 2.0), (new, 2, None), (new, 2, 1.0), (old, 2, 2.0), (old, 3, None))
    cut = replace(race.runs[2], failure=Failure(kind="interrupted", message="stopped"))
    race = replace(race, runs=(*race.runs[:2], cut, *race.runs[3:], replace(race.runs[1], round=3)))
    (step,) = steps(race)
    assert (step.challenger, step.gains, step.gain, step.result) == (new, (1.0, 2.0), 1.5, "dropped")


def test_a_comparison_of_answers_that_crashed_is_a_failure() -> None:
    record = PlacementRecord(
        name="scripted/cpu:wrong=1",
        engine="scripted",
        build="",
        build_version="",
        unit="cpu",
        model={},
        settings={},
        must_match={},
        quality=QualityRecord(verdict="unknown", reference="scripted/cpu", reasons=("died",)),
    )
    (step,) = steps(race_of(placements=(record,)))
    assert (step.challenger, step.result) == (record.name, "failed")


def test_an_end_that_is_none_is_not_told(ended: tuple[TuneOutcome, Campaign]) -> None:
    """Of a tune that was stopped, and of an import by somebody else."""
    outcome, campaign = ended
    for end in (None, 3, {}, {"best": "x"}, outcome.end.to_json() | {"ratio": "1.5"}):
        stopped = replace(campaign, plan={**campaign.plan, "end": end}, status="interrupted")
        assert end_of(stopped) is None
        assert verdict_sentence(stopped) == "The tune has not ended: there is no result yet."
        assert steps(stopped)


def test_each_engine_makes_its_own_command_line(configuration: Configuration, tiny: Path) -> None:
    board, file = replace(read_board(), big_cpus=(0,)), read_model_file(tiny, configuration.cache)
    spec = parse_placement("llama.cpp/cpu:mask=0,tb=3,ub=128,ctk=q8_0,fa=on")
    placement = place(spec, {}, Need(), [file], board, configuration)
    flags = f"--model {tiny} --ctx-size 2048 --parallel 1 --threads 1 --threads-batch 3 --batch-size 2048"
    more = "--ubatch-size 128 --cache-type-k q8_0 --cache-type-v f16 --flash-attn on"
    line = engine("llama.cpp", configuration).by_hand(placement)  # type: ignore[attr-defined] # its own
    assert line.startswith(f"taskset -c 0 llama-server --jinja {flags} {more}")

    def other(where: str, *options: tuple[str, str]) -> Placement:
        build = replace(placement.build, where=where)
        return replace(placement, build=build, settings=replace(placement.settings, options=options))

    line = IkLlamaCpp(configuration).by_hand(other("/ik/llama-server", ("rtr", "on")))
    words = "--jinja --no-context-shift --run-time-repack --model"
    assert line.startswith(f"taskset -c 0 /ik/llama-server {words} {tiny} ")
    assert more in line
    rk3588 = RkLlamaCpp(configuration, lambda: replace(board, chip="RK3588"))
    line = rk3588.by_hand(other("/rk/llama-server", ("cores", "0+1"), ("repack", "off")))
    environment = "RKNPU_DEVICE=RK3588 RKNPU_HYBRID=W8A8_HADAMARD RKNPU_CORES=0,1"
    assert line.startswith(f"{environment} taskset -c 0 /rk/llama-server --jinja {flags} {more}")
    assert line.endswith(" --no-repack")


def test_the_next_model_takes_at_most_half_of_the_runs(
    configuration: Configuration, tiny: Path, computed_times: None
) -> None:
    """What the first tune on this board found is where the second begins."""
    choices = "decode:66|decode:50|decode:90;prefill:810|prefill:1500|prefill:700;speedup:0.8|speedup:1.2|speedup:0.9"
    what = TuneSetup(model=tiny, prompt_tokens=64, generated_tokens=8, placements=(f"scripted/cpu:vary={choices}",))
    with Store.open(configuration.results_database) as store:
        outcomes = [asyncio.run(run_tune(what, store, configuration, str)) for _ in range(2)]
        campaigns = [store.campaign(outcome.campaign) for outcome in outcomes]
        numbers = [campaign.id for campaign in campaigns]
        board = str(campaigns[0].board["description"])
        assert known_gains(store, numbers[0], board) == {}
        assert known_gains(store, numbers[1], "another board") == {}
        assert known_gains(store, numbers[1], board)["scripted/cpu", False, "speedup=1.2"] > 0.1
        other_workload = session._begin(replace(what, prompt_tokens=65), store, read_board())
        assert known_gains(store, other_workload, board) == {}
    assert outcomes[0].best.name == outcomes[1].best.name
    assert outcomes[1].gained
    race_runs = [
        sum(run.round < (outcome.end.fresh_from or 0) for run in campaign.runs)
        for outcome, campaign in zip(outcomes, campaigns, strict=True)
    ]
    assert race_runs[1] <= race_runs[0] / 2


def test_a_gain_is_that_of_its_units_and_half() -> None:
    handover = "scripted/npu+scripted/cpu"
    step = TuneStep(challenger="scripted/npu:t=4+scripted/cpu", incumbent=handover, change="t=4", result="kept")
    assert changed_half(step) == (handover, True)
    knobs = [Knob(variable("threads", 0.1, {"t": "4"}), of_prefill) for of_prefill in (False, True)]
    gains = {(*changed_half(step), step.change): 0.3}
    for placement, known in ((handover, [False, True]), ("scripted/cpu", [False, False])):
        assert [v.choices[1].known for v in with_priors(knobs, placement, gains)] == known


def test_a_tune_without_anything_to_change_has_a_report(
    configuration: Configuration, tiny: Path, tmp_path: Path
) -> None:
    what = TuneSetup(model=tiny, prompt_tokens=64, generated_tokens=8, placements=("scripted/cpu",))
    with Store.open(configuration.results_database) as store:
        campaign = store.campaign(asyncio.run(run_tune(what, store, configuration, str)).campaign)
    assert campaign.runs == ()
    (page,) = write_pictures(campaign, tmp_path)
    assert "the defaults are as good: scripted/cpu" in page.read_text(encoding="utf-8")
