"""Whole tunes with the scripted engine, which is slower, faster, wrong and dying on demand."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from board_tree import plant_tree

from trilithon.board.snapshot import read_board
from trilithon.engines.base import Placement
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.engines.variables import Choice, Variable
from trilithon.errors import PlacementError, TrilithonError, UserError
from trilithon.files import file_lock
from trilithon.measure.records import Campaign, Run, Sample, Test
from trilithon.results.store.database import Store
from trilithon.results.tuned.steps import end_sentence
from trilithon.settings import Configuration
from trilithon.tune import runs, session
from trilithon.tune.race import Race
from trilithon.tune.runs import MOST_THROTTLED, TuneRuns
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
    assert "fresh rounds" in end_sentence(outcome.end)
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
    assert end_sentence(outcome.end) == "the defaults are as good: scripted/cpu"


@pytest.mark.slow  # two readings of answers
def test_a_faster_placement_on_the_same_unit_with_wrong_answers_never_runs(
    configuration: Configuration, tiny: Path
) -> None:
    right, wrong = "scripted/cpu:prefill=900,decode=90", "scripted/cpu:prefill=9000,decode=900,wrong=1"
    outcome = tuned(setup(tiny, right, wrong), configuration)
    assert outcome.best.name == right
    with Store.open(configuration.results_database) as store:
        assert {run.placement for run in store.campaign(outcome.campaign).runs} <= {right}


# Published of the RK3588, as ratios: the NPU reads a prompt 3 times as fast as the CPU (8-bit, 9B model), and the CPU
# generates 3.3 times as fast as the NPU (E2B with decode routed to it: 4.3 and about 14); all eight cores generate more
# slowly than the four big ones; the 4-bit pipeline is faster still and garbage. Rates are ten
# times as high, so that answers are compared soon.
CPU = "scripted/cpu:prefill=10000,decode=500,vary=mask:4-7&t:4&speedup:1.5|mask:0-7&t:8&speedup:0.7"
NPU = "scripted/npu:prefill=20000,decode=150,vary=speedup:1.5&wrong:0.0001|speedup:2.5&wrong:1"


@pytest.mark.slow  # five readings of answers
@pytest.mark.usefixtures("computed_times")
def test_an_rk3588_is_tuned_to_a_handover_on_the_big_cores_in_eight_bits(
    configuration: Configuration, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, launch = read_board(plant_tree(tmp_path, "rk3588_vendor")), ScriptedEngine.launch
    monkeypatch.setattr(session, "read_board", lambda: board)
    # The cores are those of the tree: here the child runs on what there is.
    monkeypatch.setattr(ScriptedEngine, "launch", lambda *a: replace(launch(*a), cpus=None))
    what = TuneSetup(model=tiny, prompt_tokens=1024, generated_tokens=64, placements=(CPU, NPU))
    outcome = tuned(what, configuration)
    assert outcome.best.prefill is not None
    options = dict(outcome.best.prefill.settings.options)
    assert (options["speedup"], options["wrong"]) == ("1.5", "0.0001")
    assert (outcome.best.settings.cpus, outcome.best.settings.threads) == ((4, 5, 6, 7), 4)
    assert outcome.conclusion is not None
    assert outcome.conclusion.low > 1.5
    assert f"{outcome.conclusion.ratio:.2f} times as fast as {CPU}" in end_sentence(outcome.end)
    with Store.open(configuration.results_database) as store:
        campaign = store.campaign(outcome.campaign)
    assert not [run for run in campaign.runs if "wrong=1" in run.placement]
    divergences = {p.name: p.quality.divergence for p in campaign.placements if p.quality is not None}
    assert max(divergence or 0 for name, divergence in divergences.items() if "wrong=1" in name) > 1


def test_two_tunes_refuse_each_other(configuration: Configuration, tiny: Path) -> None:
    with file_lock(configuration.data / "tune.lock"), pytest.raises(UserError, match="another tune"):
        tuned(setup(tiny, "scripted/cpu"), configuration)


def test_a_server_is_not_tuned(configuration: Configuration, tiny: Path) -> None:
    with pytest.raises(PlacementError, match="a server at an address can be measured, and not served from"):
        tuned(setup(tiny, "http://h:1"), configuration)


def test_a_tune_that_cannot_begin_leaves_nothing_to_resume(
    configuration: Configuration, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "no.gguf").write_text("hello")
    for what in (setup(tmp_path / "no.gguf"), setup(tiny, "rkllm/npu")):
        with pytest.raises(TrilithonError):
            tuned(what, configuration)
    with Store.open(configuration.results_database) as store:
        assert (last_stopped(store), store.campaigns()) == (None, [])


def test_settings_of_the_user_are_not_changed(configuration: Configuration, tiny: Path) -> None:
    fixed = f"scripted/cpu:vary={VARY},decode=70,prefill=700"
    assert tuned(setup(tiny, fixed), configuration).best.name == fixed


def stored_run(placement: str, number: int, seconds: float, *, throttled: bool = False) -> Run:
    end = round(seconds * 1e9)
    return Run(
        placement=placement,
        round=number,
        outcome="finished",
        started_ns=0,
        finished_ns=end,
        samples=(Sample(test=Test(kind="pg", prompt_tokens=64, generated_tokens=8), started_ns=0, finished_ns=end),),
        warnings=("throttled: the clock fell",) if throttled else (),
    )


Resumed = Callable[..., tuple[session._Tune, TuneRuns, list[Placement]]]


@pytest.fixture
def resumed(configuration: Configuration, tiny: Path, tmp_path: Path) -> Resumed:
    """A tune that goes on with these runs, and two placements."""

    def make(*stored: Run) -> tuple[session._Tune, TuneRuns, list[Placement]]:
        what, board = setup(tiny, "scripted/cpu", "scripted/cpu:decode=900"), read_board()
        with Store.open(configuration.results_database) as store:
            number = session._begin(what, store, board)
            known: Campaign = replace(store.campaign(number), runs=stored)
            runs_ = TuneRuns(store, number, known, board, configuration, tmp_path, str, 0.1)
        tune = session._Tune(what, board, configuration, runs_, str)
        return tune, runs_, [tune._placed(parse_placement(text), {}) for text in what.placements]

    return make


def test_a_tune_that_throttling_ended_goes_on(resumed: Resumed) -> None:
    hot = [stored_run("scripted/cpu", number, 1.0, throttled=True) for number in range(1, 4)]
    tune, known, (first, _) = resumed(*hot, stored_run("scripted/cpu", 4, 2.0))
    assert len(hot) == MOST_THROTTLED
    rounds = [asyncio.run(tune._times([first])) for _ in range(4)]
    assert rounds == [None, None, None, [2.0]]
    assert (known.new_runs, known.throttled_runs, known.spent_seconds) == (0, 3, 5.0)


def test_a_fresh_round_that_throttled_is_void(resumed: Resumed) -> None:
    """Only in the second round, which is void, are the defaults faster."""
    stored = []
    for number in range(1, 7):
        stored.append(stored_run("scripted/cpu", number, 0.1 if number == 2 else 2.0, throttled=number == 2))
        stored.append(stored_run("scripted/cpu:decode=900", number, 1.0))
    tune, _, (first, second) = resumed(*stored)
    conclusion = asyncio.run(tune._conclusion(first, second))
    assert (conclusion.rounds, conclusion.low, conclusion.high) == (5, 2.0, 2.0)


def test_a_tune_that_ended_as_its_best_settings_failed_twice_tries_them_again(resumed: Resumed) -> None:
    stored = [replace(stored_run("scripted/cpu", number, 1.0), outcome="failed", samples=()) for number in (1, 2)]
    for number in range(1, 13):
        stored.append(stored_run("scripted/cpu:decode=900", number, 1.0))
        if number > 2:
            stored.append(stored_run("scripted/cpu", number, 2.0))
    tune, known, (first, second) = resumed(*stored)
    choices = (Choice(), Choice(options={"decode": "900"}))
    race = Race([Variable(name="decode", choices=choices, expected_gain=0.7)])
    best = asyncio.run(tune._raced(race, lambda setting: second if setting[0] else first, first))
    assert (best, known.new_runs) == ((1,), 0)


def test_a_choice_that_comes_to_the_reference_is_right(resumed: Resumed) -> None:
    _, known, (first, _) = resumed()
    assert asyncio.run(known.is_right(first, first))


def test_an_imported_tune_does_not_go_on_here(configuration: Configuration, tiny: Path) -> None:
    with Store.open(configuration.results_database) as store:
        number = session._begin(setup(tiny, "scripted/cpu"), store, read_board())
        store.set_status(number, "interrupted")
        assert last_stopped(store) == number
        store.add_once(replace(store.campaign(number), started="2026-11-30T10:00:00+00:00"))
        assert last_stopped(store) == number


def test_workloads() -> None:
    assert parse_workload("rag") == (4096, 128)
    assert parse_workload("300,20") == (300, 20)
    for text in ("talk", "0,3", "3", "3,", "-1,2"):
        with pytest.raises(UserError, match="--workload"):
            parse_workload(text)
    what = TuneSetup(model=Path(os.devnull), prompt_tokens=1, generated_tokens=2, placements=("scripted/cpu",))
    assert TuneSetup.from_json(what.to_json()) == what
