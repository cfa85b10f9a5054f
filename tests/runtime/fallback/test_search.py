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
from trilithon.runtime.fallback import store as fallback_store
from trilithon.runtime.fallback.search import Fallback, FallbackProbe, FallbackSearch, probe
from trilithon.runtime.fallback.store import FailedAttempt, forget, known_of, recall, remember
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

FAST = (("prefill", "50000"), ("decode", "5000"))
GPU = Device(id="Pretend0", unit="gpu", name="Pretend GPU", driver="pretend 1.0")
NAMES = ("less one", "less two", "less three")


class Fragile(ScriptedEngine):
    """A pretend GPU: each fallback step removes the next fault."""

    def __init__(self, *faults: tuple[str, str]) -> None:
        super().__init__()
        self.faults = faults

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        steps = []
        for at in range(len(self.faults)):
            options = (*FAST, *self.faults[at + 1 : at + 2])
            steps.append(FallbackStep(name=NAMES[at], settings=replace(placement.settings, options=options)))
        return tuple(steps)

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


class Search:
    """Searches in fresh folders, and keeps the lines that were told."""

    def __init__(self, configuration: Configuration, folder: Path):
        self.configuration = configuration
        self.folder = folder
        self.lines: list[str] = []

    def __call__(self, engine: Engine, placement: Placement, reference: FallbackProbe | None = None) -> Fallback:
        self.lines = []
        folder = self._fresh()
        finder = FallbackSearch(
            engine, placement, self.configuration, folder, reference=reference, tell=self.lines.append
        )
        return asyncio.run(finder.find())

    def find_after(self, engine: Engine, fallback: Fallback, reason: RunError) -> Fallback:
        finder = FallbackSearch(engine, fallback.planned, self.configuration, self._fresh())
        return asyncio.run(finder.find_after(fallback, reason))

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
def search(configuration: Configuration, tmp_path: Path) -> Search:
    (tmp_path / "w").mkdir()
    return Search(configuration, tmp_path / "w")


# -- searching


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("E RKNN: This rknn model is for RK3588, but current platform is RK3576", "model converted for another chip"),
        ("error loading model: key not found in model: x.y", "model file lacks a key"),
        ("invalid ggml type 99. should be in [0, 43)", "tensor type unknown to this build: 99"),
        ("libgomp.so.1: cannot open shared object file", "a shared library is missing: libgomp.so.1"),
    ],
)
def test_no_step_is_tried_for_a_fault_that_no_setting_changes(
    search: Search, file: ModelFile, said: str, cause: str
) -> None:
    engine = Fragile(("refuse_start", said), ("decode", "5000"))
    with pytest.raises(StartError) as caught:
        search(engine, engine.placement(file))
    assert caught.value.cause.startswith(cause)
    assert search.lines == ["pretend/gpu: testing its settings"]


def test_an_engine_without_fallback_steps_is_not_probed(search: Search, file: ModelFile) -> None:
    engine = Fragile()
    placement = engine.placement(file)
    found = search(engine, placement)
    assert (found.placement, found.step, found.remark, search.lines) == (placement, "", "", [])
    assert not search.configuration.data.exists()


def test_own_settings_that_work_are_kept(search: Search, file: ModelFile) -> None:
    engine = Fragile(("seed", "1"))
    placement = engine.placement(file)
    found = search(engine, placement)
    assert (found.placement, found.step, found.failed, found.remembered) == (placement, "", (), False)
    assert search.lines == ["pretend/gpu: testing its settings"]
    assert search(engine, placement).remembered


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
def test_a_fault_leads_to_the_next_step(
    search: Search, file: ModelFile, monkeypatch: pytest.MonkeyPatch, fault: tuple[str, str], kind: str, cause: str
) -> None:
    monkeypatch.setattr("trilithon.runtime.client._SECONDS_PER_PROMPT_TOKEN", 0.001)
    engine = Fragile(fault)
    found = search(engine, engine.placement(file))
    assert found.step == "less one"
    assert dict(found.placement.settings.options) == dict(FAST)
    assert [(attempt.step, attempt.kind, attempt.cause) for attempt in found.failed] == [("", kind, cause)]
    assert search.lines == ["pretend/gpu: testing its settings", "pretend/gpu: testing with less one"]
    assert found.remark.startswith(f"runs with less one, because it failed with its own settings: {kind}, {cause} (")


