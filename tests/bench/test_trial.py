import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.bench import trial as module
from trilithon.bench.exactness import Reading, kinds
from trilithon.bench.trial import Trial, TrialAnswer, reference_answer, try_out
from trilithon.engines.base import Build, FallbackStep, Launch, Placement
from trilithon.engines.llamacpp import programs
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.engines.table import engine
from trilithon.engines.wire.dialect import Ask, Translation
from trilithon.runtime.process import workspace
from trilithon.settings import Configuration


@pytest.fixture
def configuration(home: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    monkeypatch.setattr(programs, "_packaged", lambda: None)  # a real GPU program takes its time to say what it is
    return Configuration(data=home / "data", cache=home / "cache", hang_seconds=20, start_seconds=60)


def packaged(configuration: Configuration) -> Build:
    return next(build for build in engine("llama.cpp", configuration).builds() if build.name == "embedded")


def tried(
    build: Build,
    configuration: Configuration,
    *,
    reference: TrialAnswer | None = None,
    architectures: tuple[str, ...] = (),
) -> Trial:
    async def act() -> Trial:
        with workspace() as folder:
            found = reference or await reference_answer(configuration, folder, architectures)
            return await try_out(build, "cpu", found, configuration, folder)

    return asyncio.run(act())


def outcomes(trial: Trial) -> dict[str, str]:
    return {finding.capability: finding.outcome for finding in trial.findings}


def test_the_packaged_build_works(configuration: Configuration) -> None:
    trial = tried(packaged(configuration), configuration)
    assert trial.placement == "llama.cpp@embedded/cpu"
    assert (trial.works, trial.tried, trial.fallback) == (True, True, "")
    parts = ("load", "tokenise", "generate", "log-probabilities", "reused prefixes", "grammar", "handover")
    assert outcomes(trial) == dict.fromkeys(parts, "works")
    assert "KL divergence 0 " in trial.findings[3].detail


@pytest.mark.slow  # eight models are loaded
@pytest.mark.timeout(400)
def test_the_logits_of_every_architecture_are_those_in_f32(configuration: Configuration) -> None:
    assert kinds() == ("qwen2", "qwen3", "llama", "gemma3")
    trial = tried(packaged(configuration), configuration, architectures=kinds())
    findings = [finding for finding in trial.findings if finding.capability.startswith("logits of ")]
    assert [finding.capability for finding in findings] == [f"logits of {kind}" for kind in kinds()]
    assert trial.works
    for finding in findings:
        match = re.fullmatch(
            r"within 0.0\d+ nats of F32, KL divergence \S+, at most 0.03 is right; top-1 100%", finding.detail
        )
        assert match, finding


def test_logits_far_from_those_in_f32_fail(configuration: Configuration) -> None:
    even: Reading = {
        (road, length): dict.fromkeys(range(512), -math.log(512))
        for road in ("prefill", "decode")
        for length in (8, 200)
    }

    async def act() -> Trial:
        with workspace() as folder:
            answer = await reference_answer(configuration, folder, ())
            assert answer is not None
            wrong = replace(answer, exact={"llama": even})
            return await try_out(packaged(configuration), "cpu", wrong, configuration, folder)

    trial = asyncio.run(act())
    assert outcomes(trial)["logits of llama"] == "fails"
    assert not trial.works


def test_another_answer_than_the_reference_fails(configuration: Configuration) -> None:
    wrong = TrialAnswer(tokens=(1, 2, 3), next={token: -math.log(64) for token in range(448, 512)})
    trial = tried(packaged(configuration), configuration, reference=wrong)
    assert not trial.works
    assert outcomes(trial) == {
        "load": "works",
        "tokenise": "fails",
        "generate": "works",
        "log-probabilities": "fails",
        "reused prefixes": "works",
        "grammar": "works",
        "handover": "works",
    }


def test_what_a_build_does_not_claim_is_absent(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    build = replace(packaged(configuration), features=frozenset())
    monkeypatch.setattr(LlamaCpp, "builds", lambda _: [build])
    trial = tried(build, configuration)
    assert trial.works
    assert [name for name, outcome in outcomes(trial).items() if outcome == "absent"] == [
        "log-probabilities",
        "grammar",
        "handover",
    ]


class Spoiling:
    """A server that keeps no grammar, and on a used cache forgets a token that it did not evaluate: as seen in
    ik_llama.cpp, which forgets the last one of each answer. With `fresh` it evaluates every prompt in full."""

    def __init__(self, *, fresh: bool):
        self._fresh = fresh

    async def translation(self, path: str, body: Mapping[str, Any] | None, ask: Ask) -> Translation:
        if path != "/completion" or body is None:
            return Translation(path, body)
        prompt = body["prompt"]
        if body.get("cache_prompt") and len(prompt) > 58 and not self._fresh:
            prompt = [*prompt[:-3], *prompt[-2:]]
        kept = {name: value for name, value in body.items() if name != "grammar"}
        return Translation(
            path, kept | {"prompt": prompt, "cache_prompt": body.get("cache_prompt") and not self._fresh}
        )


@pytest.mark.parametrize(("fresh", "outcome"), [(False, "fails"), (True, "absent")])
def test_a_token_that_a_used_cache_lacks_is_noticed(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, fresh: bool, outcome: str
) -> None:
    launch = LlamaCpp.launch

    def spoilt(self: LlamaCpp, placement: Placement, folder: Path) -> Launch:
        return replace(launch(self, placement, folder), dialect=Spoiling(fresh=fresh))

    monkeypatch.setattr(LlamaCpp, "launch", spoilt)
    build = replace(packaged(configuration), features=frozenset({"logprobs", "grammar"}))
    monkeypatch.setattr(LlamaCpp, "builds", lambda _: [build])
    found = outcomes(tried(build, configuration))
    assert (found["reused prefixes"], found["grammar"]) == (outcome, "fails")


def scripted(monkeypatch: pytest.MonkeyPatch, **script: str) -> Build:
    """The scripted engine, told what to do whatever the placement says."""
    launch = ScriptedEngine.launch

    def told(self: ScriptedEngine, placement: Placement, folder: Path) -> object:
        options = placement.settings.options or tuple(script.items())
        return launch(self, replace(placement, settings=replace(placement.settings, options=options)), folder)

    monkeypatch.setattr(ScriptedEngine, "launch", told)
    (build,) = ScriptedEngine().builds()
    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "capability", "said"),
    [
        ({"refuse_start": "no memory today"}, "load", "did not start"),
        ({"crash_after": "2"}, "generate", "died"),
        ({"hang_after": "2"}, "generate", "no response"),
    ],
)
def test_a_failure_is_told_with_its_cause(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, script: dict[str, str], capability: str, said: str
) -> None:
    configuration = replace(configuration, hang_seconds=3.0)
    trial = tried(scripted(monkeypatch, **script), configuration)
    assert not trial.works
    assert trial.findings[-1].capability == capability
    assert trial.findings[-1].outcome == "fails"
    assert said in trial.findings[-1].detail


