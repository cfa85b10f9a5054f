"""The sensors of a campaign: recorded while it measures, kept with its runs, and of no weight where they fail."""

import asyncio
from pathlib import Path

import pytest

from trilithon.bench import campaign as module
from trilithon.bench.campaign import run_campaign
from trilithon.bench.prepare import prepare
from trilithon.bench.recording import recording_remarks, sensor_log
from trilithon.bench.setup import CampaignSetup
from trilithon.board.sensors.probes import Channel
from trilithon.board.sensors.sampler import Recording, Sampler
from trilithon.board.sensors.sensors import Frame
from trilithon.board.sysfs import Machine
from trilithon.measure.records import Campaign, SensorLog, SensorValues, Test
from trilithon.results.store.database import Store
from trilithon.settings import Configuration


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def settle(*, limit_seconds: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(module, "settle", settle)
    monkeypatch.setattr(module, "measure_bandwidth", lambda _: 1e10)


def measured(folder: Path, model: Path, options: str = "") -> Campaign:
    configuration = Configuration(data=folder / "data", cache=folder / "cache", hang_seconds=20.0)
    plan = CampaignSetup(
        model=model,
        placements=(f"scripted/cpu:prefill=50000,decode=40{options}",),
        tests=(Test(kind="tg", generated_tokens=24),),
        quality=False,
        rounds=2,
    )
    with Store.open(configuration.results_database) as store:
        number = asyncio.run(run_campaign(prepare(plan, configuration), store, lambda _: None))
        return store.campaign(number)


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_the_log_of_a_run_encloses_its_samples_on_the_same_clock(tmp_path: Path, tiny: Path) -> None:
    campaign = measured(tmp_path, tiny)
    assert len(campaign.runs) == 2
    for run in campaign.runs:
        assert run.outcome == "finished"
        log = run.sensor_log
        assert log is not None
        assert run.started_ns <= log.at_ns[0] <= run.samples[0].started_ns
        assert run.samples[-1].finished_ns <= log.at_ns[-1] <= run.finished_ns
        assert len(log.at_ns) >= 3  # 24 tokens at 40 per second, read at 4 Hz
        anonymous = next(sensor for sensor in log.sensors if sensor.name == "anonymous")
        assert anonymous.source == "/proc/meminfo"
        assert {len(sensor.values) for sensor in log.sensors} == {len(log.at_ns)}


@pytest.mark.usefixtures("hurried")
def test_a_failed_run_keeps_its_log(tmp_path: Path, tiny: Path) -> None:
    (first, *_) = measured(tmp_path, tiny, ",crash_after=8").runs
    assert first.outcome == "failed"
    assert first.sensor_log is not None
    assert first.sensor_log.sensors


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_a_machine_without_sensors_measures_all_the_same(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Sampler", lambda: Sampler(Machine(tmp_path / "nothing")))
    (run, _) = measured(tmp_path, tiny).runs
    assert (run.outcome, run.sensor_log) == ("finished", None)


def test_a_recording_becomes_columns() -> None:
    channels = (Channel("temperature", "soc", "/a"), Channel("power", "VDD", "/b, /c"))
    frames = (Frame(5, (41.615000000000002, None)), Frame(7, (42.0, 7.1234567)))
    assert sensor_log(Recording(channels=channels, frames=frames)) == SensorLog(
        at_ns=(5, 7),
        sensors=(
            SensorValues(quantity="temperature", name="soc", unit="celsius", source="/a", values=(41.615, 42.0)),
            SensorValues(quantity="power", name="VDD", unit="watts", source="/b, /c", values=(None, 7.123457)),
        ),
    )
    assert sensor_log(Recording(channels=channels)) is None
    assert sensor_log(Recording(frames=(Frame(5, ()),))) is None


def test_a_file_that_hung_is_a_remark() -> None:
    assert recording_remarks(Recording()) == ()
    (remark,) = recording_remarks(Recording(hung="/sys/x"))
    assert remark == "sensors not read to the end: /sys/x did not answer"