def test_a_temporary_error_is_not_a_failed_attempt(search: Search, file: ModelFile, tmp_path: Path) -> None:
    engine = Fragile(("error_after", "0"))
    placement = engine.placement(file)
    once = (*placement.settings.options, ("flaky", "1"), ("flaky_file", str(tmp_path / "starts")))
    found = search(engine, replace(placement, settings=replace(placement.settings, options=once)))
    assert (found.step, found.failed) == ("", ())


@pytest.mark.slow
def test_step_by_step(search: Search, file: ModelFile) -> None:
    engine = Fragile(("crash_after", "1"), ("exit_after", "0"), ("refuse_start", "no"))
    found = search(engine, engine.placement(file))
    assert found.step == "less three"
    assert [attempt.step for attempt in found.failed] == ["", "less one", "less two"]
    assert "with less two: start failed" in found.remark


def test_when_none_works_the_last_error_is_raised(search: Search, file: ModelFile) -> None:
    class Bottomless(Fragile):
        def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
            return (FallbackStep(name="useless", settings=placement.settings),)

    engine = Bottomless(("crash_after", "1"))
    with pytest.raises(ChildDied, match="segmentation fault"):
        search(engine, engine.placement(file))
    assert recall(search.configuration, engine.placement(file)) is None


def test_what_no_setting_can_help_is_raised_at_once(search: Search, file: ModelFile) -> None:
    class Unbuilt(Fragile):
        def launch(self, placement: Placement, folder: Path):
            return replace(super().launch(placement, folder), argv=("/nowhere/llama-server",))

    engine = Unbuilt(("seed", "1"))
    with pytest.raises(StartError, match="cannot be started"):
        search(engine, engine.placement(file))
    assert len(search.lines) == 1


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_a_child_killed_from_outside_leads_to_no_fallback(search: Search, file: ModelFile, name: str) -> None:
    class Ended(Fragile):
        def launch(self, placement: Placement, folder: Path) -> Launch:
            return replace(super().launch(placement, folder), argv=("/bin/sh", "-c", f"kill -{name} $$"))

    engine = Ended(("seed", "1"))
    placement = engine.placement(file)
    with pytest.raises(StartError, match=f"killed from outside .SIG{name}"):
        search(engine, placement)
    assert len(search.lines) == 1