def test_fallback_steps_are_tried_in_turn(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash at its own settings, an answer with the second fallback step: the trial says which."""
    build = replace(scripted(monkeypatch, crash_after="1"), features=frozenset())
    monkeypatch.setattr(ScriptedEngine, "builds", lambda _: [build])

    def steps(_: object, placement: Placement) -> tuple[FallbackStep, ...]:
        def step(name: str, **options: str) -> FallbackStep:
            return FallbackStep(name=name, settings=replace(placement.settings, options=tuple(options.items())))

        return step("no flash attention", crash_after="2"), step("fewer layers", prefill="100000")

    monkeypatch.setattr(ScriptedEngine, "fallback_steps", steps)
    nothing = TrialAnswer(tokens=(), next={})
    monkeypatch.setattr(module, "reference_answer", lambda *_: nothing)

    async def act() -> Trial:
        with workspace() as folder:
            return await try_out(build, "cpu", None, configuration, folder)

    trial = asyncio.run(act())
    assert trial.works
    assert trial.fallback == "fewer layers"


def test_a_build_that_takes_no_such_file_is_not_tried(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaCpp, "refusal", lambda *_: "it runs RKLLM files alone")
    trial = tried(packaged(configuration), configuration, reference=TrialAnswer((), {}))
    assert (trial.tried, trial.works) == (False, True)
    assert trial.findings[0].detail.endswith("it runs RKLLM files alone")
