"""A build tried out with a tiny model: whether it does here what it says. Speed and quality are the campaign's."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from trilithon.bench.exactness import Reading, compare, kinds, read_exactly, write_pair
from trilithon.bench.setup import CampaignSetup, resolve
from trilithon.board.snapshot import read_board
from trilithon.engines.base import Build, FallbackStep, Placement, Unit
from trilithon.engines.table import engine, engines
from trilithon.engines.wire.messages import Completion
from trilithon.errors import PlacementError, RunError, StartError
from trilithon.measure.divergence import SAME_DIVERGENCE, kl_divergence
from trilithon.models.files.model_file import read_model_file
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.runtime.opening import open_runner
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration
from trilithon.units import format_bytes

__all__ = ["LIMIT_DIVERGENCE", "Trial", "TrialAnswer", "TrialResult", "reference_answer", "try_out"]

LIMIT_DIVERGENCE = 0.1
"""Nats from the reference's next-token distribution. Other kernels differ by 1e-6, 8-bit weights and activations on
an NPU by 0.07 (published for Gemma-3-1B); wrong ones by 1 and more. How good it is within that, the bench says."""

_TEXT = "Two stones stand upright and a third lies across them, as it has for four thousand years."
_OTHER_TEXT = "9 8 7 6 5 4 3 2 1 0"
_TOKENS = 8
_CANDIDATES = 64
_GROWING = 8
# On a CPU the same kernels compute both, in batches of other sizes.
_REUSE_DIVERGENCE = 1e-3
_ONLY_ANSWER = "ab"
_UNKNOWN_ARCHITECTURE = "model architecture unknown to this build"  # a cause of llama.cpp's, as of its forks
_EXACT_QUANTIZATION, _EXACT_EMBEDDING, _EXACT_LENGTHS = "Q8_0", 64, (8, 200)


@dataclass(frozen=True, slots=True)
class TrialResult:
    """`absent`: the build does not claim it, or it cannot be tried here."""

    capability: str
    outcome: Literal["works", "fails", "absent"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """One build on one unit. `fallback` names the safer setting that it needed; empty when its own settings worked."""

    placement: str
    build: Build
    unit: Unit
    findings: tuple[TrialResult, ...]
    fallback: str = ""

    @property
    def tried(self) -> bool:
        return any(finding.outcome != "absent" for finding in self.findings)

    @property
    def works(self) -> bool:
        """Nothing failed; see also `tried`."""
        return all(finding.outcome != "fails" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """What a placement says to the fixed text: its tokens, and the log-probabilities of the next one by token id.
    `exact` are readings of tiny models in F32, by architecture."""

    tokens: tuple[int, ...]
    next: Mapping[int, float]
    exact: Mapping[str, Reading] = field(default_factory=dict)


@dataclass(slots=True)
class _Report:
    """The findings so far; what raises RunError becomes a failing one, and ends the trial."""

    findings: list[TrialResult] = field(default_factory=list)
    step: str = "load"

    def begin(self, capability: str) -> None:
        self.step = capability

    def note(self, fails: bool, detail: str) -> None:
        self.findings.append(TrialResult(self.step, "fails" if fails else "works", detail))

    def absent(self, detail: str) -> None:
        self.findings.append(TrialResult(self.step, "absent", detail))


async def reference_answer(
    configuration: Configuration, folder: Path, architectures: Sequence[str] | None = None
) -> TrialAnswer | None:
    """What the build that came as a package says on the CPU; None where there is none. `architectures` None: all."""
    wanted = kinds() if architectures is None else architectures
    for known_engine in engines(configuration):
        for build in known_engine.builds():
            if known_engine.only_when_named or "cpu" not in build.units or Path(build.where).is_absolute():
                continue
            placement = _placement(build, "cpu", configuration, folder)
            async with open_runner(placement, folder / "reference", configuration) as runner:
                tokens = await runner.tokenize(_TEXT)
                answer = TrialAnswer(tuple(tokens), await _next(runner, await _prompt(runner, tokens)))
            return replace(answer, exact=await _exact_readings(build, wanted, configuration, folder))
    return None


async def _exact_readings(
    build: Build, architectures: Sequence[str], configuration: Configuration, folder: Path
) -> Mapping[str, Reading]:
    readings = {}
    for kind in architectures:
        _, plain = write_pair(folder, kind, _EXACT_QUANTIZATION, _EXACT_EMBEDDING)
        placement = _placement(build, "cpu", configuration, folder, plain)
        async with open_runner(placement, folder / f"reference-{kind}", configuration) as runner:
            readings[kind] = await read_exactly(runner, _EXACT_LENGTHS)
    return readings


async def try_out(
    build: Build,
    unit: Unit,
    reference: TrialAnswer | None,
    configuration: Configuration,
    folder: Path,
    *,
    waiting: Callable[[str], None] | None = None,
) -> Trial:
    """Try one build on one unit; where it fails, the fallback steps of its engine in turn. `waiting` is told
    for whom it waits."""
    name = f"{build.engine}@{build.name}/{unit}"
    try:
        placement = _placement(build, unit, configuration, folder)
    except PlacementError as error:
        return Trial(name, build, unit, (TrialResult("load", "absent", str(error)),))
    steps: Sequence[FallbackStep] = engine(build.engine, configuration).fallback_steps(placement)
    own: Trial | None = None
    for number, step in enumerate([FallbackStep(name="", settings=placement.settings), *steps]):
        attempt = replace(placement, settings=step.settings)
        place = folder / f"{build.name}-{unit}-{number}"
        findings = await _findings(attempt, reference, configuration, place, waiting)
        trial = Trial(name, build, unit, findings, step.name)
        if trial.works:
            return trial
        own = own or trial
    assert own is not None
    return own


async def _findings(
    placement: Placement,
    reference: TrialAnswer | None,
    configuration: Configuration,
    folder: Path,
    waiting: Callable[[str], None] | None,
) -> tuple[TrialResult, ...]:
    report = _Report()
    try:
        async with open_runner(placement, folder, configuration, waiting) as runner:
            report.note(False, f"{(runner.ready_ns - runner.started_ns) / 1e9:.2f} s")  # without trials and waits
            await _try(runner, placement.build, reference, report)
        if placement.unit == "cpu" and reference is not None and "logprobs" in placement.build.features:
            for kind, expected in reference.exact.items():
                await _try_exactness(placement, kind, expected, configuration, folder, report)
    except RunError as error:
        report.note(True, f"{error}; {error.advice}" if error.advice else str(error))
    return tuple(report.findings)


async def _try_exactness(
    placement: Placement, kind: str, expected: Reading, configuration: Configuration, folder: Path, report: _Report
) -> None:
    """The weights in 8 bits, against the same ones in F32 on the packaged build."""
    report.begin(f"logits of {kind}")
    quantized, _ = write_pair(folder.parent, kind, _EXACT_QUANTIZATION, _EXACT_EMBEDDING)
    settings = replace(placement.settings, full_window_cache=True)  # a used cache has to hold the whole prompt
    placement = replace(placement, file=read_model_file(quantized, folder), settings=settings)
    try:
        async with open_runner(placement, folder / kind, configuration) as runner:
            exactness = compare(expected, await read_exactly(runner, _EXACT_LENGTHS))
    except StartError as error:
        if error.cause != _UNKNOWN_ARCHITECTURE:
            raise
        return report.absent(f"this build does not know {kind}")
    report.note(
        not exactness.divergence <= SAME_DIVERGENCE,
        f"within {exactness.largest:.2g} nats of F32, KL divergence {exactness.divergence:.2g}, at most "
        f"{SAME_DIVERGENCE:g} is right; top-1 {exactness.top1:.0%}",
    )
    return None


async def _try(runner: Runner, build: Build, reference: TrialAnswer | None, report: _Report) -> None:
    report.begin("tokenise")
    tokens = await runner.tokenize(_TEXT)
    differs = reference is not None and tuple(tokens) != reference.tokens
    report.note(differs, f"{len(tokens)} tokens{', others than the reference gives' * differs}")
    report.begin("generate")
    prompt = await _prompt(runner, tokens)
    _, finished = await runner.complete(replace(prompt, max_tokens=_TOKENS))
    count = finished.timings.predicted_n if finished.timings else _TOKENS
    report.note(count != _TOKENS, f"{count} tokens")
    report.begin("log-probabilities")
    if "logprobs" not in build.features:
        report.absent("this build gives none, so its answers were not compared with the reference's")
    else:
        _hold(await _next(runner, prompt), reference, report)
        report.begin("reused prefixes")
        await _try_reuse(runner, prompt, tokens, report)
    report.begin("grammar")
    if "grammar" not in build.features:
        report.absent("this build knows no grammars")
    else:
        await _try_grammar(runner, report)
    report.begin("handover")
    if "handover" not in build.features:
        report.absent("this build cannot save a KV cache")
    else:
        await _try_handover(runner, prompt, report)


def _hold(measured: Mapping[int, float], reference: TrialAnswer | None, report: _Report) -> None:
    if reference is None:
        report.absent("there is no packaged build to compare them with")
        return
    divergence = kl_divergence(reference.next, measured)
    report.note(
        not divergence <= LIMIT_DIVERGENCE,
        f"KL divergence {divergence:.2g} from the packaged build's, at most {LIMIT_DIVERGENCE:g} is right",
    )


async def _try_reuse(runner: Runner, prompt: Completion, text: Sequence[int], report: _Report) -> None:
    """Eight prompts, each of which goes on with the answer to the one before: an answer that uses the
    KV cache is compared with one after a fresh evaluation."""
    tokens, forced = list(text), prompt.forced
    assert forced is not None
    divergences, reused = [], 0
    for step in range(_GROWING):
        await runner.timed(replace(prompt, prompt=tokens, cache_prompt=True))
        tokens = [*tokens, forced, *text[step : step + 2]]
        request = replace(prompt, prompt=tokens, cache_prompt=True, candidates=_CANDIDATES)
        cached, timings = await runner.distribution(request)
        reused += timings.cache_n > 0
        fresh = await _next(runner, replace(prompt, prompt=tokens))
        divergences.append(kl_divergence(fresh, {candidate.token: candidate.logprob for candidate in cached}))
    if not reused:
        return report.absent("this build evaluates every prompt in full")
    limit = _REUSE_DIVERGENCE if runner.placement.unit == "cpu" else LIMIT_DIVERGENCE
    worst = max(divergences)
    report.note(not worst <= limit, f"KL divergence {worst:.2g} from a fresh evaluation, at most {limit:g} is right")
    return None


async def _try_grammar(runner: Runner, report: _Report) -> None:
    body = {"prompt": _TEXT, "n_predict": _TOKENS, "grammar": f'root ::= "{_ONLY_ANSWER}"', "temperature": 0}
    async with runner.relay("/completion", body) as relayed:
        answer = json.loads(await relayed.read())
    text = str(answer.get("content"))
    report.note(
        text != _ONLY_ANSWER,
        "kept" if text == _ONLY_ANSWER else f"answered {text[:20]!r} in place of the only text allowed",
    )


async def _try_handover(runner: Runner, prompt: Completion, report: _Report) -> None:
    """Save a slot, put something else in it, restore it, and see that the prompt need not be evaluated again."""
    prompt = replace(prompt, cache_prompt=True, slot=0)
    await runner.timed(prompt)
    saved = await runner.client.save_slot(0, "trial")
    await runner.timed(replace(prompt, prompt=_OTHER_TEXT))
    await runner.client.restore_slot(0, "trial")
    timings = (await runner.timed(prompt)).timings
    taken, count = timings.cache_n if timings else 0, len(prompt.prompt)
    # The last token is evaluated anew in any case: its distribution is not in the cache.
    report.note(taken < count - 1, f"{taken} of {count} tokens restored, {format_bytes(saved.size_bytes)}")


async def _prompt(runner: Runner, tokens: Sequence[int]) -> Completion:
    """A request whose answer is plain text whatever the model would say: with random weights that may be half a
    character, which some servers keep back and others refuse to send."""
    plain = (await runner.tokenize(" a", add_special=False))[-1]
    return Completion(prompt=tokens, max_tokens=1, ignore_eos=True, forced=plain)


async def _next(runner: Runner, prompt: Completion) -> Mapping[int, float]:
    candidates, _ = await runner.distribution(replace(prompt, candidates=_CANDIDATES))
    if not candidates:
        raise RunError("the engine gave no log-probabilities", cause="no log-probabilities")
    return {candidate.token: candidate.logprob for candidate in candidates}


def _placement(
    build: Build, unit: Unit, configuration: Configuration, folder: Path, model: Path | None = None
) -> Placement:
    path = model or folder / "tiny.gguf"
    if not path.exists():
        write_tiny_model(path)
    plan = CampaignSetup(model=path, tests=(), placements=(f"{build.engine}@{build.name}/{unit}",))
    (placement,) = resolve(plan, read_model_file(path, folder), read_board(), configuration)
    return placement
