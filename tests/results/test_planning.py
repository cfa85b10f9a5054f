"""From campaigns to plans: only what answers as the reference does, and never on worse grounds than before."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilithon.board.snapshot import Board, read_board
from trilithon.measure.records import Campaign, Failure, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.results.planning import plan_campaign
from trilithon.results.plans import Plan, keep_plan, plans_path, read_plan
from trilithon.settings import Configuration, load_configuration

SHA256 = "a" * 64
CPU, SMALL, NAMED = "llama.cpp/cpu", "llama.cpp/cpu:t=1", "scripted/cpu:decode=500"
HANDOVER, GONE = "scripted/npu+llama.cpp/cpu", "nothing@here/npu"
PLACEMENTS = (CPU, SMALL, NAMED, HANDOVER, GONE)
VERDICTS = ("reference", "same", "degraded", "broken", "unknown", None)
TESTS = (Test(kind="tg", generated_tokens=128), Test(kind="pp", prompt_tokens=512), Test(kind="cold"))
CRASH = Failure(kind="died", message="died", cause="segmentation fault (SIGSEGV)")


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return load_configuration({"TRILITHON_DATA": str(tmp_path / "data"), "TRILITHON_CACHE": str(tmp_path / "cache")})


@pytest.fixture(scope="module")
def board() -> Board:
    return read_board()


def record(name: str, verdict: str | None, sha256: str = SHA256) -> PlacementRecord:
    *prefill, decode = (half.split("/")[0].split("@")[0] for half in name.split("+"))
    return PlacementRecord(
        name=name,
        engine=decode,
        build="b",
        build_version="1",
        unit="cpu",
        model={"name": "Tiny", "sha256": sha256},
        settings={},
        must_match={"prefill build": f"{prefill[0]} 1"} if prefill else {},
        quality=None if verdict is None else QualityRecord(verdict=verdict, reference=CPU),  # type: ignore[arg-type]
    )


def sample(test: Test, rate: float) -> Sample:
    spent = round(1000 / rate * 1e9)
    if test.kind == "cold":
        return Sample(test=test, started_ns=0, finished_ns=1, marks={"load_warm_ns": spent})
    if test.kind == "pp":
        return Sample(test=test, started_ns=0, finished_ns=1, prompt_evaluated=1000, prompt_ns=spent)
    return Sample(test=test, started_ns=0, finished_ns=1, decode_steps=1000, decode_ns=spent)


def runs(name: str, rate: float, rounds: int, tests: Sequence[Test] = TESTS[:1], failed: int = 0) -> list[Run]:
    """The last `failed` rounds fail."""
    return [
        Run(
            placement=name,
            round=number,
            outcome="failed" if number >= rounds - failed else "finished",
            started_ns=0,
            finished_ns=1,
            samples=tuple(sample(test, rate * (1 + number % 3 / 1000)) for test in tests),
            failure=CRASH if number >= rounds - failed else None,
        )
        for number in range(rounds)
    ]


def campaign(records: Sequence[PlacementRecord], found: Sequence[Run], number: int = 1) -> Campaign:
    return Campaign(
        id=number,
        started="2026-11-22T13:00:00Z",
        status="finished",
        source="trilithon",
        version="0.1.0",
        board={},
        plan={},
        placements=tuple(records),
        runs=tuple(found),
    )


def measured(
    fast: str, slow: str, rounds: int, *, number: int = 1, verdict: str = "same", kind: int = 0, slow_is: str = "same"
) -> Campaign:
    tests = TESTS[kind : kind + 1]
    found = runs(fast, 90, rounds, tests) + runs(slow, 20, rounds, tests)
    return campaign([record(fast, verdict), record(slow, slow_is)], found, number)


def planned(found: Campaign, board: Board, configuration: Configuration) -> tuple[Plan | None, list[str]]:
    lines = plan_campaign(found, lambda _: "tiny model", board, configuration)
    return read_plan(configuration.data, SHA256, board.identity()), lines


outcomes = st.lists(
    st.tuples(
        st.sampled_from(PLACEMENTS),
        st.sampled_from(VERDICTS),
        st.floats(1, 1000),
        st.integers(0, 8),
        st.integers(0, 8),
        st.sets(st.sampled_from(TESTS)),
    ),
    unique_by=lambda outcome: outcome[0],
    max_size=len(PLACEMENTS),
)


@pytest.mark.slow
@given(outcomes)
def test_the_plan_is_the_reference_or_same_or_there_is_none(found: list[tuple]) -> None:
    """Whatever mix of placements, verdicts and rounds a campaign ends with."""
    board = read_board()
    records = [record(name, verdict) for name, verdict, *_ in found]
    all_runs = [
        run
        for name, _, rate, rounds, failed, tests in found
        for run in runs(name, rate, rounds, sorted(tests, key=TESTS.index), failed)
    ]
    with tempfile.TemporaryDirectory() as folder:
        configuration = load_configuration({"TRILITHON_DATA": folder, "TRILITHON_CACHE": folder})
        plan, _ = planned(campaign(records, all_runs), board, configuration)
    if plan is not None:
        assert plan.placement in (CPU, SMALL)
        assert {name: verdict for name, verdict, *_ in found}[plan.placement] in ("reference", "same")
        assert plan.rounds > 0


campaigns = st.lists(
    st.tuples(st.permutations((CPU, SMALL)), st.sampled_from(VERDICTS), st.integers(1, 8)), min_size=1, max_size=4
)


@pytest.mark.slow
@settings(max_examples=25)
@given(campaigns)
def test_no_later_campaign_puts_a_plan_on_worse_grounds(told: list[tuple]) -> None:
    """Unless it knows that the plan's answers are wrong; then that plan is gone."""
    board = read_board()
    with tempfile.TemporaryDirectory() as folder:
        configuration = load_configuration({"TRILITHON_DATA": folder, "TRILITHON_CACHE": folder})
        before: Plan | None = None
        for number, ((fast, slow), verdict, rounds) in enumerate(told, 1):
            found = measured(fast, slow, rounds, number=number, verdict=verdict)  # type: ignore[arg-type]
            plan, _ = planned(found, board, configuration)
            wrong = fast if verdict in ("degraded", "broken") else None
            assert plan is None or plan.placement != wrong
            if before is not None and before.placement != wrong:
                assert plan is not None
                assert (plan.compared, plan.rounds) >= (before.compared, before.rounds)
            before = plan


