import asyncio
import fcntl
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.engines.base import Device, Engine, FallbackStep, Launch, Placement, Settings
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.errors import ChildDied, RunError, StartError
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.runtime.fallback import store as footholds
from trilithon.runtime.fallback.search import Fallback, FallbackProbe, find_fallback, lower, probe
from trilithon.runtime.fallback.store import FailedAttempt, forget, known_of, recall, remember
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

FAST = (("prefill", "50000"), ("decode", "5000"))
GPU = Device(id="Pretend0", unit="gpu", name="Pretend GPU", driver="pretend 1.0")
NAMES = ("less one", "less two", "less three")


class Fragile(ScriptedEngine):
    """A pretend GPU: each rung of its ladder takes the next fault away."""

    def __init__(self, *faults: tuple[str, str]) -> None:
        super().__init__()
        self.faults = faults

    def ladder(self, placement: Placement) -> tuple[FallbackStep, ...]:
        rungs = []
        for at in range(len(self.faults)):
            options = (*FAST, *self.faults[at + 1 : at + 2])
            rungs.append(FallbackStep(name=NAMES[at], settings=replace(placement.settings, options=options)))
        return tuple(rungs)

    def placement(self, file: ModelFile, **build: str) -> Placement:
        made = replace(self.builds()[0], devices=(GPU,), **build)
        settings = Settings(context=2048, options=(*FAST, *self.faults[:1]))
        return Placement(name="pretend/gpu", file=file, build=made, unit="gpu", settings=settings)


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> ModelFile:
    return read_model_file(tiny, tmp_path)


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache", start_seconds=60.0, hang_seconds=5.0)


class Stand:
    """Calls `foothold` in fresh folders, and keeps what it told."""

    def __init__(self, configuration: Configuration, folder: Path):
        self.configuration = configuration
        self.folder = folder
        self.told: list[str] = []

    def __call__(self, engine: Engine, placement: Placement, reference: FallbackProbe | None = None) -> Fallback:
        self.told = []
        folder = self._fresh()
        return asyncio.run(
            find_fallback(engine, placement, self.configuration, folder, reference=reference, tell=self.told.append)
        )

    def lower(self, engine: Engine, standing: Fallback, reason: RunError) -> Fallback:
        return asyncio.run(lower(engine, standing, reason, self.configuration, self._fresh()))

    def probe(self, engine: Engine, placement: Placement) -> FallbackProbe:
        async def ask() -> FallbackProbe:
            async with Runner.open(engine, placement, self._fresh(), start_seconds=60, hang_seconds=20) as runner:
                return await probe(runner)

        return asyncio.run(ask())

    def _fresh(self) -> Path:
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        return folder


@pytest.fixture
def stand(configuration: Configuration, tmp_path: Path) -> Stand:
    (tmp_path / "w").mkdir()
    return Stand(configuration, tmp_path / "w")


# -- climbing down


def test_an_engine_without_a_ladder_is_not_probed(stand: Stand, file: ModelFile) -> None:
    engine = Fragile()
    placement = engine.placement(file)
    found = stand(engine, placement)
    assert (found.placement, found.rung, found.remark, stand.told) == (placement, "", "", [])
    assert not stand.configuration.data.exists()


def test_what_holds_as_planned_stays_so(stand: Stand, file: ModelFile) -> None:
    engine = Fragile(("seed", "1"))
    placement = engine.placement(file)
    found = stand(engine, placement)
    assert (found.placement, found.rung, found.falls, found.remembered) == (placement, "", (), False)
    assert stand.told == ["pretend/gpu: does it hold?"]
    assert stand(engine, placement).remembered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kind", "cause"),
    [
        (("crash_after", "1"), "died", "segmentation fault (SIGSEGV)"),
        (("exit_after", "0"), "died", "exit code 1"),
        (("hang_after", "0"), "hung", "hang"),
        (("refuse_start", "the driver said no"), "start failed", "exit code 3"),
        (("error_after", "0"), "refused", "the engine refused (500): the script asks for an error after 0 tokens"),
    ],
)
def test_a_fault_is_climbed_down_from(
    stand: Stand, file: ModelFile, monkeypatch: pytest.MonkeyPatch, fault: tuple[str, str], kind: str, cause: str
) -> None:
    monkeypatch.setattr("trilithon.runtime.client._SECONDS_PER_PROMPT_TOKEN", 0.001)
    engine = Fragile(fault)
    found = stand(engine, engine.placement(file))
    assert found.rung == "less one"
    assert dict(found.placement.settings.options) == dict(FAST)
    assert [(fall.rung, fall.kind, fall.cause) for fall in found.falls] == [("", kind, cause)]
    assert stand.told == ["pretend/gpu: does it hold?", "pretend/gpu: does it hold with less one?"]
    assert found.remark.startswith(f"runs with less one, since without it: as planned: {kind}, {cause} (")