def test_it_tells_what_it_waits_for(
    search: Search, file: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnNpu(Fragile):
        def launch(self, placement: Placement, folder: Path) -> Launch:
            return replace(super().launch(placement, folder), exclusive="npu")

    monkeypatch.setenv("TRILITHON_NPU_LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr("trilithon.runtime.npu._TELL_SECONDS", 0.05)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.3, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        engine = OnNpu(("seed", "1"))
        assert search(engine, engine.placement(file)).step == ""
    assert any("waiting for the NPU" in line for line in search.lines)


# -- garbage


def test_wrong_answers_lead_to_the_next_step(search: Search, file: ModelFile) -> None:
    engine = Fragile(("wrong", "1"))
    sound = replace(engine.placement(file), settings=Settings(context=2048, options=FAST))
    reference = search.probe(engine, sound)
    assert len(reference.prefill) == len(reference.decode) > 10
    found = search(engine, engine.placement(file), reference)
    assert (found.step, found.failed[0].cause) == ("less one", "wrong answers")


def test_another_tokenizer_is_not_a_wrong_answer(search: Search, file: ModelFile) -> None:
    """The reference may be another file; what it says of other tokens says nothing about these."""
    engine = Fragile(("wrong", "1"))
    sound = replace(engine.placement(file), settings=Settings(context=2048, options=FAST))
    reference = search.probe(engine, sound)
    other = replace(reference, tokens=(1, *reference.tokens))
    assert search(engine, engine.placement(file), other).step == ""


def test_the_reference_itself_is_right(search: Search, file: ModelFile) -> None:
    engine = Fragile(("seed", "3"))
    placement = engine.placement(file)
    assert search(engine, placement, search.probe(engine, placement)).step == ""


@pytest.mark.parametrize("values", [[float("-inf"), -1.0], [-6.2] * 64, []])
def test_what_is_not_a_distribution_leads_to_the_next_step(
    search: Search, file: ModelFile, monkeypatch: pytest.MonkeyPatch, values: list[float]
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
    found = search(engine, engine.placement(file))
    assert (found.step, found.failed[0].cause) == ("less one", "garbage in place of probabilities")


def test_an_engine_without_probabilities_is_probed_too(search: Search, file: ModelFile) -> None:
    engine = Fragile(("crash_after", "1"))
    placement = engine.placement(file)
    placement = replace(placement, build=replace(placement.build, features=frozenset()))
    assert search(engine, placement).step == "less one"


# -- failures in use


def test_the_next_step_after_a_failure_in_use(search: Search, file: ModelFile) -> None:
    engine = Fragile(("seed", "1"), ("seed", "2"), ("crash_after", "1"))
    first = search(engine, engine.placement(file))
    reason = RunError("broken", cause="broken by the quality check")
    next_one = search.find_after(engine, first, reason)
    assert (next_one.step, next_one.failed[-1].cause) == ("less one", "broken by the quality check")
    lowest = search.find_after(engine, next_one, ChildDied("died", cause="segmentation fault (SIGSEGV)"))
    assert lowest.step == "less three"  # the second crashed when tried
    assert [attempt.step for attempt in lowest.failed] == ["", "less one", "less two"]
    with pytest.raises(RunError, match="broken"):
        search.find_after(engine, lowest, reason)
    assert search(engine, engine.placement(file)).step == "less three"


# -- the store


def test_it_starts_there_the_next_time(search: Search, file: ModelFile) -> None:
    engine = Fragile(("crash_after", "1"))
    first = search(engine, engine.placement(file))
    again = search(engine, engine.placement(file))
    assert (again.step, again.remembered, search.lines) == ("less one", True, [])
    assert again.placement == first.placement
    assert again.failed == first.failed
    assert again.failed[0].last_words == first.failed[0].last_words


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
def test_it_is_forgotten_when_build_or_driver_changes(search: Search, file: ModelFile, part: str) -> None:
    engine = Fragile(("crash_after", "1"))
    placement = engine.placement(file)
    search(engine, placement)
    other = changed(placement, part)
    assert list(known_of(search.configuration, other.build, "gpu")) == []
    assert recall(search.configuration, other) is None
    assert recall(search.configuration, placement) is None  # the file is gone


def test_it_is_forgotten_with_another_kernel(search: Search, file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Fragile(("crash_after", "1"))
    search(engine, engine.placement(file))
    monkeypatch.setattr(fallback_store.os, "uname", lambda: type("Uname", (), {"release": "99.0"}))
    assert recall(search.configuration, engine.placement(file)) is None


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


def test_a_step_that_the_engine_no_longer_has_is_searched_again(search: Search, file: ModelFile) -> None:
    engine = Fragile(("crash_after", "1"))
    placement = engine.placement(file)
    remember(search.configuration, placement, "an old step", ())
    found = search(engine, placement)
    assert (found.step, found.remembered) == ("less one", False)


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
    assert known.step == "less two"


def test_many_writers_at_once(configuration: Configuration, file: ModelFile) -> None:
    placement = Fragile(("seed", "1")).placement(file)
    attempt = FailedAttempt(step="", kind="died", cause="x" * 20_000, date="2026-11-22", last_words=("a", "b"))
    bad: list[object] = []

    def write(name: str) -> None:
        for _ in range(20):
            remember(configuration, placement, name, (attempt,))
            known = recall(configuration, placement)
            if known is None or known.failed != (attempt,):
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
    assert {(known.architecture, known.step) for known in found} == {("llama", "less one"), ("gemma3", "")}
    assert list(known_of(configuration, placement.build, "cpu")) == []


def test_what_was_known_is_forgotten_when_asked(configuration: Configuration, file: ModelFile) -> None:
    placement = Fragile(("seed", "1")).placement(file)
    elsewhere = replace(placement, build=replace(placement.build, where="elsewhere"))
    for each in (placement, replace(placement, file=replace(file, architecture="gemma3")), elsewhere):
        remember(configuration, each, "less one", ())
    assert [forget(configuration, placement.build, unit) for unit in ("cpu", "gpu", "gpu")] == [0, 2, 0]
    assert recall(configuration, placement) is None
    assert recall(configuration, elsewhere) is not None