def test_a_plan_tells_its_grounds(board: Board, configuration: Configuration) -> None:
    plan, lines = planned(measured(SMALL, CPU, 7), board, configuration)
    assert plan is not None
    assert (plan.placement, plan.campaign, plan.rounds, plan.compared, plan.decided_by, plan.model) == (
        SMALL,
        1,
        7,
        True,
        "tg",
        "tiny model",
    )
    assert plan.fingerprint["kernel"] == board.kernel
    assert lines == [f"trilithon serve now runs it on {SMALL} (undo: trilithon plan rm 'tiny model')"]


@pytest.mark.parametrize("slow_is", ["unknown", "degraded"])
def test_without_a_sound_placement_there_is_no_plan(slow_is: str, board: Board, configuration: Configuration) -> None:
    plan, lines = planned(measured(NAMED, CPU, 1, slow_is=slow_is), board, configuration)
    assert plan is None
    (line,) = lines
    assert line == (
        f"no plan is made for {NAMED}: its engine is used only where it is named; to serve it there all the same: "
        f"trilithon plan set 'tiny model' {NAMED}"
    )
    assert not plans_path(configuration.data).exists()


def test_the_reason_why_answers_could_not_be_checked_is_told(board: Board, configuration: Configuration) -> None:
    blind = QualityRecord(verdict="unknown", reference=CPU, reasons=("this engine gives no log-probabilities",))
    found = measured(SMALL, CPU, 5, slow_is="unknown")
    found = replace(found, placements=(replace(found.placements[0], quality=blind), found.placements[1]))
    plan, (line,) = planned(found, board, configuration)
    assert plan is None
    assert "its answers could not be checked; this engine gives no log-probabilities; to serve it there" in line


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        (measured(CPU, SMALL, 1, number=2), "this campaign has too few rounds to compare placements"),
        (measured(CPU, SMALL, 6, number=2), "campaign 1, 7 rounds has more than this one's 6"),
        (measured(CPU, SMALL, 7, number=2, kind=1), "measured tg, which says more than pp"),
        (measured(CPU, SMALL, 7, number=2, kind=2), "measured tg, which says more than cold"),
    ],
)
def test_worse_grounds_do_not_replace_a_plan(
    later: Campaign, reason: str, board: Board, configuration: Configuration
) -> None:
    before, _ = planned(measured(SMALL, CPU, 7), board, configuration)
    plan, (line,) = planned(later, board, configuration)
    assert plan == before
    assert line.startswith(f"trilithon serve still runs it on {SMALL}: ")
    assert reason in line
    assert line.endswith(f"; to run it on {CPU} instead: trilithon plan set 'tiny model' {CPU}")