def test_an_error_of_the_moment_is_no_fall(stand: Stand, file: ModelFile, tmp_path: Path) -> None:
    engine = Fragile(("error_after", "0"))
    placement = engine.placement(file)
    once = (*placement.settings.options, ("flaky", "1"), ("flaky_file", str(tmp_path / "starts")))
    found = stand(engine, replace(placement, settings=replace(placement.settings, options=once)))
    assert (found.rung, found.falls) == ("", ())


@pytest.mark.slow
def test_rung_by_rung(stand: Stand, file: ModelFile) -> None:
    engine = Fragile(("crash_after", "1"), ("exit_after", "0"), ("refuse_start", "no"))
    found = stand(engine, engine.placement(file))
    assert found.rung == "less three"
    assert [fall.rung for fall in found.falls] == ["", "less one", "less two"]
    assert "less two: start failed" in found.remark


def test_when_none_holds_the_last_error_is_raised(stand: Stand, file: ModelFile) -> None:
    class Bottomless(Fragile):
        def ladder(self, placement: Placement) -> tuple[FallbackStep, ...]:
            return (FallbackStep(name="useless", settings=placement.settings),)

    engine = Bottomless(("crash_after", "1"))
    with pytest.raises(ChildDied, match="segmentation fault"):
        stand(engine, engine.placement(file))
    assert recall(stand.configuration, engine.placement(file)) is None


def test_what_no_setting_fixes_is_raised_at_once(stand: Stand, file: ModelFile) -> None:
    class Unbuilt(Fragile):
        def launch(self, placement: Placement, folder: Path):
            return replace(super().launch(placement, folder), argv=("/nowhere/llama-server",))

    engine = Unbuilt(("seed", "1"))
    with pytest.raises(StartError, match="cannot be started"):
        stand(engine, engine.placement(file))
    assert len(stand.told) == 1


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_who_is_ended_from_outside_gives_nothing_up(stand: Stand, file: ModelFile, name: str) -> None:
    class Ended(Fragile):
        def launch(self, placement: Placement, folder: Path) -> Launch:
            return replace(super().launch(placement, folder), argv=("/bin/sh", "-c", f"kill -{name} $$"))

    engine = Ended(("seed", "1"))
    placement = engine.placement(file)
    with pytest.raises(StartError, match=f"killed from outside .SIG{name}"):
        stand(engine, placement)
    assert len(stand.told) == 1


