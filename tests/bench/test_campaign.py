import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from standin_servers import StandInServer, serving

from trilithon.bench import campaign as module
from trilithon.bench import progress as tally
from trilithon.bench.campaign import run_campaign
from trilithon.bench.prepare import Prepared, prepare, record_of
from trilithon.bench.progress import CampaignStep
from trilithon.bench.setup import CampaignSetup
from trilithon.board.sensors.clock_speed import MeasuredClock
from trilithon.errors import PlacementError, UserError
from trilithon.measure.questions import QuestionSet, SetQuestion
from trilithon.measure.records import Campaign, Run, Test
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.results.store.database import Store
from trilithon.settings import Configuration

PP = Test(kind="pp", prompt_tokens=16)
TG = Test(kind="tg", generated_tokens=8)
FAST = "prefill=50000,decode=5000"
GOOD = f"scripted/cpu:{FAST}"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for an idle machine and no second of memory bandwidth: neither is what these tests are about."""

    async def settle(*, limit_seconds: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(module, "settle", settle)
    monkeypatch.setattr(module, "measure_bandwidth", lambda _: 1e10)


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache", start_seconds=60.0, hang_seconds=5.0)


class Bench:
    def __init__(self, configuration: Configuration, model: Path):
        self.configuration = configuration
        self.model = model
        self.steps: list[CampaignStep] = []

    def plan(self, *placements: str, **more: object) -> CampaignSetup:
        words: dict[str, object] = {"model": self.model, "tests": (PP, TG), "quality": False, "rounds": 1, **more}
        return CampaignSetup(placements=placements, **words)  # type: ignore[arg-type]

    def prepared(self, *placements: str, **more: object) -> Prepared:
        return prepare(self.plan(*placements, **more), self.configuration)

    def __call__(self, *placements: str, resume: int | None = None, **more: object) -> Campaign:
        prepared = self.prepared(*placements, **more)
        with self.store() as store:
            return store.campaign(asyncio.run(run_campaign(prepared, store, self.steps.append, resume)))

    def store(self) -> Store:
        return Store.open(self.configuration.results_database)


@pytest.fixture
def bench(configuration: Configuration, tiny: Path) -> Bench:
    return Bench(configuration, tiny)


def runs_of(campaign: Campaign, placement: str) -> list[Run]:
    return [run for run in campaign.runs if run.placement == placement]


def processes_of(folder_part: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if folder_part in words:
                found.append(words)
    return found


def test_a_clock_far_from_its_claim_is_remarked_on_runs_of_the_cpu(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = (MeasuredClock(cpus=(0, 1), measured_hz=0.7e9, claimed_hz=2.352e9),)
    measured: list[int] = []

    def measure_clocks(clusters: object) -> tuple[MeasuredClock, ...]:
        measured.append(1)
        return clocks

    monkeypatch.setattr(module, "measure_clocks", measure_clocks)
    campaign = bench(GOOD, f"scripted/gpu:{FAST}", rounds=2)
    words = "cpu0-1 measured 0.70 GHz, claimed 2.35 GHz (-70%)"
    assert [words in run.remarks for run in campaign.runs] == [run.placement == GOOD for run in campaign.runs]
    assert len(measured) == 1


def test_a_machine_whose_clocks_cannot_be_measured_is_measured_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(clusters: object) -> tuple[MeasuredClock, ...]:
        raise UserError("clocks cannot be measured: Operation not permitted")

    monkeypatch.setattr(module, "measure_clocks", refuse)
    assert [run.outcome for run in bench(GOOD).runs] == ["finished"]
    assert "clocks cannot be measured: Operation not permitted" in [step.text for step in bench.steps]


@pytest.mark.slow
def test_a_crash_is_a_failed_run_and_the_others_go_on(bench: Bench) -> None:
    bad = f"scripted/gpu:{FAST},crash_after=3"
    campaign = bench(GOOD, bad, rounds=3)
    assert campaign.status == "finished"
    assert [run.outcome for run in runs_of(campaign, GOOD)] == ["finished"] * 3
    assert all([sample.test for sample in run.samples] == [PP, TG] for run in runs_of(campaign, GOOD))
    failed, again, skipped = sorted(runs_of(campaign, bad), key=lambda run: run.round)
    assert (failed.outcome, again.outcome, skipped.outcome) == ("failed", "failed", "skipped")
    assert failed.failure is not None
    assert failed.failure.kind == "died"
    assert "SIGSEGV" in failed.failure.cause
    assert skipped.remarks == ("failed 2 times in a row",)


@pytest.mark.parametrize(
    ("fault", "kind", "cause"),
    [
        pytest.param("hang_after=2", "hung", "", marks=pytest.mark.slow),
        # "Killed by the kernel" where that killed another process meanwhile; the words are in both causes.
        ("oom_after=2", "died", "out of memory"),
        ("exit_after=2,exit_code=7", "died", "7"),
        ("refuse_start=no licence", "start failed", "no licence"),
        ("refuse_requests=too long", "refused", "too long"),
        ("error_after=2", "refused", ""),
    ],
)
def test_a_fault_becomes_a_failed_run_with_its_cause(bench: Bench, fault: str, kind: str, cause: str) -> None:
    (run,) = bench(f"{GOOD},{fault}").runs
    assert run.outcome == "failed"
    assert run.failure is not None
    assert run.failure.kind == kind
    told = " ".join([run.failure.cause, run.failure.message, *run.failure.last_words])
    assert cause in told
    assert "\n" not in run.failure.message


@pytest.mark.parametrize("fault", ["refuse_start=no licence", "crash_after=2"])
def test_what_a_failed_child_used_is_not_other_programs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    own: list[float] = []

    def note(*_: object, own_cpu_seconds: float, **__: object) -> tuple[str, ...]:
        own.append(own_cpu_seconds)
        return ()

    monkeypatch.setattr(module, "warnings_between", note)
    before = os.times()
    bench(f"{GOOD},{fault}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used > 0
    assert own[0] >= used - 1e-6


def test_samples_before_a_fault_are_kept(bench: Bench) -> None:
    # The warm-up generates 4 tokens, pp 1 and tg 9.
    (run,) = bench(f"{GOOD},crash_after=10").runs
    assert run.outcome == "failed"
    assert [sample.test for sample in run.samples] == [PP]


def test_one_failure_is_forgiven(bench: Bench, tmp_path: Path) -> None:
    campaign = bench(f"{GOOD},crash_after=2,flaky=1,flaky_file={tmp_path / 'starts'}", rounds=3)
    assert [run.outcome for run in campaign.runs] == ["failed", "finished", "finished"]


@pytest.mark.slow
def test_rounds_are_interleaved_and_every_other_one_runs_backwards(bench: Bench) -> None:
    other = f"scripted/gpu:{FAST}"
    campaign = bench(GOOD, other, rounds=3)
    order = sorted(campaign.runs, key=lambda run: run.started_ns)
    assert [(run.placement, run.round) for run in order] == [
        (GOOD, 0),
        (other, 0),
        (other, 1),
        (GOOD, 1),
        (GOOD, 2),
        (other, 2),
    ]
    assert all(earlier.finished_ns <= later.started_ns for earlier, later in pairwise(order))


@pytest.mark.parametrize("rounds", [None, 1000])
def test_the_budget_ends_it_but_never_before_the_first_round(bench: Bench, rounds: int | None) -> None:
    other = f"scripted/gpu:{FAST}"
    campaign = bench(GOOD, other, rounds=rounds, budget_seconds=0.01)
    assert campaign.status == "finished"
    assert sorted((run.placement, run.round) for run in campaign.runs) == [(GOOD, 0), (other, 0)]


@pytest.mark.slow
def test_a_placement_that_was_given_up_does_not_hold_up_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "narrow_enough", lambda values: len(values) >= 5)
    campaign = bench(GOOD, f"{GOOD},crash_after=10", rounds=None, budget_seconds=60.0, tests=(PP, TG))
    assert len(runs_of(campaign, GOOD)) == 5


def test_what_is_being_done_is_told(bench: Bench) -> None:
    bench(GOOD, rounds=2)
    assert bench.steps[0].remaining_seconds is None
    assert {step.runs_planned for step in bench.steps} == {2}
    assert [step.runs_done for step in bench.steps] == sorted(step.runs_done for step in bench.steps)
    last = bench.steps[-1]
    assert last.remaining_seconds is not None
    assert last.remaining_seconds > 0
    assert f"{GOOD}: tg8" in [step.text for step in bench.steps]


def test_a_placement_is_recorded_with_what_must_match(bench: Bench) -> None:
    (placement,) = bench(GOOD).placements
    assert placement.model["sha256"] == placement.must_match["file"]
    assert len(placement.must_match["file"]) == 64
    assert {"board", "kernel", "build", "file", "settings"} <= placement.must_match.keys()
    assert placement.bandwidth_bytes_per_second == 1e10


def test_the_log_of_the_child_is_kept(bench: Bench) -> None:
    (run,) = bench("llama.cpp/cpu:t=1").runs
    assert run.outcome == "finished"
    assert "llama" in run.log or "load" in run.log


def cancelled_at(
    bench: Bench, moment: Callable[[CampaignStep], bool], *placements: str, seconds: float = 0.05, **more: object
) -> int:
    """Cancel a campaign so long after `moment` comes; returns its number."""
    prepared = bench.prepared(*placements, **more)

    async def work(store: Store) -> None:
        loop = asyncio.get_running_loop()

        def observe(step: CampaignStep) -> None:
            if moment(step):
                loop.call_later(seconds, task.cancel)

        task = loop.create_task(run_campaign(prepared, store, observe))
        with pytest.raises(asyncio.CancelledError):
            await task

    with bench.store() as store:
        asyncio.run(work(store))
        (summary,) = store.campaigns()
        assert summary.status == "interrupted"
        assert store.last_interrupted() == summary.id
        return summary.id


@pytest.mark.slow
@pytest.mark.parametrize("words", ["loading", "tg8", "quality"])
def test_cancelled_it_leaves_nothing_behind_and_can_go_on(bench: Bench, words: str) -> None:
    slow = "scripted/cpu:prefill=50000,decode=50,load=0.2"
    more: dict[str, object] = {"rounds": 2, "quality": words == "quality"}
    number = cancelled_at(bench, lambda step: words in step.text, slow, **more)
    assert processes_of(str(bench.model)) == []
    campaign = bench(slow, resume=number, **more)
    assert campaign.status == "finished"
    finished = [run.round for run in campaign.runs if run.outcome == "finished"]
    assert sorted(finished) == [0, 1]


def test_a_campaign_killed_before_its_placements_were_written_can_go_on(bench: Bench) -> None:
    with bench.store() as store:
        number = store.start_campaign(
            started="2026-01-01T00:00:00+00:00",
            source="trilithon",
            version="0",
            board={},
            plan=bench.plan(GOOD).to_json(),
        )
        store.set_status(number, "interrupted")
    campaign = bench(GOOD, resume=number)
    assert [placement.name for placement in campaign.placements] == [GOOD]
    assert [run.outcome for run in campaign.runs] == ["finished"]


def test_it_does_not_go_on_without_a_placement_that_it_had(bench: Bench) -> None:
    other = f"scripted/gpu:{FAST}"
    number = cancelled_at(bench, lambda step: "tg8" in step.text, GOOD, other, rounds=2)
    with pytest.raises(UserError, match=r"scripted/gpu\S* cannot run here any more; restore it"):
        bench(GOOD, resume=number, rounds=2)


def test_it_does_not_go_on_with_another_file_of_the_same_name(bench: Bench, tmp_path: Path) -> None:
    bench.model = tmp_path / "model.gguf"
    write_tiny_model(bench.model)
    number = cancelled_at(bench, lambda step: "loading" in step.text, GOOD, rounds=2)
    write_tiny_model(bench.model, seed=77)
    with pytest.raises(UserError, match=rf"campaign {number} cannot be resumed.*file .*results rm {number}"):
        bench(GOOD, resume=number, rounds=2)
    with bench.store() as store:
        assert store.campaign(number).status == "interrupted"


@pytest.mark.slow
def test_quality_stands_beside_speed(bench: Bench) -> None:
    wrong = f"scripted/gpu:{FAST},wrong=1"
    campaign = bench(GOOD, wrong, quality=True, tests=(PP,))
    reference, other = (placement.quality for placement in campaign.placements)
    assert reference is not None
    assert reference.reference == GOOD
    assert other is not None
    assert other.verdict == "broken"
    assert other.reference == GOOD


def test_quality_that_cannot_be_read_is_unknown_and_speed_goes_on(bench: Bench) -> None:
    fragile = f"scripted/gpu:{FAST},crash_after=20"
    campaign = bench(GOOD, fragile, quality=True, tests=(PP,))
    quality = {placement.name: placement.quality for placement in campaign.placements}[fragile]
    assert quality is not None
    assert quality.verdict == "unknown"
    assert "SIGSEGV" in quality.reasons[0]
    assert [run.outcome for run in campaign.runs] == ["finished", "finished"]


def test_a_cold_start_has_its_own_figures(bench: Bench) -> None:
    (run,) = bench(GOOD, tests=(Test(kind="cold"),)).runs
    assert run.outcome == "finished", run.failure
    (sample,) = run.samples
    assert {"load_warm_ns", "first_request_ns"} <= sample.marks.keys()


def test_a_test_that_a_placement_cannot_do_costs_the_others_nothing(bench: Bench) -> None:
    long = Test(kind="pp", prompt_tokens=500)
    campaign = bench("scripted/cpu:prefill=50000,decode=5000,c=64", tests=(long, TG), rounds=3)
    assert [run.outcome for run in campaign.runs] == ["finished"] * 3
    assert all([sample.test for sample in run.samples] == [TG] for run in campaign.runs)
    assert all("pp500 not measured" in " ".join(run.remarks) for run in campaign.runs)


def test_where_no_test_can_be_done_the_run_failed(bench: Bench) -> None:
    long = Test(kind="pp", prompt_tokens=500)
    campaign = bench("scripted/cpu:prefill=50000,c=64", tests=(long,), rounds=1)
    (run,) = campaign.runs
    assert run.failure is not None
    assert run.failure.kind == "too long"


def test_a_run_that_was_stopped_keeps_its_log(bench: Bench) -> None:
    number = cancelled_at(bench, lambda step: "tg8" in step.text, "scripted/cpu:prefill=50000,decode=5")
    with bench.store() as store:
        (run,) = store.campaign(number).runs
    assert run.failure is not None
    assert run.failure.kind == "interrupted"
    assert "prompt tokens" in run.log


@pytest.mark.slow
def test_a_reference_that_failed_is_asked_again_on_resume(bench: Bench, tmp_path: Path) -> None:
    flaky = f"scripted/cpu:prefill=50000,decode=50,crash_after=2,flaky=1,flaky_file={tmp_path / 'starts'}"
    number = cancelled_at(bench, lambda step: "tg8" in step.text, flaky, quality=True)
    with bench.store() as store:
        (placement,) = store.campaign(number).placements
    assert placement.quality is not None
    assert placement.quality.verdict == "unknown"
    (placement,) = bench(flaky, resume=number, quality=True).placements
    assert placement.quality is not None
    assert placement.quality.verdict == "reference"


QUESTIONS = QuestionSet(
    name="mine",
    questions=tuple(SetQuestion(name=name, text="How many?", rule="number", expected=408) for name in ("a", "b", "c")),
)


@pytest.mark.slow
def test_questions_are_asked_once_and_only_those_that_are_missing_on_resume(bench: Bench) -> None:
    bad = "scripted/npu:refuse_start=no"
    words = {"questions": QUESTIONS, "rounds": 2}
    number = cancelled_at(bench, lambda step: "question 2" in step.text, f"{GOOD},text=408", bad, seconds=0, **words)
    with bench.store() as store:
        good, _ = store.campaign(number).placements
    assert [answer.question for answer in good.answers] == ["a"]
    campaign = bench(f"{GOOD},text=408", bad, resume=number, **words)
    good, failed = campaign.placements
    assert [(answer.question, answer.verdict) for answer in good.answers] == [(name, "correct") for name in "abc"]
    assert failed.answers == ()
    asked = [step.text for step in bench.steps if "question" in step.text]
    assert [text.rpartition("question ")[2] for text in asked] == ["2 of 3", "3 of 3"]
    plan = bench.plan(GOOD, **words)
    assert CampaignSetup.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_the_context_has_room_for_every_question(bench: Bench, tmp_path: Path) -> None:
    bench.model = write_tiny_model(tmp_path / "wide.gguf", context=16384)
    long = QuestionSet(name="long", questions=(SetQuestion(name="a", text="word " * 2000, max_tokens=3000),))
    (placement,) = bench.prepared(GOOD, questions=long).placements
    assert placement.settings.context >= 2000 + 3000


def test_several_models_take_turns_and_those_of_one_model_share_a_reference(bench: Bench, tmp_path: Path) -> None:
    """A copy stands for another quantisation of the same model; another vocabulary makes another model."""
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(bench.model.read_bytes())
    other = write_tiny_model(tmp_path / "other.gguf")
    name = bench.model.name
    campaign = bench(GOOD, models=(copy, other), rounds=2)
    specs = [f"{GOOD} with {file}" for file in (name, "copy.gguf", "other.gguf")]
    assert [placement.name for placement in campaign.placements] == specs
    assert {placement.spec for placement in campaign.placements} == {GOOD}
    assert [run.placement for run in campaign.runs] == [*specs, *reversed(specs)]
    prepared = bench.prepared(GOOD, models=(copy,))
    first, second = prepared.placements
    assert CampaignSetup.from_json(json.loads(json.dumps(prepared.plan.to_json()))) == prepared.plan
    assert {one.file.path.name for one in prepared.references.values()} <= {name, "copy.gguf"}
    assert prepared.reference_of(first) is prepared.reference_of(second) or first.file.synthetic


def test_a_server_is_asked_for_each_of_several_models(bench: Bench, tmp_path: Path) -> None:
    names = (bench.model.stem, "other")
    other = write_tiny_model(tmp_path / "other.gguf", layers=4)
    with serving(StandInServer("Ollama", models=dict.fromkeys(names, "Q8_0"))) as server:
        prepared = bench.prepared(server.address, models=(other,), name="tiny")
        with pytest.raises(PlacementError, match="several models are found by their names; leave #MODEL out"):
            bench.prepared(f"{server.address}#other", models=(other,))
    assert [dict(one.settings.options)["model"] for one in prepared.placements] == list(names)
    assert [prepared.reference_of(one).file.path.stem for one in prepared.placements] == list(names)
    assert {record_of(one, prepared.board, None).spec for one in prepared.placements} == {server.address}
    with serving(StandInServer("OpenAI API")) as server, pytest.raises(PlacementError, match="one model on the server"):
        bench.prepared(server.address, models=(other,))


def test_a_placement_is_left_out_where_it_runs_only_some_of_the_models(bench: Bench, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf")
    with pytest.raises(PlacementError, match="unknown engine vllm"):
        bench.prepared("vllm/cpu", GOOD, models=(other,))
    twin = tmp_path / "folder" / bench.model.name
    twin.parent.mkdir()
    twin.write_bytes(other.read_bytes())
    with pytest.raises(PlacementError, match="a model is named twice"):
        bench.prepared(GOOD, models=(twin,))