def test_grounds_as_good_replace_a_plan_and_say_how_to_go_back(board: Board, configuration: Configuration) -> None:
    planned(measured(SMALL, CPU, 5), board, configuration)
    plan, (line,) = planned(measured(CPU, SMALL, 5, number=2), board, configuration)
    assert plan is not None
    assert (plan.placement, plan.campaign) == (CPU, 2)
    assert line == (
        f"trilithon serve now runs it on {CPU}, no longer on {SMALL} (undo: trilithon plan rm 'tiny model', or back to "
        f"that: trilithon plan set 'tiny model' {SMALL})"
    )


def test_a_stale_plan_yields_to_fewer_rounds_that_compare(board: Board, configuration: Configuration) -> None:
    planned(measured(SMALL, CPU, 9), board, configuration)
    newer = replace(board, kernel="9.9.9")
    few, _ = planned(measured(CPU, SMALL, 4, number=2), newer, configuration)
    assert few is not None
    assert few.placement == SMALL
    plan, _ = planned(measured(CPU, SMALL, 5, number=3), newer, configuration)
    assert plan is not None
    assert (plan.placement, plan.fingerprint["kernel"]) == (CPU, "9.9.9")


def test_a_plan_of_version_0_1_yields_to_what_compares(board: Board, configuration: Configuration) -> None:
    old = Plan(sha256=SHA256, placement=NAMED, board=board.identity(), campaign=1, sentence="")
    keep_plan(configuration.data, old)
    entries = json.loads(plans_path(configuration.data).read_text())
    names = ("sha256", "placement", "board", "campaign", "sentence")
    plans_path(configuration.data).write_text(json.dumps([{name: entries[0][name] for name in names}]))
    assert planned(measured(CPU, SMALL, 2, number=2), board, configuration)[0] == old
    plan, _ = planned(measured(CPU, SMALL, 5, number=3), board, configuration)
    assert plan is not None
    assert plan.placement == CPU


@pytest.mark.parametrize("verdict", ["degraded", "broken"])
def test_a_plan_whose_answers_are_found_wrong_goes(verdict: str, board: Board, configuration: Configuration) -> None:
    planned(measured(SMALL, CPU, 9), board, configuration)
    plan, lines = planned(measured(SMALL, CPU, 1, number=2, verdict=verdict), board, configuration)
    assert plan is not None
    assert plan.placement == CPU
    assert lines[0].startswith(f"trilithon serve now runs it on {CPU}, no longer on {SMALL}")
    planned(measured(SMALL, CPU, 9, number=3), board, configuration)
    wrong = measured(SMALL, CPU, 1, number=4, verdict=verdict, slow_is="unknown")
    plan, lines = planned(wrong, board, configuration)
    assert plan is None
    assert lines[-1] == f"trilithon serve no longer runs it on {SMALL}: its answers are {verdict}"


def test_what_the_owner_set_by_hand_stays(board: Board, configuration: Configuration) -> None:
    owners = Plan(sha256=SHA256, placement=NAMED, board=board.identity(), campaign=0, sentence="", by_hand=True)
    keep_plan(configuration.data, owners)
    plan, (line,) = planned(measured(SMALL, CPU, 9), board, configuration)
    assert plan == owners
    assert line.startswith(f"trilithon serve still runs it on {NAMED}: that was set by hand; to run it on {SMALL}")
    plan, lines = planned(measured(NAMED, CPU, 9, verdict="broken", slow_is="unknown"), board, configuration)
    assert plan == owners
    assert lines[-1].startswith(f"trilithon serve runs it on {NAMED}, set by hand, although its answers are broken")


def test_what_cannot_run_here_any_more_is_not_planned(board: Board, configuration: Configuration) -> None:
    plan, (line,) = planned(measured(GONE, CPU, 9), board, configuration)
    assert plan is None
    assert f"no plan is made for {GONE}: it cannot run here any more" in line


def test_a_campaign_leaves_the_plans_of_other_files_alone(board: Board, configuration: Configuration) -> None:
    other = Plan(sha256="b" * 64, placement=SMALL, board=board.identity(), campaign=1, sentence="")
    keep_plan(configuration.data, other)
    planned(measured(SMALL, CPU, 1, verdict="broken"), board, configuration)
    assert read_plan(configuration.data, "b" * 64, board.identity()) == other