def test_it_says_for_whom_it_waits(
    stand: Stand, file: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnNpu(Fragile):
        def launch(self, placement: Placement, folder: Path) -> Launch:
            return replace(super().launch(placement, folder), tenancy="npu")

    monkeypatch.setenv("TRILITHON_NPU_LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr("trilithon.runtime.npu._TELL_SECONDS", 0.05)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.3, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        engine = OnNpu(("seed", "1"))
        assert stand(engine, engine.placement(file)).rung == ""
    assert any("waiting for the NPU" in line for line in stand.told)


# -- garbage


def test_wrong_answers_are_climbed_down_from(stand: Stand, file: ModelFile) -> None:
    engine = Fragile(("wrong", "1"))
    sound = replace(engine.placement(file), settings=Settings(context=2048, options=FAST))
    reference = stand.probe(engine, sound)
    assert len(reference.prefill) == len(reference.decode) > 10
    found = stand(engine, engine.placement(file), reference)
    assert (found.rung, found.falls[0].cause) == ("less one", "wrong answers")


def test_another_tokenizer_is_no_wrong_answer(stand: Stand, file: ModelFile) -> None:
    """The reference may be another file; what it says of other tokens says nothing about these."""
    engine = Fragile(("wrong", "1"))
    sound = replace(engine.placement(file), settings=Settings(context=2048, options=FAST))
    reference = stand.probe(engine, sound)
    other = replace(reference, tokens=(1, *reference.tokens))
    assert stand(engine, engine.placement(file), other).rung == ""


def test_the_reference_itself_is_right(stand: Stand, file: ModelFile) -> None:
    engine = Fragile(("seed", "3"))
    placement = engine.placement(file)
    assert stand(engine, placement, stand.probe(engine, placement)).rung == ""


@pytest.mark.parametrize("values", [[float("-inf"), -1.0], [-6.2] * 64, []])
def test_what_is_no_distribution_is_climbed_down_from(
    stand: Stand, file: ModelFile, monkeypatch: pytest.MonkeyPatch, values: list[float]
) -> None:
    """NaN comes as null, which the client takes for -inf; a device that computes nothing gives all the same."""
    from trilithon.engines.wire.messages import Candidate, Timings
    from trilithon.runtime.client import Client

    real = Client.distribution
    seen: list[int] = []

    async def garbled(self: Client, request):
        candidates, _ = await real(self, request)
        seen.append(1)
        garbage = [Candidate(at, value) for at, value in enumerate(values)]
        return (garbage if len(seen) == 1 else candidates), Timings(0, 1, 1.0, 1, 1.0)

    monkeypatch.setattr(Client, "distribution", garbled)
    engine = Fragile(("seed", "1"))
    found = stand(engine, engine.placement(file))
    assert (found.rung, found.falls[0].cause) == ("less one", "garbage in place of probabilities")


def test_an_engine_without_probabilities_is_probed_too(stand: Stand, file: ModelFile) -> None:
    engine = Fragile(("crash_after", "1"))
    placement = engine.placement(file)
    placement = replace(placement, build=replace(placement.build, features=frozenset()))
    assert stand(engine, placement).rung == "less one"


# -- one further down, from use


def test_one_rung_lower(stand: Stand, file: ModelFile) -> None:
    engine = Fragile(("seed", "1"), ("seed", "2"), ("crash_after", "1"))
    standing = stand(engine, engine.placement(file))
    reason = RunError("broken", cause="broken by the quality check")
    lower_one = stand.lower(engine, standing, reason)
    assert (lower_one.rung, lower_one.falls[-1].cause) == ("less one", "broken by the quality check")
    lowest = stand.lower(engine, lower_one, ChildDied("died", cause="segmentation fault (SIGSEGV)"))
    assert lowest.rung == "less three"  # the second crashed when tried
    assert [fall.rung for fall in lowest.falls] == ["", "less one", "less two"]
    with pytest.raises(RunError, match="broken"):
        stand.lower(engine, lowest, reason)
    assert stand(engine, engine.placement(file)).rung == "less three"


# -- memory


def test_it_starts_there_the_next_time(stand: Stand, file: ModelFile) -> None:
    engine = Fragile(("crash_after", "1"))
    first = stand(engine, engine.placement(file))
    again = stand(engine, engine.placement(file))
    assert (again.rung, again.remembered, stand.told) == ("less one", True, [])
    assert again.placement == first.placement
    assert again.falls == first.falls
    assert again.falls[0].last_words == first.falls[0].last_words


def changed(placement: Placement, part: str) -> Placement:
    build = placement.build
    changes: dict[str, Placement] = {
        "fingerprint": replace(placement, build=replace(build, fingerprint="other")),
        "version": replace(placement, build=replace(build, version="2")),
        "driver": replace(placement, build=replace(build, devices=(replace(GPU, driver="pretend 1.1"),))),
        "device": replace(placement, build=replace(build, devices=(replace(GPU, name="Another"),))),
    }
    return changes[part]


@pytest.mark.parametrize("part", ["fingerprint", "version", "driver", "device"])
def test_it_is_forgotten_when_build_or_driver_changes(stand: Stand, file: ModelFile, part: str) -> None:
    engine = Fragile(("crash_after", "1"))
    placement = engine.placement(file)
    stand(engine, placement)
    other = changed(placement, part)
    assert list(known_of(stand.configuration, other.build, "gpu")) == []
    assert recall(stand.configuration, other) is None
    assert recall(stand.configuration, placement) is None  # the file is gone


def test_it_is_forgotten_with_another_kernel(stand: Stand, file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Fragile(("crash_after", "1"))
    stand(engine, engine.placement(file))
    monkeypatch.setattr(footholds.os, "uname", lambda: type("Uname", (), {"release": "99.0"}))
    assert recall(stand.configuration, engine.placement(file)) is None


def test_other_models_and_settings_are_known_apart(configuration: Configuration, file: ModelFile) -> None:
    placement = Fragile(("seed", "1")).placement(file)
    remember(configuration, placement, "less one", ())
    for other in (
        replace(placement, file=replace(file, quantization="Q3_K")),
        replace(placement, file=replace(file, architecture="mamba")),
        replace(placement, settings=replace(placement.settings, flash_attention="on")),
        replace(placement, settings=replace(placement.settings, speculation="ngram-mod")),
        replace(placement, unit="npu"),
        replace(placement, build=replace(placement.build, where="elsewhere")),
    ):
        assert recall(configuration, other) is None
    assert recall(configuration, placement) is not None
    threads = replace(placement, settings=replace(placement.settings, threads=7))
    assert recall(configuration, threads) is not None


def test_a_rung_that_the_engine_no_longer_has_is_tried_anew(stand: Stand, file: ModelFile) -> None:
    engine = Fragile(("crash_after", "1"))
    placement = engine.placement(file)
    remember(stand.configuration, placement, "a rung of old", ())
    found = stand(engine, placement)
    assert (found.rung, found.remembered) == ("less one", False)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": 1}', '{"rung": "x", "falls": [{"no": 1}]}'])
def test_a_damaged_memory_is_none(configuration: Configuration, file: ModelFile, damage: str) -> None:
    placement = Fragile(("seed", "1")).placement(file)
    remember(configuration, placement, "less one", ())
    (kept,) = (configuration.data / "footholds").glob("*.json")
    kept.write_text(damage)
    assert recall(configuration, placement) is None
    assert list(known_of(configuration, placement.build, "gpu")) == []
    remember(configuration, placement, "less two", ())
    known = recall(configuration, placement)
    assert known is not None
    assert known.rung == "less two"


def test_many_writers_at_once(configuration: Configuration, file: ModelFile) -> None:
    placement = Fragile(("seed", "1")).placement(file)
    fall = FailedAttempt(rung="", kind="died", cause="x" * 20_000, date="2026-11-22", last_words=("a", "b"))
    bad: list[object] = []

    def write(name: str) -> None:
        for _ in range(20):
            remember(configuration, placement, name, (fall,))
            known = recall(configuration, placement)
            if known is None or known.falls != (fall,):
                bad.append(known)

    threads = [threading.Thread(target=write, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bad == []
    (kept,) = (configuration.data / "footholds").iterdir()  # and nothing half-written beside it
    assert json.loads(kept.read_text())["rung"] in NAMES


def test_what_is_known_of_a_build(configuration: Configuration, file: ModelFile) -> None:
    placement = Fragile(("seed", "1")).placement(file)
    other = replace(placement, file=replace(file, architecture="gemma3"))
    remember(configuration, placement, "less one", ())
    remember(configuration, other, "", ())
    found = list(known_of(configuration, placement.build, "gpu"))
    assert {(known.architecture, known.rung) for known in found} == {("llama", "less one"), ("gemma3", "")}
    assert list(known_of(configuration, placement.build, "cpu")) == []


def test_what_was_known_is_forgotten_when_asked(configuration: Configuration, file: ModelFile) -> None:
    placement = Fragile(("seed", "1")).placement(file)
    elsewhere = replace(placement, build=replace(placement.build, where="elsewhere"))
    for each in (placement, replace(placement, file=replace(file, architecture="gemma3")), elsewhere):
        remember(configuration, each, "less one", ())
    assert [forget(configuration, placement.build, unit) for unit in ("cpu", "gpu", "gpu")] == [0, 2, 0]
    assert recall(configuration, placement) is None
    assert recall(configuration, elsewhere) is not None
